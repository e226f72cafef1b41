"""Dyck-(k, m): well-nested brackets of k types, never more than m open (Hewitt et al., "RNNs can generate bounded
hierarchical languages with optimal memory", arXiv 2010.07515, 2020).

Each token opens a bracket of a uniform type, or closes the last one open: with probability 1/2 where both may be, so
that a string is a walk between depth 0 and m. Opening brackets are 1..k, closing ones k+1..2k. Where the next token
closes, its type is wanted. The test has longer strings.
"""

from __future__ import annotations

import numpy as np

from formwright.data.tasks import Task, at_least, task


@task
def dyck(
    *,
    types: int = 8,
    depth: int = 10,
    length: int = 128,
    length_tested: int = 512,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """Which bracket is closed. inputs, targets (rows, length); -100 where the next token opens one."""
    at_least("dyck", types=(types, 1), depth=(depth, 1), length=(length, 2), length_tested=(length_tested, 2))
    at_least("dyck", examples=(examples, 1), tests=(tests, 1))

    def maker(width: int):
        def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
            row, open_now = np.arange(rows), np.zeros(rows, dtype=np.int64)
            stack = np.zeros((rows, depth), dtype=np.int64)
            tokens = np.zeros((rows, width + 1), dtype=np.int64)
            for t in range(width + 1):
                opens = (open_now == 0) | ((open_now < depth) & (rng.random(rows) < 0.5))
                kind = rng.integers(1, types + 1, size=rows)
                open_now -= ~opens
                stack[row[opens], open_now[opens]] = kind[opens]
                tokens[:, t] = np.where(opens, kind, types + stack[row, np.minimum(open_now, depth - 1)])
                open_now += opens
            after = tokens[:, 1:]
            return tokens[:, :-1], np.where(after > types, after, -100)

        return make

    facts = {"vocab": 2 * types + 1, "length": max(length, length_tested)}
    return Task(maker(length), facts, make_test=maker(length_tested), examples=examples, tests=tests, chance=1 / types)
