"""Context-sensitive languages of the Chomsky hierarchy's suite, of strings (arXiv 2207.02098, 2022; see chomsky.py); of
binary numbers they are in binary.py. A tape solves them.

duplicate_string   the string twice
missing_duplicate  a string twice, one letter hidden: which? (odd lengths end with an empty mark)
odds_first         the first, third, fifth ... token, then the second, fourth ... (the public code has the even ones
                   first; this is the paper's)
bucket_sort        the string in order
"""

from __future__ import annotations

import numpy as np

from formwright.data.tasks import Task, task
from formwright.data.tasks.chomsky import SEEN, TESTED, by_length, of_string, one
from formwright.data.tasks.slots import Lengths

HIDDEN, EMPTY = 3, 4


@task
def duplicate_string(
    *,
    symbols: int = 2,
    lengths_seen: Lengths = SEEN,
    lengths_tested: Lengths = TESTED,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """A string of tokens 1..symbols twice. inputs, targets (rows, 3 longest)."""

    def answer(string: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place = np.arange(2 * string.shape[1]) % sizes[:, None]
        return np.take_along_axis(string, place, axis=1), 2 * sizes

    lengths = lengths_seen, lengths_tested
    return of_string(
        "duplicate_string", symbols, answer, *lengths, examples=examples, tests=tests, slots=lambda longest: 2 * longest
    )


@task
def missing_duplicate(
    *, lengths_seen: Lengths = (2, 40), lengths_tested: Lengths = TESTED, examples: int = 100_000, tests: int = 3_000
) -> Task:
    """The letter (1, 2) that 3 hides in a string said twice. inputs, targets (rows, longest + 1)."""

    def draw(rng: np.random.Generator, sizes: np.ndarray, longest: int):
        rows, half = np.arange(len(sizes)), sizes // 2
        string = rng.integers(1, 3, size=(len(sizes), longest // 2))
        question = np.take_along_axis(string, np.arange(longest) % half[:, None], axis=1)
        place = rng.integers(0, 2 * half)
        answer = question[rows, place]
        question[rows, place] = HIDDEN
        odd = sizes % 2 == 1
        question[rows[odd], sizes[odd] - 1] = EMPTY
        return question, *one(answer)

    return by_length(
        *("missing_duplicate", draw, lengths_seen, lengths_tested),
        vocab=5,
        slots=lambda longest: 1,
        chance=0.5,
        least=2,
        examples=examples,
        tests=tests,
    )


@task
def odds_first(
    *,
    symbols: int = 2,
    lengths_seen: Lengths = SEEN,
    lengths_tested: Lengths = TESTED,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """The tokens (1..symbols) at odd places, then those at even ones. inputs, targets (rows, 2 longest)."""

    def answer(string: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        longest = string.shape[1]
        slot, odd = np.arange(longest), (sizes[:, None] + 1) // 2
        place = np.where(slot < odd, 2 * slot, 2 * (slot - odd) + 1)
        return np.take_along_axis(string, np.minimum(place, longest - 1), axis=1), sizes

    lengths = lengths_seen, lengths_tested
    return of_string("odds_first", symbols, answer, *lengths, examples=examples, tests=tests)


@task
def bucket_sort(
    *,
    symbols: int = 5,
    lengths_seen: Lengths = SEEN,
    lengths_tested: Lengths = TESTED,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """A string of tokens 1..symbols in increasing order. inputs, targets (rows, 2 longest)."""

    def answer(string: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside = np.arange(string.shape[1]) < sizes[:, None]
        return np.sort(np.where(inside, string, symbols + 1), axis=1), sizes

    lengths = lengths_seen, lengths_tested
    return of_string("bucket_sort", symbols, answer, *lengths, examples=examples, tests=tests)
