"""Small data, parts and races that the tests of the race share."""

from __future__ import annotations

import random
from pathlib import Path

from formwright import data
from formwright.race import race

OPTIONS = {"data_options": {"length": 32}, "batch_tokens": 128, "depth": 1, "size": "20k", "lr": 3e-3, "measure": False}

MINE = """
import torch
from torch import nn
from formwright.contract import Card, Cost, TokenMixer, parameter_count


class Mine(TokenMixer):
    card = Card(name="mine", kind="mixer", patterns=("causal",))

    def __init__(self, dim, *, causal=True):
        super().__init__(dim, causal=causal)
        self.map = nn.Linear(dim, dim)

    def forward(self, x, layout, context=None, context_layout=None):
        return self.map(x).cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]

    def cost(self, layout, batch=1):
        return Cost(params=parameter_count(self), macs=batch * layout.tokens * self.dim**2)


class Exploding(Mine):
    card = Card(name="exploding", kind="mixer", patterns=("causal",))

    def forward(self, x, layout, context=None, context_layout=None):
        return super().forward(x, layout) * float("inf")
"""


def words(folder: Path) -> str:
    """A small text file to race on; its path."""
    draw = random.Random(0)
    path = folder / "words.txt"
    path.write_text(" ".join(draw.choice(["alpha", "beta", "gamma", "delta"]) for _ in range(2000)))
    return str(path)


def source(folder: Path, **options):
    return data.open(words(folder), **{"length": 32, **options})


def small_race(folder: Path, contenders: list[str], **options) -> str:
    """A race on `words`, with events collected in options["events"] where given."""
    events = options.pop("events", None)
    listen = options.pop("on_event", None) or (events.append if events is not None else None)
    merged = {**OPTIONS, "runs": folder / "runs", **options}
    return race(contenders, words(folder), on_event=listen, **merged)
