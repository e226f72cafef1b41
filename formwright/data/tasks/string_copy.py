"""Copying strings (Jelassi et al., "Repeat After Me: Transformers are Better than State Space Models at Copying", arXiv
2402.01032, 2024).

"$ s | s ." of uniform letters s; the second s is wanted, in training the end as well. Training rows are packed with
strings, `packed` tokens; the test has longer strings (strings.py). Tokens: the letters, then $, |, . and padding.
"""

from __future__ import annotations

import numpy as np

from formwright.data.tasks import Task, at_least, task
from formwright.data.tasks.slots import Lengths, lengths, span
from formwright.data.tasks.strings import Strings, joined, mark, piece, string_task


@task
def string_copy(
    *,
    letters: int = 26,
    lengths_seen: Lengths = (5, 20),
    lengths_tested: Lengths = (20, 100),
    packed: int = 220,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """A string again. inputs, targets (rows, packed - 1) in training, one string a row else."""
    name = "string_copy"
    seen, tested = span(name, "lengths_seen", lengths_seen), span(name, "lengths_tested", lengths_tested)
    at_least(name, letters=(letters, 2), examples=(examples, 1), tests=(tests, 1))

    def draw(rng: np.random.Generator, rows: int, bounds: Lengths, end_wanted: bool) -> Strings:
        sizes = lengths(rng, rows, bounds)
        string = rng.integers(0, letters, size=(rows, bounds[1]))
        start, bar, end = (mark(letters + i, rows, wanted=end_wanted and i == 2) for i in range(3))
        return joined(start, piece(string, sizes), bar, piece(string, sizes, wanted=True), end)

    return string_task(
        name,
        draw,
        2 * seen[0] + 3,
        lambda length: 2 * length + 3,
        seen,
        tested,
        packed,
        letters,
        examples=examples,
        tests=tests,
    )
