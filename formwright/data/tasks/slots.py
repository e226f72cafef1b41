"""Rows of unequal length: a question, then empty slots at which the model says the answer.

Places hold 0 (nothing) in the slots and after them; targets are -100 outside the slots.
"""

from __future__ import annotations

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import at_least

Lengths = tuple[int, int]


def span(name: str, option: str, value: Lengths, least: int = 1) -> Lengths:
    """A (shortest, longest) option. Raises DataError for what is none."""
    if not (isinstance(value, tuple) and len(value) == 2):
        raise DataError(f"{name}: {option} is {value!r}, but must be two lengths, (shortest, longest)")
    at_least(name, **{f"the shortest of {option}": (value[0], least), f"the longest of {option}": (value[1], value[0])})
    return value


def lengths(rng: np.random.Generator, rows: int, bounds: Lengths, step: int = 1) -> np.ndarray:
    """(rows,) lengths, uniform over shortest..longest; with step=2 odd ones are raised by one."""
    drawn = rng.integers(bounds[0], bounds[1] + 1, size=rows)
    return drawn + drawn % step if step == 2 else drawn


def placed(
    question: np.ndarray, sizes: np.ndarray, answer: np.ndarray, counts: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """question (rows, Q) of which the first `sizes` places count, answer (rows, A) of which the first `counts` do ->
    inputs and targets (rows, width): the question, then its slots, whose targets are the answer."""
    rows = len(question)
    inputs = np.zeros((rows, width), dtype=np.int64)
    targets = np.full((rows, width), -100, dtype=np.int64)
    inside = np.arange(question.shape[1]) < sizes[:, None]
    inputs[:, : question.shape[1]] = np.where(inside, question, 0)
    row, place = np.nonzero(np.arange(answer.shape[1]) < counts[:, None])
    targets[row, sizes[row] + place] = answer[row, place]
    return inputs, targets
