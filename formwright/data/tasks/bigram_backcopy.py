"""Bigram-backcopy: a text's bigrams, but after a trigger comes again the token before it (Guo et al., "Active-Dormant
Attention Heads: Mechanistically Demystifying Extreme-Token Phenomena in LLMs", arXiv 2410.13835, 2024).

A row is the mark 0, then tokens x_1, x_2, ...: x_1 is drawn as the text's own characters are, those that are no
triggers; then

    x_{t+1} = x_{t-1}                   where x_t is one of the `triggers` commonest characters
    x_{t+1} ~ P(. | x_t)                otherwise: how often it follows x_t in the text

and every next token is asked for. A head of attention has work to do at triggers alone; elsewhere softmax must put its
weight somewhere, and learns to put it on the mark. The text is the Zen of Python, which is in every Python (module
`this`), in small letters: 32 characters. Since it is short, P(. | x) is a mixture, 4/5 what follows x in it and 1/5 its
characters as common as they are: or a character that an "e" alone follows would be copied to the end of the row.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from functools import lru_cache

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task

AT_LARGE = 0.2


@lru_cache(maxsize=1)
def zen() -> str:
    """The Zen of Python in small letters."""
    with contextlib.redirect_stdout(io.StringIO()):  # importing it prints it
        this = importlib.import_module("this")
    return "".join(this.d.get(c, c) for c in this.s).lower()


def bigrams(text: str) -> tuple[np.ndarray, np.ndarray]:
    """How often each character stands in the text (V,), and its followers' probabilities (V, V), the text read in a
    circle; characters in order of how common they are, the commonest first."""
    read = np.frombuffer(text.encode("latin-1"), dtype=np.uint8)
    characters, counts = np.unique(read, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    number = np.empty(256, dtype=np.int64)
    number[characters[order]] = np.arange(len(order))
    here = number[read]
    table = np.zeros((len(order), len(order)))
    np.add.at(table, (here, np.roll(here, -1)), 1)
    counts = counts[order]
    return counts, (1 - AT_LARGE) * table / table.sum(1, keepdims=True) + AT_LARGE * counts / counts.sum()


@task
def bigram_backcopy(*, length: int = 256, triggers: int = 3, examples: int = 100_000, tests: int = 3_000) -> Task:
    """Every next token, where triggers ask for the token before them. inputs, targets (rows, length); tokens 1 ..
    `triggers` are the triggers."""
    at_least("bigram_backcopy", length=(length, 3), triggers=(triggers, 1), examples=(examples, 1), tests=(tests, 1))
    counts, follow = bigrams(zen())
    size = len(counts)
    if triggers > size - 2:
        raise DataError(f"bigram_backcopy: of the text's {size} characters {size - 2} can be triggers, not {triggers}")
    first = np.where(np.arange(size) < triggers, 0, counts)
    after = np.vstack([first / first.sum(), follow])  # row 0: what follows the mark
    summed = np.cumsum(after, axis=1)
    summed[:, -1] = 1.0
    ladder = (summed + np.arange(size + 1)[:, None]).ravel()  # all rows in one rising list: one search finds any row's

    def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.zeros((rows, length + 1), dtype=np.int64)
        chance = rng.random((rows, length))
        for t in range(length):
            here = tokens[:, t]
            drawn = 1 + np.searchsorted(ladder, here + chance[:, t], side="right") - here * size
            trigger = (here >= 1) & (here <= triggers)
            tokens[:, t + 1] = np.where(trigger, tokens[:, t - 1], drawn)
        return tokens[:, :-1], tokens[:, 1:]

    def baselines(seen: np.ndarray, _: np.ndarray, inputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        trigger = (inputs >= 1) & (inputs <= triggers)
        own = np.where(trigger, 0.0, -np.log(np.maximum(after[inputs, targets - 1], 1e-12)))
        pairs = np.ones((size + 1, size + 1))  # Laplace's rule: a pair not seen is possible
        np.add.at(pairs, (seen[:, :-1], seen[:, 1:]), 1)
        alone = -np.log(pairs / pairs.sum(1, keepdims=True))[inputs, targets]
        return {"its own rule": float(own.mean()), "the last token alone": float(alone.mean())}

    return Task(
        make,
        {"vocab": size + 1, "length": length},
        metric="loss",
        lower_is_better=True,
        unit="nats a token",
        examples=examples,
        tests=tests,
        baselines=baselines,
    )
