"""Masks of token groups: a group whose tokens don't attend to one another.

allows(i, j) = not (i in G and j in G) or i = j,      G = start ... stop-1
"""

from __future__ import annotations

from dataclasses import dataclass

from formwright.ops.masks import Mask, Ranges, complement


@dataclass(frozen=True)
class Isolated(Mask):
    """No attention among the tokens at start..stop-1, but of each to itself; they see all others, and all others see
    them. Visual tokens in SAISA's NAAViT, arXiv 2502.02458, 2025."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"Isolated: a group is 0 <= start <= stop, but they are {self.start} and {self.stop}")

    def allows(self, b, i, j):
        return ~(self._within(i) & self._within(j)) | (i == j)

    def _within(self, place):
        return (place >= self.start) & (place < self.stop)

    def touches(self, start, stop, m):
        if start < self.start or stop > self.stop:
            return [(0, m)] if m else []  # a query outside the group sees all of it
        group = min(self.start, m), min(self.stop, m)
        own = [(a, b) for a, b in [(max(start, 0), min(stop, m))] if a < b]
        return _joined([*complement([group], m), *own])

    def covers(self, start, stop, m):
        if stop <= self.start or start >= self.stop:
            return [(0, m)] if m else []
        return complement([(min(self.start, m), min(self.stop, m))], m)

    def __str__(self) -> str:
        return f"Isolated({self.start}, {self.stop})"


def _joined(ranges: Ranges) -> Ranges:
    """Disjoint ranges in order, neighbours joined."""
    joined: Ranges = []
    for a, b in sorted(ranges):
        if joined and a == joined[-1][1]:
            joined[-1] = joined[-1][0], b
        else:
            joined.append((a, b))
    return joined
