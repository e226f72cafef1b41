"""String to string, a pattern of causal cross attention: read one string, write another, letter by letter.

    reverse         a b c d     ->  d c b a
    sort            c a d a     ->  a a c d
    transliterate   two neighbours whose numbers' sum 3 divides become one letter of a second alphabet, read from the
                    left; any other letter becomes one of the first

CAB judges causal cross attention by speech from text and by summaries (arXiv 2210.07661, 2022). Teacher forcing: the
target's inputs are the answer, moved on by one.
"""

from __future__ import annotations

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task
from formwright.data.tasks.scoring import whole_rows

PAD, BEGIN, END, FIRST = 0, 1, 2, 3
OPERATIONS = ("reverse", "sort", "transliterate")


@task
def string_to_string(
    *,
    operation: str = "transliterate",
    letters: int = 12,
    lengths: tuple[int, int] = (8, 16),
    lengths_tested: tuple[int, int] | None = None,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """One string written from another. Sources of `letters` letters, their lengths uniform in `lengths`, with an end
    mark; targets begin and end with a mark. The score that ranks is string_accuracy: the share of strings without a
    mistake. `lengths_tested` are those of the test part, where they are to differ."""
    at_least("string_to_string", letters=(letters, 2), examples=(examples, 1), tests=(tests, 1))
    if operation not in OPERATIONS:
        raise DataError(f"string_to_string: operation is one of {', '.join(OPERATIONS)}, not {operation!r}")
    spans = {"lengths": lengths, "lengths_tested": lengths_tested or lengths}
    for name, span in spans.items():
        whole = isinstance(span, (tuple, list)) and len(span) == 2 and all(type(n) is int for n in span)
        if not whole or not 1 <= span[0] <= span[1]:
            raise DataError(f"string_to_string: {name} is {span!r}, but must be two lengths such as (8, 16)")
    longest = max(span[1] for span in spans.values())

    def maker(span: tuple[int, int]):
        def make(rng: np.random.Generator, rows: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
            length = rng.integers(span[0], span[1] + 1, size=rows)
            string = rng.integers(0, letters, size=(rows, span[1]))
            inside = np.arange(span[1]) < length[:, None]
            answer, size = _answer(operation, np.where(inside, string, -1), length, letters)
            source = _ended(string, length)
            targets = _ended(answer, size)
            inputs = np.concatenate([np.full((rows, 1), BEGIN), targets[:, :-1]], 1)
            inputs[inputs == END] = PAD
            return (source, inputs), np.where(targets == PAD, -100, targets)

        return make

    return Task(
        maker(lengths),
        {"vocab": FIRST + 2 * letters, "length": longest + 1, "source_length": longest + 1},
        embed=f"tokens(position=learned(length={longest + 1}))",
        metric="string_accuracy",
        make_test=maker(lengths_tested) if lengths_tested else None,
        padding=PAD,
        score=whole_rows,
        baselines=_as_it_is,
        examples=examples,
        tests=tests,
        notes=["Scores are teacher-forced: each letter is asked for with the true ones before it given."],
    )


def _as_it_is(_x: tuple, _y: np.ndarray, inputs: tuple, targets: np.ndarray) -> dict[str, float]:
    """What giving the source back scores."""
    source = np.where(inputs[0] == PAD, -100, inputs[0])
    return {"the source as it is": float((source == targets).all(1).mean())}


def _ended(letters: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Letters (rows, n) from 0 -> tokens (rows, n + 1): each row's first `length`, the end mark, padding."""
    rows, n = letters.shape
    place = np.arange(n + 1)
    tokens = np.concatenate([FIRST + letters, np.full((rows, 1), PAD)], 1)
    return np.where(place < length[:, None], tokens, np.where(place == length[:, None], END, PAD))


def _answer(operation: str, string: np.ndarray, length: np.ndarray, letters: int) -> tuple[np.ndarray, np.ndarray]:
    """Strings (rows, n), -1 behind their ends -> answers (rows, n) and their lengths."""
    rows, n = string.shape
    if operation == "reverse":
        return np.take_along_axis(string, np.maximum(length[:, None] - 1 - np.arange(n), 0), 1), length
    if operation == "sort":
        return np.sort(np.where(string < 0, letters, string), axis=1), length
    following = np.concatenate([string[:, 1:], np.full((rows, 1), -1)], 1)
    joins = (string >= 0) & (following >= 0) & ((string + following) % 3 == 0)
    begins = np.zeros_like(joins)  # a pair begins here: not where one began a place before
    for t in range(n):
        begins[:, t] = joins[:, t] & ~(begins[:, t - 1] if t else False)
    inside = np.concatenate([np.zeros((rows, 1), dtype=bool), begins[:, :-1]], 1)  # the second letter of a pair
    written = np.where(begins, letters + (5 * string + following) % letters, (7 * string + 3) % letters)
    keep = (string >= 0) & ~inside
    order = np.argsort(~keep, axis=1, kind="stable")
    return np.take_along_axis(written, order, 1), keep.sum(1)
