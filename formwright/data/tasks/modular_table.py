"""A finite table of modular arithmetic, a share of it trained on: grokking (Power et al., "Grokking: Generalization
Beyond Overfitting on Small Algorithmic Datasets", arXiv 2201.02177, 2022).

A row is a, the operation, b, "="; at "=" the model says c = a o b modulo a prime p. All pairs (a, b) are shuffled once
(the order has a number, `shuffle`): the first `share` of them train, half the rest validates, the other half tests;
rows are drawn from their part uniformly. A model first knows the trained pairs by heart; long after, with enough weight
decay, the others become right as well.

operation  "+", "-", "*", "/" (b is not 0), "squares" (a^2 + b^2), "cubic" (a^3 + a b)
"""

from __future__ import annotations

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task

OPERATIONS = {
    "+": lambda a, b, p: a + b,
    "-": lambda a, b, p: a - b,
    "*": lambda a, b, p: a * b,
    "/": lambda a, b, p: a * inverses(p)[b],
    "squares": lambda a, b, p: a * a + b * b,
    "cubic": lambda a, b, p: a * a * a + a * b,
}


@task
def modular_table(
    *,
    prime: int = 97,
    operation: str = "+",
    share: float = 0.5,
    shuffle: int = 0,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """a o b, of a table whose other entries were trained on. inputs, targets (rows, 4), the last alone scored. Numbers
    are their own tokens; p is the operation, p + 1 is "="."""
    name = "modular_table"
    at_least(name, prime=(prime, 2), shuffle=(shuffle, 0), examples=(examples, 1), tests=(tests, 1))
    if any(prime % d == 0 for d in range(2, int(prime**0.5) + 1)):
        raise DataError(f"{name}: prime is {prime}, but must be a prime number")
    if operation not in OPERATIONS:
        raise DataError(f"{name}: operation is one of {', '.join(OPERATIONS)}, not {operation!r}")
    train, validation, test = parts(prime, operation, share, shuffle)

    def maker(pairs: np.ndarray):
        def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
            a, b = pairs[rng.integers(0, len(pairs), size=rows)].T
            inputs = np.stack((a, np.full(rows, prime), b, np.full(rows, prime + 1)), axis=1)
            targets = np.full((rows, 4), -100, dtype=np.int64)
            targets[:, 3] = OPERATIONS[operation](a, b, prime) % prime
            return inputs, targets

        return make

    known = {(a, b): c for (a, b), c in zip(train.tolist(), _results(operation, train, prime).tolist(), strict=True)}
    turned = [known.get((b, a)) == c for (a, b), c in zip(test.tolist(), _results(operation, test, prime), strict=True)]

    return Task(
        maker(train),
        {"vocab": prime + 2, "length": 4},
        make_validation=maker(validation),
        make_test=maker(test),
        harder="",
        chance=1 / prime,
        baselines=lambda *_: {"the trained pair turned round": float(np.mean(turned))},
        notes=[f"{len(train)} pairs are trained on, {len(validation)} validate, {len(test)} test."],
        examples=examples,
        tests=tests,
    )


def parts(prime: int, operation: str, share: float, shuffle: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs (number, 2) of training, validation and test. Raises DataError where one would be empty."""
    a, b = np.divmod(np.arange(prime * prime), prime)
    pairs = np.stack((a, b), axis=1)
    pairs = pairs[b > 0] if operation == "/" else pairs
    words = [prime, list(OPERATIONS).index(operation), shuffle]
    pairs = np.random.Generator(np.random.PCG64(np.random.SeedSequence(words))).permutation(pairs)
    trained = round(share * len(pairs)) if 0 < share < 1 else 0
    checked = trained + (len(pairs) - trained) // 2
    if not 0 < trained < checked:
        raise DataError(f"modular_table: share={share} leaves a part empty; give a share between 0 and 1, such as 0.5")
    return pairs[:trained], pairs[trained:checked], pairs[checked:]


def inverses(prime: int) -> np.ndarray:
    """(p,) 1/b modulo p; 0 for b = 0."""
    return np.array([0, *(pow(b, -1, prime) for b in range(1, prime))])


def _results(operation: str, pairs: np.ndarray, prime: int) -> np.ndarray:
    return OPERATIONS[operation](pairs[:, 0], pairs[:, 1], prime) % prime
