"""Masks as objects: which keys each query may attend to. True means may attend.

    Causal() & Window(256) | Prefix(8)

A mask speaks of positions: with n queries and m keys, key j stands at j and query i at m - n + i (aligned at the end,
so that new queries at the end of a cache see all of it). `materialize` is the oracle. `touches` and `covers` are closed
forms that block-wise attention lives on: for a block of queries, the ranges of keys outside of which nothing is
allowed, and ranges inside of which everything is. `mask_mod` is what FlexAttention takes, for n = m.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Ranges = list[tuple[int, int]]


class Mask:
    """Base of all masks; subclasses write `allows`, and `touches` and `covers` where they know them."""

    def allows(self, b: Tensor | int, i: Tensor, j: Tensor) -> Tensor:
        """Whether query position i may attend to key position j in row b, element by element."""
        raise NotImplementedError

    @property
    def mask_mod(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The mask as FlexAttention takes it: a function of row, head (not looked at), query and key."""
        return lambda b, h, i, j: self.allows(b, i, j)

    def touches(self, start: int, stop: int, m: int) -> Ranges:
        """Sorted, disjoint ranges of the m keys outside of which queries at start..stop-1 may attend to nothing."""
        return [(0, m)]

    def covers(self, start: int, stop: int, m: int) -> Ranges:
        """Sorted, disjoint ranges of the m keys all of which every query at start..stop-1 may attend to."""
        return []

    relative = False  # whether it depends on i - j alone

    @property
    def batched(self) -> bool:
        """Whether rows of a batch differ."""
        return False

    def materialize(self, n: int, m: int | None = None, device: torch.device | None = None) -> Tensor:
        """(n, m) booleans, (B, n, m) where rows of the batch differ; m = n without it."""
        m = n if m is None else m
        return self.block(torch.arange(m - n, m, device=device), torch.arange(m, device=device))

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        """(|i|, |j|) booleans, or (B, |i|, |j|), for query positions i and key positions j."""
        rows = torch.arange(self.rows(), device=i.device)[:, None, None] if self.batched else 0
        allowed = self.allows(rows, i[:, None], j[None, :])
        return allowed.expand(*allowed.shape[:-2], len(i), len(j))

    def rows(self) -> int:
        """The number of rows a batch-dependent mask was made for."""
        return 1

    def density(self, n: int, m: int | None = None, chunk: int = 1024) -> float:
        """The share of the n x m pairs that may attend, exactly, in memory linear in m."""
        m = n if m is None else m
        allowed = 0
        for start in range(m - n, m, chunk):
            stop = min(start + chunk, m)
            if (touched := self.touches(start, stop, m)) == self.covers(start, stop, m) and not self.batched:
                allowed += (stop - start) * sum(b - a for a, b in touched)
                continue
            i = torch.arange(start, stop)
            for a, b in touched:
                allowed += int(self.block(i, torch.arange(a, b)).sum())
        return allowed / max(1, n * m * self.rows())

    def __and__(self, other: Mask) -> Mask:
        return And(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Or(self, other)

    def __invert__(self) -> Mask:
        return Not(self)


@dataclass(frozen=True)
class Full(Mask):
    """Every query may attend to every key."""

    relative = True

    def allows(self, b, i, j):
        return torch.ones_like(i * j, dtype=torch.bool)

    def covers(self, start, stop, m):
        return [(0, m)]

    def __str__(self) -> str:
        return "Full()"


@dataclass(frozen=True)
class Causal(Mask):
    """No key after the query: j <= i."""

    relative = True

    def allows(self, b, i, j):
        return j <= i

    def touches(self, start, stop, m):
        return _clip(0, stop, m)

    def covers(self, start, stop, m):
        return _clip(0, start + 1, m)

    def __str__(self) -> str:
        return "Causal()"


@dataclass(frozen=True)
class Window(Mask):
    """Keys fewer than `size` places away: |i - j| < size. With Causal(): the last `size` keys, the query's own among
    them."""

    size: int
    relative = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"Window: the size is {self.size}, but must be at least 1, the token itself")

    def allows(self, b, i, j):
        return (i - j).abs() < self.size

    def touches(self, start, stop, m):
        return _clip(start - self.size + 1, stop - 1 + self.size, m)

    def covers(self, start, stop, m):
        return _clip(stop - self.size, start + self.size, m)

    def __str__(self) -> str:
        return f"Window({self.size})"


@dataclass(frozen=True)
class Prefix(Mask):
    """The first `size` keys, which all queries see: j < size."""

    size: int

    def allows(self, b, i, j):
        return (j < self.size) & (i == i)

    def touches(self, start, stop, m):
        return _clip(0, self.size, m)

    def covers(self, start, stop, m):
        return _clip(0, self.size, m)

    def __str__(self) -> str:
        return f"Prefix({self.size})"


@dataclass(frozen=True)
class Dilated(Mask):
    """Keys a multiple of `step` places away: (i - j) mod step = 0."""

    step: int
    relative = True

    def __post_init__(self) -> None:
        if self.step < 1:
            raise ValueError(f"Dilated: the step is {self.step}, but must be at least 1")

    def allows(self, b, i, j):
        return (i - j) % self.step == 0

    def covers(self, start, stop, m):
        return [(0, m)] if self.step == 1 and m > 0 else []

    def __str__(self) -> str:
        return f"Dilated({self.step})"


@dataclass(frozen=True, eq=False)
class Segments(Mask):
    """Keys of the query's own segment: ids[i] = ids[j], with ids (m,) or (B, m). `offsets` of the op is the fast way
    where segments lie end to end."""

    ids: Tensor

    @property
    def batched(self) -> bool:
        return self.ids.ndim == 2

    def rows(self) -> int:
        return self.ids.shape[0] if self.batched else 1

    def allows(self, b, i, j):
        ids, known = self.ids.to(i.device), i.clamp_min(0)
        same = ids[b, known] == ids[b, j] if self.batched else ids[known] == ids[j]
        return same & (i >= 0)

    def __str__(self) -> str:
        return f"Segments({'x'.join(map(str, self.ids.shape))} ids)"


@dataclass(frozen=True, eq=False)
class Padding(Mask):
    """Keys that are no padding: j < lengths[b], with lengths (B,)."""

    lengths: Tensor

    @property
    def batched(self) -> bool:
        return True

    def rows(self) -> int:
        return len(self.lengths)

    def allows(self, b, i, j):
        return (j < self.lengths.to(j.device)[b]) & (i == i)

    def __str__(self) -> str:
        return f"Padding({len(self.lengths)} lengths)"


@dataclass(frozen=True, eq=False)
class Table(Mask):
    """Any table of booleans: allowed (m, m), or (B, m, m), by positions of query and key."""

    allowed: Tensor

    @property
    def batched(self) -> bool:
        return self.allowed.ndim == 3

    def rows(self) -> int:
        return self.allowed.shape[0] if self.batched else 1

    def allows(self, b, i, j):
        allowed, known = self.allowed.to(i.device), i.clamp_min(0)
        return (allowed[b, known, j] if self.batched else allowed[known, j]) & (i >= 0)

    def __str__(self) -> str:
        return f"Table({'x'.join(map(str, self.allowed.shape))})"


@dataclass(frozen=True)
class _Pair(Mask):
    """Two masks joined, of the same rows."""

    left: Mask
    right: Mask

    @property
    def relative(self) -> bool:
        return self.left.relative and self.right.relative

    @property
    def batched(self) -> bool:
        return self.left.batched or self.right.batched

    def rows(self) -> int:
        return max(self.left.rows(), self.right.rows())


class And(_Pair):
    """Both allow it."""

    def allows(self, b, i, j):
        return self.left.allows(b, i, j) & self.right.allows(b, i, j)

    def touches(self, start, stop, m):
        return intersect(self.left.touches(start, stop, m), self.right.touches(start, stop, m))

    def covers(self, start, stop, m):
        return intersect(self.left.covers(start, stop, m), self.right.covers(start, stop, m))

    def __str__(self) -> str:
        return " & ".join(f"({part})" if isinstance(part, Or) else str(part) for part in (self.left, self.right))


class Or(_Pair):
    """One of them allows it."""

    def allows(self, b, i, j):
        return self.left.allows(b, i, j) | self.right.allows(b, i, j)

    def touches(self, start, stop, m):
        return _union(self.left.touches(start, stop, m) + self.right.touches(start, stop, m))

    def covers(self, start, stop, m):
        return _union(self.left.covers(start, stop, m) + self.right.covers(start, stop, m))

    def __str__(self) -> str:
        return f"{self.left} | {self.right}"


@dataclass(frozen=True)
class Not(Mask):
    """What the other mask forbids."""

    mask: Mask

    @property
    def relative(self) -> bool:
        return self.mask.relative

    @property
    def batched(self) -> bool:
        return self.mask.batched

    def rows(self) -> int:
        return self.mask.rows()

    def allows(self, b, i, j):
        return ~self.mask.allows(b, i, j)

    def touches(self, start, stop, m):
        return complement(self.mask.covers(start, stop, m), m)

    def covers(self, start, stop, m):
        return complement(self.mask.touches(start, stop, m), m)

    def __str__(self) -> str:
        return f"~({self.mask})" if isinstance(self.mask, And | Or) else f"~{self.mask}"


def simplify(mask: Mask | None, n: int, m: int) -> Mask:
    """The plainest mask that allows the same of n queries and m keys: Full() where all is allowed, and no conjunct
    that forbids nothing."""
    mask = Full() if mask is None else mask
    everything = [(0, m)] if m else []
    if mask.covers(m - n, m, m) == everything:
        return Full()
    if isinstance(mask, And):
        left, right = simplify(mask.left, n, m), simplify(mask.right, n, m)
        if left == Full():
            return right
        return left if right == Full() else And(left, right)
    return mask


def _clip(start: int, stop: int, m: int) -> Ranges:
    start, stop = max(0, start), min(m, stop)
    return [(start, stop)] if start < stop else []


def intersect(left: Ranges, right: Ranges) -> Ranges:
    pairs = [(max(a, c), min(b, d)) for a, b in left for c, d in right]
    return sorted((a, b) for a, b in pairs if a < b)


def _union(ranges: Ranges) -> Ranges:
    joined: Ranges = []
    for a, b in sorted(ranges):
        if joined and a <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(b, joined[-1][1]))
        else:
            joined.append((a, b))
    return joined


def complement(ranges: Ranges, m: int) -> Ranges:
    edges = [0, *(edge for pair in ranges for edge in pair), m]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
