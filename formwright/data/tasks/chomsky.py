"""What the tasks of the Chomsky hierarchy share (Delétang et al., "Neural Networks and the Chomsky Hierarchy", arXiv
2207.02098, 2022): regular.py, context_free.py, context_sensitive.py, and parity.py and modular_arithmetic.py.

A question of `lengths_seen` tokens in training and validation, of `lengths_tested` in the test (uniform both), then
slots in which the answer is wanted all at once: slots hold 0, whatever was answered in those before. The score is the
accuracy over all slots; string_accuracy counts rows whose slots are all right.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from formwright.data.tasks import Task, at_least
from formwright.data.tasks.scoring import whole_rows
from formwright.data.tasks.slots import Lengths, lengths, placed, span

LEVELS = {
    "regular": ("even_pairs", "modular_arithmetic", "parity", "cycle_navigation"),
    "context-free": ("stack_manipulation", "reverse_string", "modular_arithmetic_brackets", "solve_equation"),
    "context-sensitive": (
        *("duplicate_string", "missing_duplicate", "odds_first", "binary_addition", "binary_multiplication"),
        *("compute_sqrt", "bucket_sort"),
    ),
}
SEEN, TESTED = (1, 40), (41, 100)

Draw = Callable[[np.random.Generator, np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray]]


def by_length(
    name: str,
    draw: Draw,
    seen: Lengths,
    tested: Lengths,
    *,
    vocab: int,
    slots: Callable[[int], int],
    chance: float,
    examples: int,
    tests: int,
    least: int = 1,
) -> Task:
    """A task from draw(generator, lengths (rows,), longest length) -> questions (rows, longest), answers (rows, A), and
    how many slots (rows,) each answer takes, never more than slots(longest). Raises
    DataError for lengths below `least`."""
    seen, tested = span(name, "lengths_seen", seen, least), span(name, "lengths_tested", tested, least)
    at_least(name, examples=(examples, 1), tests=(tests, 1))

    def maker(bounds: Lengths):
        longest = bounds[1]

        def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
            sizes = lengths(rng, rows, bounds)
            question, answer, counts = draw(rng, sizes, longest)
            return placed(question, sizes, answer, counts, longest + slots(longest))

        return make

    width = max(longest + slots(longest) for longest in (seen[1], tested[1]))
    return Task(
        maker(seen),
        {"vocab": vocab, "length": width},
        make_test=maker(tested),
        ragged=True,
        chance=chance,
        score=whole_rows,
        examples=examples,
        tests=tests,
    )


def of_string(
    name: str,
    symbols: int,
    answer: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    seen: Lengths,
    tested: Lengths,
    *,
    examples: int,
    tests: int,
    slots: Callable[[int], int] = lambda longest: longest,
) -> Task:
    """A task about strings of tokens 1..symbols: answer(strings (rows, longest), lengths (rows,)) -> answers, and how
    many slots each takes, as in by_length. Raises DataError for fewer than two symbols."""
    at_least(name, symbols=(symbols, 2))

    def draw(rng: np.random.Generator, sizes: np.ndarray, longest: int):
        string = rng.integers(1, symbols + 1, size=(len(sizes), longest))
        return string, *answer(string, sizes)

    about = {"vocab": symbols + 1, "chance": 1 / symbols, "examples": examples, "tests": tests}
    return by_length(name, draw, seen, tested, slots=slots, **about)


def one(answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answers (rows,) of a single slot -> answers (rows, 1) and numbers of slots."""
    return answer[:, None], np.ones(len(answer), dtype=np.int64)
