"""Masked recall, a pattern of noncausal self attention: restore hidden values from the other places where their keys
stand, before or behind.

    c=4  a=?  b=1  b=?  c=?  a=7   ->   a=7, b=1, c=4 at the places with ?

Each token is a key with its value, or a key whose value is hidden, so that one look at the right place is enough.
Masked-token restoration is BERT's task (arXiv 1810.04805, 2018) and one of those by which CAB judges noncausal self
attention (arXiv 2210.07661, 2022).
"""

from __future__ import annotations

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, draw_distinct, task


@task
def masked_recall(
    *,
    pairs: int = 8,
    times: int = 2,
    shown: int = 1,
    keys: int = 16,
    values: int = 8,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """Hidden values restored from both sides. `pairs` of the `keys` keys, each with one of `values` values, stand
    `times` times each in a row of pairs * times tokens, in random order; the value is shown at `shown` of these places
    and hidden at the others, where it is asked for. Token k is key k with its value hidden, keys + k * values + v is
    key k with value v; targets are those. Reading from the left alone finds the values that are shown before, and
    guesses the others."""
    at_least("masked_recall", pairs=(pairs, 1), times=(times, 2), shown=(shown, 1), keys=(keys, 1), values=(values, 2))
    at_least("masked_recall", examples=(examples, 1), tests=(tests, 1))
    if shown >= times:
        raise DataError(f"masked_recall: shown is {shown} of {times} times, which hides nothing; lower it")
    if pairs > keys:
        raise DataError(f"masked_recall: {pairs} pairs have keys of their own: set keys={pairs} or more")

    def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        key = draw_distinct(rng, rows, pairs, keys)
        value = rng.integers(0, values, size=(rows, pairs))
        order = np.argsort(rng.random((rows, pairs * times)), axis=1)  # entry e is time e // pairs of pair e % pairs
        pair, hidden = order % pairs, order // pairs >= shown
        keys_there = np.take_along_axis(key, pair, 1)
        whole = keys + keys_there * values + np.take_along_axis(value, pair, 1)
        return np.where(hidden, keys_there, whole), np.where(hidden, whole, -100)

    def from_the_left(_x: np.ndarray, _y: np.ndarray, inputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        hidden = inputs < keys
        key = np.where(hidden, inputs, (inputs - keys) // values)
        before = np.tril(np.ones((inputs.shape[1],) * 2, dtype=bool), -1)
        found = ((key[:, :, None] == key[:, None, :]) & ~hidden[:, None, :] & before).any(-1)
        return {"reading from the left alone": float(np.where(found, 1.0, 1 / values)[hidden].mean())}

    length = pairs * times
    return Task(
        make,
        {"vocab": keys * (values + 1), "length": length},
        embed=f"tokens(position=learned(length={length}))",
        head="masked_lm",
        chance=1 / values,
        baselines=from_the_left,
        examples=examples,
        tests=tests,
    )
