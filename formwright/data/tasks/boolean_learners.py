"""Learners of Boolean functions from examples, without a model.

A learner takes x (rows, points, dim) of -1 and 1, y (rows, points) of 0 and 1, and gives (rows, points) of 0 and 1:
what it says of each x from the examples before it alone.

    Find-S                the conjunction of all literals that held in every example with y = 1: 1 where all hold.
                          Disjunctions are the conjunctions of the negated literals, negated.
    Gaussian elimination  over GF(2): x as a sum of examples before gives y as the sum of theirs; 0 where x is none
    elimination           of all parities of so many variables those that fit every example before; their majority
    averaging             1 where sum_j (2 y_j - 1) <x_j, x> > 0
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np

from formwright.data.tasks import in_context

Learner = Callable[[np.ndarray, np.ndarray], np.ndarray]
CANDIDATES = 500  # parities that are tried one and all


def learners(family: str, dim: int, relevant: int) -> dict[str, Learner]:
    """Those that suit a family, by name; the nearest neighbour always."""
    found: dict[str, Learner] = {"the nearest neighbour": nearest_neighbour}
    if family == "conjunctions":
        found["Find-S"] = find_s
    elif family in ("disjunctions", "sparse_disjunctions"):
        found["Find-S"] = lambda x, y: 1 - find_s(x, 1 - y)
    elif family in ("parities", "sparse_parities"):
        found["Gaussian elimination"] = gaussian_elimination
    else:
        found["averaging"] = averaging
    if family == "sparse_parities" and math.comb(dim, relevant) <= CANDIDATES:
        found["elimination"] = partial(elimination, relevant=relevant)
    return found


def nearest_neighbour(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (in_context.nearest_neighbour(x, 2.0 * y - 1) > 0).astype(np.int64)


def averaging(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (in_context.averaging(x, 2.0 * y - 1) > 0).astype(np.int64)


def find_s(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of x alone, then of its negation: a literal is out from the first example with y = 1 on in which it failed."""
    fails = []
    for literal in (x > 0, x < 0):
        out = np.logical_or.accumulate(~literal & (y == 1)[..., None], axis=1)
        out = np.concatenate([np.zeros_like(out[:, :1]), out[:, :-1]], axis=1)
        fails.append((~literal & ~out).any(-1))
    return (~(fails[0] | fails[1])).astype(np.int64)


def gaussian_elimination(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    rows, points, dim = x.shape
    bits = np.concatenate([x > 0, (y == 1)[..., None]], axis=2)
    # basis[r, p] begins with a one at place p; the place behind the variables holds y
    basis, there = np.zeros((rows, dim, dim + 1), dtype=bool), np.zeros((rows, dim), dtype=bool)
    out, row = np.zeros((rows, points), dtype=np.int64), np.arange(rows)
    for t in range(points):
        rest = bits[:, t].copy()
        for p in range(dim):
            rest ^= basis[:, p] & (there[:, p] & rest[:, p])[:, None]
        left = rest[:, :dim].any(1)
        out[:, t] = np.where(left, 0, bits[:, t, dim] ^ rest[:, dim])
        new, place = row[left], rest[left, :dim].argmax(1)
        basis[new, place], there[new, place] = rest[left], True
    return out


def elimination(x: np.ndarray, y: np.ndarray, *, relevant: int) -> np.ndarray:
    rows, points, dim = x.shape
    chosen = np.array(list(itertools.combinations(range(dim), relevant)))
    fits, out = np.ones((rows, len(chosen)), dtype=bool), np.zeros((rows, points), dtype=np.int64)
    for t in range(points):
        says = (x[:, t] > 0)[:, chosen].sum(-1) % 2 == 1
        out[:, t] = 2 * (fits & says).sum(1) > fits.sum(1)
        fits &= says == (y[:, t] == 1)[:, None]
    return out
