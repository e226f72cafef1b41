"""Where and how often a number stands in its row."""

from __future__ import annotations

import numpy as np


def first_seen(ids: np.ndarray) -> np.ndarray:
    """ids (rows, S) -> (rows, S), the first place in the row that holds the same number."""
    order, begins = _sorted(ids)
    start = np.maximum.accumulate(np.where(begins, np.arange(ids.shape[1]), 0), axis=1)
    out = np.empty_like(order)
    np.put_along_axis(out, order, np.take_along_axis(order, start, 1), axis=1)
    return out


def stands_once(ids: np.ndarray) -> np.ndarray:
    """ids (rows, S) -> (rows, S), whether the number stands nowhere else in its row."""
    order, begins = _sorted(ids)
    ends = np.concatenate([begins[:, 1:], np.ones((len(ids), 1), dtype=bool)], axis=1)
    out = np.empty(ids.shape, dtype=bool)
    np.put_along_axis(out, order, begins & ends, axis=1)
    return out


def _sorted(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's places in order of their numbers, and where in this order another number begins."""
    order = np.argsort(ids, axis=1, kind="stable")
    ranked = np.take_along_axis(ids, order, 1)
    change = ranked[:, 1:] != ranked[:, :-1]
    return order, np.concatenate([np.ones((len(ids), 1), dtype=bool), change], axis=1)
