"""Looking up a number in a phone book (Jelassi et al., "Repeat After Me: Transformers are Better than State Space
Models at Copying", arXiv 2402.01032, 2024).

A book of lines "first-name surname : d d d d d d d d d d", of different people; an empty line; `shots` lines of the
book again; an empty line; and the name of another person in it, whose number is wanted. Numbers begin with 6 to 9,
other digits are uniform. The test has longer books. The score that ranks is string_accuracy: numbers without a mistake,
each digit said after the right ones. Tokens: padding, the digits, ":", the line's end, first names, surnames.
"""

from __future__ import annotations

import numpy as np

from formwright.data.tasks import Task, at_least, draw_distinct, task
from formwright.data.tasks.scoring import whole_rows
from formwright.data.tasks.slots import Lengths, lengths, span
from formwright.data.tasks.strings import joined, mark, next_tokens, piece

PADDING, ZERO, COLON, END, NAMES = 0, 1, 11, 12, 13
DIGITS = 10
LINE = 3 + DIGITS + 1


@task
def phonebook(
    *,
    lines_seen: Lengths = (4, 20),
    lines_tested: Lengths = (20, 40),
    shots: int = 2,
    names: int = 40,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """A person's number, looked up in a phone book. inputs, targets (rows, N); -100 but at the answer's digits. `names`
    is how many first names there are, and how many surnames."""
    name = "phonebook"
    at_least(name, shots=(shots, 0), examples=(examples, 1), tests=(tests, 1))
    seen = span(name, "lines_seen", lines_seen, least=shots + 1)
    tested = span(name, "lines_tested", lines_tested, least=shots + 1)
    at_least(name, names=(names, int(np.ceil(np.sqrt(max(seen[1], tested[1]))))))

    def width(bounds: Lengths) -> int:
        return LINE * (bounds[1] + shots) + 2 + 3 + DIGITS

    def maker(bounds: Lengths):
        def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
            sizes = lengths(rng, rows, bounds)
            who = draw_distinct(rng, rows, bounds[1], names * names)
            book = np.full((rows, bounds[1], LINE), END)
            book[..., 0], book[..., 1], book[..., 2] = NAMES + who // names, NAMES + names + who % names, COLON
            book[..., 3 : 3 + DIGITS] = ZERO + rng.integers(0, 10, size=(rows, bounds[1], DIGITS))
            book[..., 3] = ZERO + rng.integers(6, 10, size=(rows, bounds[1]))
            place = np.where(np.arange(bounds[1]) < sizes[:, None], rng.random((rows, bounds[1])), 2).argsort(axis=1)
            again = np.take_along_axis(book, place[:, : shots + 1, None], axis=1)
            strings = joined(
                piece(book.reshape(rows, -1), sizes * LINE),
                mark(END, rows),
                piece(again[:, :shots].reshape(rows, -1)),
                mark(END, rows),
                piece(again[:, -1, :3]),
                piece(again[:, -1, 3 : 3 + DIGITS], wanted=True),
            )
            return next_tokens(strings, PADDING, width(bounds))

        return make

    return Task(
        maker(seen),
        {"vocab": NAMES + 2 * names, "length": max(width(seen), width(tested)) - 1},
        metric="string_accuracy",
        examples=examples,
        tests=tests,
        make_test=maker(tested),
        ragged=True,
        chance=10.0 ** (1 - DIGITS) / 4,
        baselines=some_number,
        score=whole_rows,
    )


def some_number(
    inputs: np.ndarray, targets: np.ndarray, inputs_tested: np.ndarray, targets_tested: np.ndarray
) -> dict[str, float]:
    """The share of answers that are the number of the book's first line."""
    answers = targets_tested[targets_tested >= 0].reshape(len(targets_tested), DIGITS)
    return {"the first number of the book": float((inputs_tested[:, 3 : 3 + DIGITS] == answers).all(1).mean())}
