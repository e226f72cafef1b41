"""Repeated copying: a source, then the source again and again.

    s_1 ... s_n  |  s_1 ... s_n  s_1 ... s_n  ...          `repeats` copies behind the mark, every next token asked for

In the first copy the source alone says what comes; in later ones the copies before say it as well, and a model that
reads everything may look away from its source: attention to the source fades with length, which "Decoder-Only or
Encoder-Decoder? Interpreting Language Model as a Regularized Encoder-Decoder" (arXiv 2304.04052, 2023) calls attention
degeneration. The task is ours.
"""

from __future__ import annotations

import numpy as np

from formwright.data.tasks import Task, at_least, task

MARK = 0


@task
def repeated_copying(
    *, size: int = 8, repeats: int = 4, letters: int = 16, examples: int = 100_000, tests: int = 3_000
) -> Task:
    """A source of `size` letters said `repeats` times. inputs, targets (rows, size * (repeats + 1)); -100 before the
    mark, which stands at place `size`. The mark is token 0."""
    at_least("repeated_copying", size=(size, 1), repeats=(repeats, 1), letters=(letters, 2))
    at_least("repeated_copying", examples=(examples, 1), tests=(tests, 1))

    def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        source = 1 + rng.integers(0, letters, size=(rows, size))
        mark, copies = np.full((rows, 1), MARK), np.tile(source, (1, repeats))
        inputs = np.concatenate([source, mark, copies[:, :-1]], axis=1)
        return inputs, np.concatenate([np.full((rows, size), -100), copies], axis=1)

    return Task(
        make,
        {"vocab": 1 + letters, "length": size * (repeats + 1)},
        examples=examples,
        tests=tests,
        chance=1 / letters,
    )
