"""Modular arithmetic with brackets, and equations in it (Delétang et al., "Neural Networks and the Chomsky Hierarchy",
arXiv 2207.02098, 2022; see chomsky.py): deterministic context-free.

An expression of n tokens: a digit, -d, (d), (-d) for n = 1..4, else (A+B), (A-B) or (AxB), A of 1..n-4 tokens
(uniform), B of the rest; sums and differences alone in equations. Tokens: 0 is the slot, digit d is d + 1, then +, -,
x, "(", ")", the unknown, "=". In an equation, the digit that stands at or after a uniform place (from the front again
behind the last) is hidden by the unknown and asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task
from formwright.data.tasks.chomsky import SEEN, TESTED, by_length, one
from formwright.data.tasks.slots import Lengths

PLUS, MINUS, TIMES, OPEN, CLOSE, UNKNOWN, EQUALS = range(1, 8)  # added to the modulus


@task
def modular_arithmetic_brackets(
    *,
    modulus: int = 5,
    products: bool = True,
    lengths_seen: Lengths = SEEN,
    lengths_tested: Lengths = TESTED,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """1 + the value of an expression with brackets, modulo m. inputs, targets (rows, longest + 1)."""
    name = "modular_arithmetic_brackets"
    at_least(name, modulus=(modulus, 2))
    if not isinstance(products, bool):
        raise DataError(f"{name}: products is True or False, not {products!r}")

    def draw(rng: np.random.Generator, sizes: np.ndarray, longest: int):
        text, value = expressions(rng, sizes, longest, modulus, products)
        return text, *one(value + 1)

    return by_length(
        *(name, draw, lengths_seen, lengths_tested),
        vocab=modulus + CLOSE + 1,
        slots=lambda longest: 1,
        chance=1 / modulus,
        examples=examples,
        tests=tests,
    )


@task
def solve_equation(
    *,
    modulus: int = 5,
    lengths_seen: Lengths = (3, 40),
    lengths_tested: Lengths = TESTED,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """1 + the hidden digit of an expression, its value given behind "=". inputs, targets (rows, longest + 1)."""
    at_least("solve_equation", modulus=(modulus, 2))

    def draw(rng: np.random.Generator, sizes: np.ndarray, longest: int):
        rows, left = np.arange(len(sizes)), sizes - 2
        text, value = expressions(rng, left, longest, modulus, False)
        digit = (text > 0) & (text <= modulus)
        after = digit & (np.arange(longest) >= rng.integers(0, left)[:, None])
        place = np.where(after.any(1), after.argmax(1), digit.argmax(1))
        hidden = text[rows, place].copy()
        text[rows, place] = modulus + UNKNOWN
        text[rows, left], text[rows, left + 1] = modulus + EQUALS, value + 1
        return text, *one(hidden)

    return by_length(
        *("solve_equation", draw, lengths_seen, lengths_tested),
        vocab=modulus + EQUALS + 1,
        slots=lambda longest: 1,
        chance=1 / modulus,
        least=3,
        examples=examples,
        tests=tests,
    )


@dataclass
class Level:
    """The nodes of one depth, of all rows: parents first, each pair of arguments together in the level below."""

    row: np.ndarray
    start: np.ndarray
    size: np.ndarray
    sign: np.ndarray
    digit: np.ndarray


def expressions(
    rng: np.random.Generator, sizes: np.ndarray, width: int, modulus: int, products: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Expressions of `sizes` tokens -> tokens (rows, width), values (rows,)."""
    text = np.zeros((len(sizes), width), dtype=np.int64)
    row, start, size = np.arange(len(sizes)), np.zeros(len(sizes), dtype=np.int64), np.asarray(sizes)
    levels = []
    while len(row):
        digit = rng.integers(0, modulus, size=len(row))
        sign = PLUS + rng.integers(0, 3 if products else 2, size=len(row))
        first = rng.integers(1, np.maximum(size - 3, 2))
        leaf, bracketed, negative = size < 5, size > 2, np.isin(size, (2, 4))
        text[row[bracketed], start[bracketed]] = modulus + OPEN
        text[row[bracketed], (start + size - 1)[bracketed]] = modulus + CLOSE
        text[row[negative], (start + bracketed)[negative]] = modulus + MINUS
        text[row[leaf], (start + bracketed + negative)[leaf]] = digit[leaf] + 1
        text[row[~leaf], (start + 1 + first)[~leaf]] = modulus + sign[~leaf]
        levels.append(Level(row, start, size, sign, np.where(negative, -digit, digit) % modulus))
        row, start, size, first = (np.repeat(a[~leaf], 2) for a in (row, start, size, first))
        second = np.arange(len(row)) % 2 == 1
        start = np.where(second, start + 2 + first, start + 1)
        size = np.where(second, size - 3 - first, first)
    value = levels[-1].digit
    for level in reversed(levels[:-1]):
        a, b = value[0::2], value[1::2]
        node = level.size >= 5
        value = level.digit.copy()
        value[node] = np.choose(level.sign[node] - PLUS, (a + b, a - b, a * b)) % modulus
    return text, value
