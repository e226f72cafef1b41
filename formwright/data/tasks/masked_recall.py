"""Masked recall, a pattern of noncausal self attention: restore hidden values from the other places where their keys
stand, before or behind.

    k3 v3  k1 __  k2 v2  k2 __  k3 __  k1 v1   ->   v1, v2, v3 at the places __

Masked-token restoration is BERT's task (arXiv 1810.04805, 2018) and one of those by which CAB judges noncausal self
attention (arXiv 2210.07661, 2022); pairs of keys and values are those of MQAR (arXiv 2312.04927, 2023).
"""

from __future__ import annotations

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, draw_distinct, task

MASK = 0


@task
def masked_recall(
    *, pairs: int = 8, times: int = 2, shown: int = 1, vocab: int = 64, examples: int = 100_000, tests: int = 3_000
) -> Task:
    """Each of `pairs` pairs of a key and a value stands `times` times in a row of 2 * pairs * times tokens, in random
    order; `shown` of its values are to be read, the others hidden by token 0, where the target is the value. Keys are
    distinct, from 1..vocab/2-1, values from vocab/2..vocab-1. Reading from the left alone finds the values that are
    shown before."""
    at_least("masked_recall", pairs=(pairs, 1), times=(times, 2), shown=(shown, 1), vocab=(vocab, 4))
    at_least("masked_recall", examples=(examples, 1), tests=(tests, 1))
    if shown >= times:
        raise DataError(f"masked_recall: shown is {shown} of {times} times, which hides nothing; lower it")
    keys = vocab // 2 - 1
    if pairs > keys:
        raise DataError(f"masked_recall: {pairs} pairs need vocab={2 * pairs + 2} or more, for keys of their own")

    def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        key = 1 + draw_distinct(rng, rows, pairs, keys)
        value = rng.integers(vocab // 2, vocab, size=(rows, pairs))
        entries = pairs * times
        order = np.argsort(rng.random((rows, entries)), axis=1)  # place -> entry; entry e is time e // pairs of a pair
        pair, hidden = order % pairs, order // pairs >= shown
        keys_there = np.take_along_axis(key, pair, 1)
        values_there = np.take_along_axis(value, pair, 1)
        inputs = np.empty((rows, 2 * entries), dtype=np.int64)
        targets = np.full((rows, 2 * entries), -100, dtype=np.int64)
        inputs[:, ::2] = keys_there
        inputs[:, 1::2] = np.where(hidden, MASK, values_there)
        targets[:, 1::2] = np.where(hidden, values_there, -100)
        return inputs, targets

    length = 2 * pairs * times
    return Task(
        make,
        {"vocab": vocab, "length": length},
        embed=f"tokens(position=learned(length={length}))",
        head="masked_lm",
        chance=1 / (vocab - vocab // 2),
        baselines=_from_the_left,
        examples=examples,
        tests=tests,
    )


def _from_the_left(_x: np.ndarray, _y: np.ndarray, inputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """What a reader that never looks behind a place finds: the values shown before it."""
    keys, values = inputs[:, ::2], inputs[:, 1::2]
    asked = targets[:, 1::2] >= 0
    same = (keys[:, :, None] == keys[:, None, :]) & (values != MASK)[:, None, :]
    before = np.tril(np.ones((keys.shape[1],) * 2, dtype=bool), -1)
    return {"reading from the left alone": float((same & before).any(-1)[asked].mean())}
