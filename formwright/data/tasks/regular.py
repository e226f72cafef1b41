"""Regular languages of the Chomsky hierarchy's suite (arXiv 2207.02098, 2022; see chomsky.py): a finite automaton
solves them. The suite's other two are parity and modular_arithmetic.

even_pairs        in a string of two letters, is the number of neighbours that differ even? (Are the ends the same?)
cycle_navigation  where on a cycle do steps of -1, 0, +1 end that start at 0?
"""

from __future__ import annotations

import numpy as np

from formwright.data.tasks import Task, at_least, task
from formwright.data.tasks.chomsky import SEEN, TESTED, by_length, one
from formwright.data.tasks.slots import Lengths


@task
def even_pairs(
    *, lengths_seen: Lengths = SEEN, lengths_tested: Lengths = TESTED, examples: int = 100_000, tests: int = 3_000
) -> Task:
    """Whether a string of letters 1 and 2 has an even (1) or odd (2) number of unequal neighbours. inputs, targets
    (rows, longest + 1)."""

    def draw(rng: np.random.Generator, sizes: np.ndarray, longest: int):
        letters = rng.integers(0, 2, size=(len(sizes), longest))
        inside = np.arange(1, longest) < sizes[:, None]
        odd = ((letters[:, 1:] != letters[:, :-1]) & inside).sum(1) % 2
        return letters + 1, *one(odd + 1)

    return by_length(
        *("even_pairs", draw, lengths_seen, lengths_tested),
        vocab=3,
        slots=lambda longest: 1,
        chance=0.5,
        examples=examples,
        tests=tests,
    )


@task
def cycle_navigation(
    *,
    cycle: int = 5,
    lengths_seen: Lengths = SEEN,
    lengths_tested: Lengths = TESTED,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """Where a walk round a ring ends, as 1 + the place. Steps -1, 0, +1 are the tokens 1, 2, 3. inputs, targets (rows,
    longest + 1)."""
    at_least("cycle_navigation", cycle=(cycle, 2))

    def draw(rng: np.random.Generator, sizes: np.ndarray, longest: int):
        steps = rng.integers(-1, 2, size=(len(sizes), longest))
        reached = np.where(np.arange(longest) < sizes[:, None], steps, 0).sum(1) % cycle
        return steps + 2, *one(reached + 1)

    return by_length(
        *("cycle_navigation", draw, lengths_seen, lengths_tested),
        vocab=max(4, cycle + 1),
        slots=lambda longest: 1,
        chance=1 / cycle,
        examples=examples,
        tests=tests,
    )
