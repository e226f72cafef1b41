"""Rows made of pieces of unequal length, one after another: a question, marks, an answer that is wanted.

Tasks of strings are trained on rows packed with them, and scored on rows of one string: those of the test are longer.
The score that ranks is string_accuracy: answers without a mistake, each token said after the right ones before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from formwright.data.tasks import Task, at_least
from formwright.data.tasks.scoring import whole_rows
from formwright.data.tasks.slots import Lengths


@dataclass
class Strings:
    """tokens (M, W), of which the first `sizes` (M,) count; `wanted` (M, W) says which are to be predicted."""

    tokens: np.ndarray
    sizes: np.ndarray
    wanted: np.ndarray


def piece(tokens: np.ndarray, sizes: np.ndarray | None = None, wanted: bool = False) -> Strings:
    """tokens (M, W), the first `sizes` of each row (all without it), as strings that are wanted or not."""
    sizes = np.full(len(tokens), tokens.shape[1]) if sizes is None else sizes
    return Strings(tokens, sizes, np.full(tokens.shape, wanted))


def mark(token: int, rows: int, wanted: bool = False) -> Strings:
    """One and the same token in every row."""
    return piece(np.full((rows, 1), token), wanted=wanted)


def joined(*pieces: Strings) -> Strings:
    """Row by row, one piece after another without gaps."""
    begins = np.cumsum([piece.sizes for piece in pieces], axis=0)
    rows, width = len(pieces[0].tokens), int(begins[-1].max(initial=0))
    tokens, wanted = np.zeros((rows, width), dtype=np.int64), np.zeros((rows, width), dtype=bool)
    for part, end in zip(pieces, begins, strict=True):
        row, place = np.nonzero(np.arange(part.tokens.shape[1]) < part.sizes[:, None])
        since = end[row] - part.sizes[row] + place
        tokens[row, since], wanted[row, since] = part.tokens[row, place], part.wanted[row, place]
    return Strings(tokens, begins[-1], wanted)


def pack(strings: Strings, each: int, width: int) -> Strings:
    """`each` strings after another in one row of `width` tokens; nothing of a string that is cut off is wanted."""
    ends = np.cumsum(strings.sizes.reshape(-1, each), axis=1).ravel()
    begins, rows = ends - strings.sizes, len(ends) // each
    row, place = np.nonzero(np.arange(strings.tokens.shape[1]) < strings.sizes[:, None])
    row, place = (index[begins[row] + place < width] for index in (row, place))
    tokens, wanted = np.zeros((rows, width), dtype=np.int64), np.zeros((rows, width), dtype=bool)
    tokens[row // each, begins[row] + place] = strings.tokens[row, place]
    wanted[row // each, begins[row] + place] = strings.wanted[row, place] & (ends[row] <= width)
    return Strings(tokens, np.minimum(ends[each - 1 :: each], width), wanted)


def next_tokens(strings: Strings, padding: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """inputs and targets (M, width - 1): what is wanted, one token before it stands; rows are filled with padding."""
    tokens = np.full((len(strings.tokens), width), padding)
    wanted = np.zeros(tokens.shape, dtype=bool)
    inside = np.arange(strings.tokens.shape[1]) < strings.sizes[:, None]
    tokens[:, : inside.shape[1]] = np.where(inside, strings.tokens, padding)
    wanted[:, : inside.shape[1]] = strings.wanted & inside
    return tokens[:, :-1], np.where(wanted, tokens, -100)[:, 1:]


def string_task(
    name: str,
    draw: Callable[[np.random.Generator, int, Lengths, bool], Strings],
    least: int,
    most: Callable[[int], int],
    seen: Lengths,
    tested: Lengths,
    packed: int,
    letters: int,
    examples: int,
    tests: int,
) -> Task:
    """A task of the strings draw(rng, rows, lengths, end_wanted), each of at least `least` tokens, and at most `most`
    of its length: as many as `packed` tokens hold in a training row, one in others, where their end is not wanted.
    Tokens are `letters` letters, three marks and padding."""
    at_least(name, packed=(packed, most(seen[1])))
    each, padding = -(-packed // least), letters + 3

    def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        return next_tokens(pack(draw(rng, rows * each, seen, True), each, packed), padding, packed)

    def guessed(*block: np.ndarray) -> dict[str, float]:
        return {"guessing": float((float(letters) ** -(block[-1] >= 0).sum(1)).mean())}

    def alone(bounds: Lengths):
        def make_alone(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
            return next_tokens(draw(rng, rows, bounds, False), padding, most(bounds[1]))

        return make_alone

    return Task(
        make,
        {"vocab": padding + 1, "length": max(packed, most(tested[1])) - 1},
        metric="string_accuracy",
        make_validation=alone(seen),
        examples=examples,
        tests=tests,
        make_test=alone(tested),
        ragged=True,
        baselines=guessed,
        score=whole_rows,
    )
