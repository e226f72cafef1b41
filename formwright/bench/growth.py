"""How costs grow with N, and where one becomes cheaper than another.

    exponent            the slope of log cost over log N by least squares, over the longer half of the lengths
    efficiency length   the N from which a cost stays below that of fused attention: where log(cost / attention's),
                        linear in log N between lengths measured, last falls through 0

CAB: Comprehensive Attention Benchmarking on Long Sequence Modeling, arXiv 2210.07661, 2022, compares so with vanilla
attention, in time and in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CLAIMED = {"0": 0.0, "1": 0.0, "N": 1.0, "N log N": 1.0, "N^2": 2.0}  # a card's word -> its exponent, logarithms aside


def exponent(lengths: Sequence[float], values: Sequence[float]) -> float | None:
    """The slope of log value over log length by least squares: 1 for what grows linearly. None of fewer than two
    lengths, or where a value isn't above 0."""
    if len(set(lengths)) < 2 or min(values) <= 0:
        return None
    x, y = [math.log(n) for n in lengths], [math.log(v) for v in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    over = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return over / sum((a - mean_x) ** 2 for a in x)


def growth(costs: Mapping[int, float]) -> float | None:
    """The exponent over the longer half of the lengths (three at least where there are), since what doesn't grow hides
    the rest at short ones."""
    lengths = sorted(costs)
    kept = lengths[-max(3, math.ceil(len(lengths) / 2)) :]
    return exponent(kept, [costs[n] for n in kept])


@dataclass(frozen=True)
class Crossing:
    """Where a cost gets below another's and stays there: at `length`; `always` from the first length measured on;
    `never` up to the last (`length` is then that one)."""

    length: float
    always: bool = False
    never: bool = False

    def __str__(self) -> str:
        if self.never:
            return f"never up to {self.length:.0f}"
        return f"from {self.length:.0f}" if self.always else f"{self.length:.0f}"


def crossing(ours: Mapping[int, float], other: Mapping[int, float]) -> Crossing | None:
    """Where `ours` (length -> cost) becomes cheaper than `other` for good, over the lengths that both have; None where
    they share none."""
    lengths = sorted(n for n in ours.keys() & other.keys() if ours[n] > 0 and other[n] > 0)
    if not lengths:
        return None
    ratio = [math.log(ours[n] / other[n]) for n in lengths]
    if ratio[-1] >= 0:
        return Crossing(lengths[-1], never=True)
    dearer = [i for i, value in enumerate(ratio) if value >= 0]
    if not dearer:
        return Crossing(lengths[0], always=True)
    i = dearer[-1]
    share = ratio[i] / (ratio[i] - ratio[i + 1])
    return Crossing(math.exp(math.log(lengths[i]) + share * math.log(lengths[i + 1] / lengths[i])))
