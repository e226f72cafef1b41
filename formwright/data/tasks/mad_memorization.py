"""Memorization of MAD (Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv 2403.17844, 2024).

Keys 0..K-1, K = (vocab - 1) // 2, have fixed values among the tokens K..vocab-2, each key another one, drawn by the
seed `mapping`: nothing in a row tells them, so they must be learnt. A row is key, mark (vocab - 1), key, mark ... of
uniform keys; the value is wanted at the mark.
"""

from __future__ import annotations

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task
from formwright.data.tasks.scoring import macro, per_class


@task
def mad_memorization(
    *, length: int = 32, vocab: int = 256, mapping: int = 0, examples: int = 256, tests: int = 1_280
) -> Task:
    """The value that a key has in every row: facts kept in the weights. inputs, targets (rows, length); -100 at
    keys."""
    name = "mad_memorization"
    at_least(name, length=(length, 2), vocab=(vocab, 3), mapping=(mapping, 0), examples=(examples, 1), tests=(tests, 1))
    if length % 2:
        raise DataError(f"{name}: a row is pairs of a key and a mark, so length is even, but it is {length}")
    keys = (vocab - 1) // 2
    drawn = np.random.Generator(np.random.PCG64(mapping)).random(vocab - 1 - keys)
    value_of = keys + np.argsort(drawn)[:keys]

    def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        inputs = np.full((rows, length), vocab - 1)
        inputs[:, ::2] = rng.integers(0, keys, size=(rows, length // 2))
        targets = np.full((rows, length), -100)
        targets[:, 1::2] = value_of[inputs[:, ::2]]
        return inputs, targets

    return Task(
        make,
        {"vocab": vocab, "length": length},
        metric="macro_accuracy",
        examples=examples,
        tests=tests,
        chance=1 / keys,
        score=per_class,
        derive=macro,
    )
