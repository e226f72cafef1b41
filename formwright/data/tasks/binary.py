"""Arithmetic of binary numbers in the Chomsky hierarchy's suite (arXiv 2207.02098, 2022; see chomsky.py):
context-sensitive. Bits are the tokens 1 and 2 (a one).

binary_addition, binary_multiplication   of two numbers, lowest bit first, a sign between them; the result lowest bit
                                         first without empty bits at its end, then an end mark
compute_sqrt                             of a number, highest bit first, the root rounded down, with half as many bits
                                         (rounded up), highest first

Numbers are uniform in 1..2^bits - 1; of a question of n tokens the first number takes 1..n-2 bits (uniform), the second
the n - 1 - that.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from formwright.data.tasks import Task, task
from formwright.data.tasks.chomsky import SEEN, TESTED, by_length
from formwright.data.tasks.context_free import backwards
from formwright.data.tasks.slots import Lengths

SIGN = END = 3
_LIMB = 30  # bits of a digit of long numbers


@task
def binary_addition(
    *, lengths_seen: Lengths = (3, 40), lengths_tested: Lengths = TESTED, examples: int = 100_000, tests: int = 3_000
) -> Task:
    """The sum of two binary numbers, then 3. inputs, targets (rows, 2 longest + 1)."""
    return _of_two("binary_addition", np.add, lengths_seen, lengths_tested, examples, tests)


@task
def binary_multiplication(
    *, lengths_seen: Lengths = (3, 40), lengths_tested: Lengths = TESTED, examples: int = 100_000, tests: int = 3_000
) -> Task:
    """The product of two binary numbers, then 3. inputs, targets (rows, 2 longest + 1)."""
    return _of_two("binary_multiplication", products, lengths_seen, lengths_tested, examples, tests)


@task
def compute_sqrt(
    *, lengths_seen: Lengths = SEEN, lengths_tested: Lengths = TESTED, examples: int = 100_000, tests: int = 3_000
) -> Task:
    """The square root of a binary number, rounded down. inputs, targets (rows, longest + (longest + 1) / 2)."""

    def draw(rng: np.random.Generator, sizes: np.ndarray, longest: int):
        bits = numbers(rng, sizes, longest + longest % 2)  # lowest first
        counts = (sizes + 1) // 2
        return backwards(bits, sizes)[:, :longest] + 1, backwards(roots(bits), counts) + 1, counts

    return by_length(
        *("compute_sqrt", draw, lengths_seen, lengths_tested),
        vocab=3,
        slots=lambda longest: (longest + 1) // 2,
        chance=0.5,
        examples=examples,
        tests=tests,
    )


def _of_two(
    name: str,
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray],
    seen: Lengths,
    tested: Lengths,
    examples: int,
    tests: int,
) -> Task:
    def draw(rng: np.random.Generator, sizes: np.ndarray, longest: int):
        rows, place = np.arange(len(sizes)), np.arange(longest)
        first = rng.integers(1, sizes - 1)
        second = sizes - 1 - first
        a, b = numbers(rng, first, longest), numbers(rng, second, longest)
        behind = np.take_along_axis(b, np.maximum(place - first[:, None] - 1, 0), axis=1)
        question = np.where(place < first[:, None], a, behind) + 1
        question[rows, first] = SIGN
        result = carried(combine(a, b))
        held = longest - result[:, ::-1].argmax(1)  # up to the highest one
        answer = np.concatenate((result, np.zeros((len(rows), 1), dtype=np.int64)), axis=1) + 1
        answer[rows, held] = END
        return question, answer, held + 1

    return by_length(
        *(name, draw, seen, tested),
        vocab=4,
        slots=lambda longest: longest + 1,
        chance=0.5,
        least=3,
        examples=examples,
        tests=tests,
    )


def numbers(rng: np.random.Generator, sizes: np.ndarray, width: int) -> np.ndarray:
    """(rows, width) bits, lowest first, of numbers uniform in 1..2^size - 1."""
    inside = np.arange(width) < sizes[:, None]
    bits = rng.integers(0, 2, size=inside.shape) * inside
    while len(zero := np.flatnonzero(~bits.any(1))):
        bits[zero] = rng.integers(0, 2, size=(len(zero), width)) * inside[zero]
    return bits


def products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(rows, W) digits, carries not done, of the products of numbers (rows, W) in bits; they must fit W."""
    total = np.zeros_like(a)
    for shift in range(a.shape[1]):
        total[:, shift:] += a[:, shift : shift + 1] * b[:, : a.shape[1] - shift]
    return total


def carried(digits: np.ndarray) -> np.ndarray:
    """(rows, W) digits of any size, lowest first -> bits of the same number, which must fit W."""
    bits, carry = np.zeros_like(digits), np.zeros(len(digits), dtype=np.int64)
    for place in range(digits.shape[1]):
        carry += digits[:, place]
        bits[:, place] = carry & 1
        carry >>= 1
    return bits


def roots(bits: np.ndarray) -> np.ndarray:
    """(rows, 2W) bits, lowest first -> (rows, W) bits of the square roots rounded down.

    Bit by bit, as on paper: two bits are brought down, and 4 root + 1 is taken from the rest where that goes."""
    rows, half = len(bits), bits.shape[1] // 2
    limbs = half // _LIMB + 1  # the rest stays below 4 root + 1, of half + 2 bits
    rest, root = (np.zeros((rows, limbs + 1), dtype=np.int64) for _ in range(2))
    found = np.zeros((rows, half), dtype=np.int64)
    for place in range(half - 1, -1, -1):
        rest = _shifted(rest, 2)
        rest[:, 0] += 2 * bits[:, 2 * place + 1] + bits[:, 2 * place]
        trial = _shifted(root, 2)
        trial[:, 0] += 1
        left, borrowed = _difference(rest, trial)
        rest = np.where(borrowed[:, None], rest, left)
        found[:, place] = ~borrowed
        root = _shifted(root, 1)
        root[:, 0] += ~borrowed
    return found


def _shifted(limbs: np.ndarray, bits: int) -> np.ndarray:
    """limbs 2^bits: what leaves a limb enters the next."""
    moved = limbs << bits
    out = moved & ((1 << _LIMB) - 1)
    out[:, 1:] += moved[:, :-1] >> _LIMB
    return out


def _difference(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a - b limb by limb, and where it falls below zero."""
    out, borrow = np.empty_like(a), np.zeros(len(a), dtype=np.int64)
    for place in range(a.shape[1]):
        limb = a[:, place] - b[:, place] - borrow
        borrow = (limb < 0).astype(np.int64)
        out[:, place] = limb + (borrow << _LIMB)
    return out, borrow.astype(bool)
