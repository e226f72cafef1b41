"""Selective copying (Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752,
2023; Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures" (MAD), arXiv 2403.17844, 2024).

`tokens` content tokens from 0..V-3 stand among blanks (V-2), then the copy mark (V-1), then `tokens` blanks at which
the model says the content in order. places="before": each of the L - 2*tokens - 1 blanks of the first part is put
before a content token drawn uniformly, so the last one touches the mark (MAD). places="anywhere": the content stands at
uniformly drawn places of the first part (Mamba). With selective=False all blanks come after the content: plain copying,
which a time-invariant mixer can do.
"""

from __future__ import annotations

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task


@task
def copying(
    *,
    length: int = 256,
    tokens: int = 16,
    vocab: int = 16,
    selective: bool = True,
    places: str = "before",
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """The tokens that stood among blanks, in order. inputs, targets (rows, length); -100 before the last `tokens`
    places."""
    at_least(
        "copying", length=(length, 3), tokens=(tokens, 1), vocab=(vocab, 4), examples=(examples, 1), tests=(tests, 1)
    )
    if not isinstance(selective, bool):
        raise DataError(f"copying: selective is True or False, not {selective!r}")
    if places not in ("before", "anywhere"):
        raise DataError(f"copying: places is 'before' or 'anywhere', not {places!r}")
    if length < 2 * tokens + 1:
        raise DataError(f"copying: {tokens} tokens need a length of at least {2 * tokens + 1}, but length={length}")
    blanks, blank, mark = length - 2 * tokens - 1, vocab - 2, vocab - 1

    def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        content = rng.integers(0, vocab - 2, size=(rows, tokens))
        inputs = np.full((rows, length), blank, dtype=np.int64)
        place = np.broadcast_to(np.arange(tokens), (rows, tokens))
        if selective and places == "anywhere":
            place = np.sort(rng.random((rows, tokens + blanks)).argsort(axis=1)[:, :tokens], axis=1)
        elif selective:
            before = rng.integers(0, tokens, size=(rows, blanks)) + tokens * np.arange(rows)[:, None]
            number = np.bincount(before.ravel(), minlength=rows * tokens).reshape(rows, tokens)
            place = place + np.cumsum(number, axis=1)
        np.put_along_axis(inputs, place, content, axis=1)
        inputs[:, length - tokens - 1] = mark
        targets = np.full((rows, length), -100, dtype=np.int64)
        targets[:, length - tokens :] = content
        return inputs, targets

    facts = {"vocab": vocab, "length": length}
    return Task(make, facts, examples=examples, tests=tests, chance=1 / (vocab - 2))
