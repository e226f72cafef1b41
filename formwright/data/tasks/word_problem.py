"""The word problem of a finite group: the running product of its elements (Merrill, Petty and Sabharwal, "The Illusion
of State in State-Space Models", arXiv 2404.08819, 2024).

Tokens are uniform elements of the group, numbered with the identity first; the target at each place is the product
g_1 g_2 ... g_t so far. Z60 is abelian, A4xZ5 solvable, A5 and S5 are not: models of fixed depth in the class TC0
(attention, diagonal state spaces) can't track the last two over any length unless TC0 = NC1. S3, the smallest group
whose order of factors matters, makes a small task of it. The test has longer sequences.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task

GROUPS = ("Z60", "A4xZ5", "A5", "S5", "S3")


@task
def word_problem(
    *, group: str = "A5", length: int = 32, length_tested: int = 128, examples: int = 100_000, tests: int = 3_000
) -> Task:
    """The product so far at every place, in a group. inputs, targets (rows, length)."""
    if group not in GROUPS:
        raise DataError(f"word_problem: group is one of {', '.join(GROUPS)}, not {group!r}")
    at_least("word_problem", length=(length, 1), length_tested=(length_tested, 1))
    at_least("word_problem", examples=(examples, 1), tests=(tests, 1))
    table = multiplication(group)

    def maker(width: int):
        def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
            inputs = rng.integers(0, len(table), size=(rows, width))
            targets = inputs.copy()
            for t in range(1, width):
                targets[:, t] = table[targets[:, t - 1], inputs[:, t]]
            return inputs, targets

        return make

    facts = {"vocab": len(table), "length": max(length, length_tested)}
    chance = 1 / len(table)
    return Task(maker(length), facts, make_test=maker(length_tested), examples=examples, tests=tests, chance=chance)


@lru_cache
def multiplication(group: str) -> np.ndarray:
    """(G, G) numbers of the products a b (for permutations: first a, then b), the identity being 0."""
    if group == "Z60":
        return (np.arange(60)[:, None] + np.arange(60)) % 60
    if group == "A4xZ5":
        a4 = _permutations(4, even=True)
        return (5 * a4[:, None, :, None] + ((np.arange(5)[:, None] + np.arange(5)) % 5)[None, :, None]).reshape(60, 60)
    return _permutations(3 if group == "S3" else 5, even=group == "A5")


def _permutations(points: int, even: bool) -> np.ndarray:
    chosen = [p for p in itertools.permutations(range(points)) if not even or _inversions(p) % 2 == 0]
    number = {p: i for i, p in enumerate(chosen)}
    return np.array([[number[tuple(b[i] for i in a)] for b in chosen] for a in chosen])


def _inversions(p: tuple[int, ...]) -> int:
    return sum(a > b for a, b in itertools.combinations(p, 2))
