"""A small causal model and a small source with the methods that training uses of real ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from formwright.contract import Cost, Layout

VOCAB, LENGTH = 13, 12


@dataclass
class Batch:
    inputs: Tensor
    targets: Tensor
    layout: Layout | None
    items: int
    tokens: int


@dataclass
class TinySource:
    """Next-token prediction on sequences that count up by a secret step; in each row some targets are not scored."""

    items: int = 200
    held_out: int = 40
    seed: int = 0
    poison: set[int] = field(default_factory=set)  # training steps whose loss shall be NaN
    name: str = "tiny"
    metric: str = "loss"
    lower_is_better: bool = True
    fingerprint: str = "tiny-1"

    def __post_init__(self) -> None:
        self.shape = (LENGTH,)
        self.counts = {"train": self.items, "validation": self.held_out, "test": self.held_out}
        generator = torch.Generator().manual_seed(self.seed)
        total = sum(self.counts.values())
        start = torch.randint(VOCAB, (total, 1), generator=generator)
        stride = torch.randint(1, 4, (total, 1), generator=generator)
        tokens = (start + stride * torch.arange(LENGTH + 1)) % VOCAB
        self.inputs, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
        hidden = torch.randint(0, LENGTH - 1, (total, 1), generator=generator)
        self.targets[torch.arange(LENGTH)[None] < hidden] = -100

    def _rows(self, rows: Tensor, poisoned: bool = False) -> Batch:
        inputs = self.inputs[rows]
        if poisoned:
            inputs = inputs.clone()
            inputs[0, 0] = VOCAB  # the model answers this token with NaN
        return Batch(inputs, self.targets[rows], Layout((LENGTH,)), len(rows), len(rows) * LENGTH)

    def batch(self, split: str, step: int, size: int, *, seed: int = 0) -> Batch:
        epoch = step * size // self.items
        generator = torch.Generator().manual_seed(seed * 1000 + epoch)
        order = torch.randperm(self.items, generator=generator).repeat(2)
        first = step * size % self.items
        return self._rows(order[first : first + size], step in self.poison)

    def evaluation(self, split: str, size: int, limit: int | None = None) -> Iterator[Batch]:
        first = {"train": 0, "validation": self.items, "test": self.items + self.held_out}[split]
        rows = torch.arange(first, first + min(self.counts[split], self.counts[split] if limit is None else limit))
        for part in rows.split(size):
            yield self._rows(part)

    def report(self, totals: dict[str, tuple[float, int]], split: str) -> dict[str, float]:
        return {name: total / count for name, (total, count) in totals.items()}


class TinyModel(nn.Module):
    """Embedding, a causal moving mean with dropout, a hidden layer, tied output."""

    expression = "tiny"

    def __init__(self, seed: int = 0, dropout: float = 0.1, dim: int = 16):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(VOCAB + 1, dim)
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Linear(2 * dim, 2 * dim)
        self.phase = nn.Parameter(torch.randn(dim, dtype=torch.complex64))
        self.out = nn.Linear(2 * dim, dim)
        self.head = nn.Linear(dim, VOCAB + 1, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        x = self.embed(tokens)
        counts = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)[:, None]
        mean = torch.cat([x, (x.cumsum(1) / counts + F.pad(x, (0, 0, 1, 0))[:, :-1]) * self.phase.abs()], -1)
        x = x + self.out(self.dropout(torch.relu(self.mix(mean))))
        logits = self.head(self.norm(x))
        poisoned = (tokens == VOCAB).any()
        return logits * torch.where(poisoned, torch.nan, 1.0)

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self(batch.inputs).flatten(0, 1), batch.targets.flatten(), ignore_index=-100)

    def scores(self, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        logits, targets = self(batch.inputs), batch.targets
        count = int((targets != -100).sum())
        total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
        return {"loss": (total, count), "accuracy": ((logits.argmax(-1) == targets).sum(), count)}

    def cost(self, shape: tuple[int, ...], batch: int = 1) -> Cost:
        return Cost(macs=1000 * batch)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
