"""Deterministic context-free languages of the Chomsky hierarchy's suite (arXiv 2207.02098, 2022; see chomsky.py): a
stack solves them. Arithmetic with brackets is in brackets.py.

reverse_string      the string backwards
stack_manipulation  letters of a stack from its bottom, then POP and PUSH: the last stack from its top, then an end mark
"""

from __future__ import annotations

import numpy as np

from formwright.data.tasks import Task, task
from formwright.data.tasks.chomsky import SEEN, TESTED, by_length, of_string
from formwright.data.tasks.slots import Lengths

POP, PUSH, END = 3, 4, 3  # PUSH + a letter; the end mark stands in answers alone


def backwards(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """values (rows, W), of which the first `sizes` count -> those in reverse order, then anything."""
    place = sizes[:, None] - 1 - np.arange(values.shape[1])
    return np.take_along_axis(values, np.maximum(place, 0), axis=1)


@task
def reverse_string(
    *,
    symbols: int = 2,
    lengths_seen: Lengths = SEEN,
    lengths_tested: Lengths = TESTED,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """A string of tokens 1..symbols backwards. inputs, targets (rows, 2 longest)."""

    def answer(string: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return backwards(string, sizes), sizes

    lengths = lengths_seen, lengths_tested
    return of_string("reverse_string", symbols, answer, *lengths, examples=examples, tests=tests)


@task
def stack_manipulation(
    *, lengths_seen: Lengths = SEEN, lengths_tested: Lengths = TESTED, examples: int = 100_000, tests: int = 3_000
) -> Task:
    """The stack left after pushes and pops, from its top, then 3. Letters are 1, 2; then 3 pops and 4, 5 push a letter;
    popping an empty stack does nothing. Of a question of n > 1 tokens, 1..n-1 (uniform) are letters. inputs, targets
    (rows, 2 longest + 1)."""

    def draw(rng: np.random.Generator, sizes: np.ndarray, longest: int):
        rows = np.arange(len(sizes))
        letters = rng.integers(1, np.maximum(sizes, 2))
        question = rng.integers(1, 3, size=(len(sizes), longest))
        actions = rng.integers(POP, PUSH + 2, size=(len(sizes), longest))
        question = np.where(np.arange(longest) < letters[:, None], question, actions)
        stack, held = np.zeros((len(sizes), longest + 1), dtype=np.int64), np.zeros(len(sizes), dtype=np.int64)
        for t in range(longest):
            token, inside = question[:, t], t < sizes
            pushed = inside & (token != POP)
            stack[rows[pushed], held[pushed]] = np.where(token >= PUSH, token - PUSH + 1, token)[pushed]
            held += pushed
            held -= inside & (token == POP) & (held > 0)
        answer = backwards(stack, held)
        answer[rows, held] = END
        return question, answer, held + 1

    return by_length(
        *("stack_manipulation", draw, lengths_seen, lengths_tested),
        vocab=6,
        slots=lambda longest: longest + 1,
        chance=0.5,
        examples=examples,
        tests=tests,
    )
