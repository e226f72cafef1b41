"""Compression of MAD (Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv 2403.17844, 2024).

length - 1 uniform tokens of 0..V-2, then the mark V-1. All `length` tokens are to be said again from the vector at the
mark alone: the head `reconstruct`.
"""

from __future__ import annotations

import numpy as np

from formwright.data.tasks import Task, at_least, task
from formwright.data.tasks.scoring import macro, per_class


@task
def mad_compression(*, length: int = 32, vocab: int = 16, examples: int = 12_800, tests: int = 1_280) -> Task:
    """All tokens again from one vector. inputs, targets (rows, length), the same."""
    at_least("mad_compression", length=(length, 2), vocab=(vocab, 3), examples=(examples, 1), tests=(tests, 1))

    def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        inputs = np.full((rows, length), vocab - 1)
        inputs[:, :-1] = rng.integers(0, vocab - 1, size=(rows, length - 1))
        return inputs, inputs.copy()

    return Task(
        make,
        {"vocab": vocab, "length": length},
        head="reconstruct",
        metric="macro_accuracy",
        examples=examples,
        tests=tests,
        chance=2 / vocab,  # a guess gets one in V - 1 of each token, and the mark, which stands at the end always
        score=per_class,
        derive=macro,
    )
