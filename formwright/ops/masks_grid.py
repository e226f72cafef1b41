"""Masks on grids: tokens are numbered row by row, and a mask asks where on the grid query and key stand.

    Neighbourhood((56, 56), (7, 7), (2, 2))        GridWindows((56, 56), (7, 7), (3, 3))        Along((32, 32), 1)

They say token by token what ops.grid_tiles computes in tiles, and are its oracle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from formwright.ops.masks import Mask


def coordinates(index: Tensor, grid: tuple[int, ...]) -> list[Tensor]:
    """The places along each axis of tokens numbered row by row."""
    found = []
    for axis, extent in enumerate(grid):
        found.append(torch.div(index, math.prod(grid[axis + 1 :]), rounding_mode="floor") % extent)
    return found


@dataclass(frozen=True)
class Neighbourhood(Mask):
    """Along every axis: the `kernel` nearest keys of the query's own residue modulo `dilation`. At borders the
    neighbourhood moves inwards and keeps its size; a causal one holds the query's place and those before it."""

    grid: tuple[int, ...]
    kernel: tuple[int, ...]
    dilation: tuple[int, ...]
    causal: bool = False

    def allows(self, b, i, j):
        allowed = (i == i) & (j == j)
        places = zip(coordinates(i, self.grid), coordinates(j, self.grid), strict=True)
        for (p, r), extent, kernel, dilation in zip(places, self.grid, self.kernel, self.dilation, strict=True):
            allowed = allowed & (p % dilation == r % dilation)
            own, other = p // dilation, r // dilation
            if self.causal:
                allowed = allowed & (other <= own) & (own - other < kernel)
                continue
            members = (extent - p % dilation + dilation - 1) // dilation
            first = (own - kernel // 2).clamp_min(0).minimum((members - kernel).clamp_min(0))
            allowed = allowed & (other >= first) & (other < first + kernel)
        return allowed

    def __str__(self) -> str:
        causal = ", causal" if self.causal else ""
        return f"Neighbourhood({self.grid}, {self.kernel}, {self.dilation}{causal})"


@dataclass(frozen=True)
class GridWindows(Mask):
    """Keys of the query's own window: along every axis floor((i - shift) / size) is the same."""

    grid: tuple[int, ...]
    size: tuple[int, ...]
    shift: tuple[int, ...]

    def allows(self, b, i, j):
        allowed = (i == i) & (j == j)
        places = zip(coordinates(i, self.grid), coordinates(j, self.grid), strict=True)
        for (p, r), size, shift in zip(places, self.size, self.shift, strict=True):
            numbers = (torch.div(x - shift, size, rounding_mode="floor") for x in (p, r))
            allowed = allowed & (next(numbers) == next(numbers))
        return allowed

    def __str__(self) -> str:
        return f"GridWindows({self.grid}, {self.size}, {self.shift})"


@dataclass(frozen=True)
class Along(Mask):
    """Keys on the query's own line along `axis`: all other coordinates are the same."""

    grid: tuple[int, ...]
    axis: int

    def allows(self, b, i, j):
        allowed = (i == i) & (j == j)
        for axis, (p, r) in enumerate(zip(coordinates(i, self.grid), coordinates(j, self.grid), strict=True)):
            if axis != self.axis:
                allowed = allowed & (p == r)
        return allowed

    def __str__(self) -> str:
        return f"Along({self.grid}, {self.axis})"


@dataclass(frozen=True)
class BlockSparse(Mask):
    """What one head of block-sparse attention reads, block by block: a window of `window` blocks around the query's
    (with causal=True up to it), the first `globals` blocks, which read everything in turn, and `random` others, one
    drawn from each of as many equal stretches of those that are left."""

    size: int
    window: int
    globals: int
    random: int
    head: int = 0
    seed: int = 0
    causal: bool = False
    blocks: int = 0  # how many the whole sequence has; a causal mask needs none

    def allows(self, b, i, j):
        own, other = i // self.size, j // self.size
        side = self.window - 1 if self.causal else self.window // 2
        allowed = ((own - other).abs() <= side) | (other < self.globals)
        if not self.causal:
            allowed = allowed | (own < self.globals)
        drawn, real = random_blocks(own, self.head, self)
        for slot in range(self.random):
            allowed = allowed | (real[..., slot] & (drawn[..., slot] == other))
        return allowed & (j <= i) if self.causal else allowed

    def __str__(self) -> str:
        return f"BlockSparse({self.size}: {self.window} + {self.globals} + {self.random}, head {self.head})"


def random_blocks(own: Tensor, head: Tensor | int, how: BlockSparse) -> tuple[Tensor, Tensor]:
    """Query blocks and heads (broadcastable) -> (..., random) blocks that each reads beside window and global ones,
    and whether there is one. The same at any length for causal masks, so that decoding finds them again."""
    slot = torch.arange(how.random, device=own.device)
    own, head = own[..., None], head[..., None] if isinstance(head, Tensor) else head
    side = how.window - 1 if how.causal else how.window // 2
    before = (own - side - how.globals).clamp_min(0)  # blocks between the global ones and the window
    after = 0 if how.causal else (how.blocks - (own + side + 1).clamp_min(how.globals)).clamp_min(0)
    left = before + after
    first, last = slot * left // max(1, how.random), (slot + 1) * left // max(1, how.random)
    chosen = first + _hashed(how.seed, head, own, slot) % (last - first).clamp_min(1)
    blocks = torch.where(chosen < before, chosen + how.globals, 0)
    if not how.causal:
        blocks = torch.where(chosen < before, blocks, chosen - before + (own + side + 1).clamp_min(how.globals))
    return blocks, (last > first).expand_as(blocks)


def _hashed(*numbers: Tensor | int) -> Tensor:
    """Integers in 0..2^31-1 that look random, each a function of its numbers alone."""
    found: Tensor | int = 0x2545F49
    for number in numbers:
        found = ((found ^ number) * 0x5BD1E995 + 0x3C6EF35F) & 0x7FFFFFFF
        found = ((found ^ (found >> 15)) * 0x2C1B3C6D) & 0x7FFFFFFF
        found = found ^ (found >> 13)
    return found
