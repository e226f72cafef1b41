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
