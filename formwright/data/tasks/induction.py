"""Induction heads (Olsson et al., "In-context Learning and Induction Heads", arXiv 2209.11895, 2022; as a task in Dao
et al., "Hungry Hungry Hippos", arXiv 2212.14052, 2022).

Uniform tokens from 0..V-2; the trigger V-1 stands once at a uniform place before, and again at the end: the model says
there which token followed it. With `length_tested` the test has rows of another length, as in Gu and Dao, "Mamba",
arXiv 2312.00752, 2023: 256 seen, 64 to 2^20 tested.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from formwright.data.tasks import Task, at_least, task


@task
def induction(
    *,
    length: int = 256,
    vocab: int = 16,
    length_tested: int | None = None,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """What followed a token before. inputs, targets (rows, length); -100 before the last place."""
    at_least("induction", length=(length, 3), vocab=(vocab, 3), examples=(examples, 1), tests=(tests, 1))
    if length_tested is not None:
        at_least("induction", length_tested=(length_tested, 3))
    longest = max(length, length_tested or 0)

    def make(rng: np.random.Generator, rows: int, width: int = length) -> tuple[np.ndarray, np.ndarray]:
        inputs = rng.integers(0, vocab - 1, size=(rows, width))
        row, place = np.arange(rows), rng.integers(0, width - 2, size=rows)
        targets = np.full((rows, width), -100, dtype=np.int64)
        targets[:, -1] = inputs[row, place + 1]
        inputs[row, place] = inputs[:, -1] = vocab - 1
        return inputs, targets

    return Task(
        make,
        {"vocab": vocab, "length": longest},
        examples=examples,
        tests=tests,
        make_test=partial(make, width=length_tested) if length_tested else None,
        chance=1 / (vocab - 1),
    )
