"""Modular arithmetic without brackets (Delétang et al., "Neural Networks and the Chomsky Hierarchy", arXiv 2207.02098,
2022; lengths as in "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues", arXiv 2411.12537, 2024).

Digits 0..m-1 and the signs +, -, x in turn, then "="; the value modulo m is wanted in the slot after it. Products are
taken first. Tokens: 0 is the slot, digit d is d + 1, then +, -, x and "=". Lengths count digits and signs, and are odd.
"""

from __future__ import annotations

import numpy as np

from formwright.data.tasks import Task, at_least, task
from formwright.data.tasks.slots import Lengths, placed, span

PLUS, MINUS, TIMES = range(3)


@task
def modular_arithmetic(
    *,
    modulus: int = 5,
    lengths_seen: Lengths = (3, 40),
    lengths_tested: Lengths = (40, 256),
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """The value of an expression modulo m. inputs, targets (rows, longest + 2)."""
    name = "modular_arithmetic"
    seen, tested = span(name, "lengths_seen", lengths_seen), span(name, "lengths_tested", lengths_tested)
    at_least(name, modulus=(modulus, 2), examples=(examples, 1), tests=(tests, 1))
    equals = modulus + 4

    def maker(bounds: Lengths):
        most = (bounds[1] + 1) // 2  # digits

        def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
            digits = rng.integers(0, modulus, size=(rows, most))
            signs = rng.integers(0, 3, size=(rows, most - 1)) if most > 1 else np.zeros((rows, 0), dtype=np.int64)
            # as many digits as odd lengths between the bounds hold
            count = rng.integers((bounds[0] + 2) // 2, most + 1, size=rows)
            question = np.zeros((rows, 2 * most), dtype=np.int64)
            question[:, 0 : 2 * most : 2] = digits + 1
            question[:, 1 : 2 * most - 1 : 2] = signs + modulus + 1
            sizes = 2 * count - 1
            question[np.arange(rows), sizes] = equals
            value = values(digits, signs, count, modulus)
            return placed(question, sizes + 1, value[:, None] + 1, np.ones(rows, dtype=np.int64), bounds[1] + 2)

        return make

    facts = {"vocab": modulus + 5, "length": max(seen[1], tested[1]) + 2}
    return Task(maker(seen), facts, make_test=maker(tested), examples=examples, tests=tests, chance=1 / modulus)


def values(digits: np.ndarray, signs: np.ndarray, count: np.ndarray, modulus: int) -> np.ndarray:
    """(rows,) values of the first `count` digits with the signs between them, products first."""
    total, product = np.zeros(len(digits), dtype=np.int64), digits[:, 0].copy()
    for j in range(1, digits.shape[1]):
        inside, sign = j < count, signs[:, j - 1]
        times, minus = sign == TIMES, sign == MINUS
        ended = np.where(times, total, (total + product) % modulus)
        grown = np.where(times, product * digits[:, j], np.where(minus, -digits[:, j], digits[:, j])) % modulus
        total, product = np.where(inside, ended, total), np.where(inside, grown, product)
    return (total + product) % modulus
