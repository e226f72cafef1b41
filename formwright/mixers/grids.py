"""What mixers of tokens on a grid share: sizes by axis, relative biases, and a layout's sequences for their costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from formwright.contract import Layout, TokenMixer
from formwright.ops.masks_grid import coordinates

Sizes = int | tuple[int, ...]


def by_axis(mixer: TokenMixer, option: str, value: Sizes, rank: int, least: int = 1) -> tuple[int, ...]:
    """The sizes along `rank` axes: one for all, or the last of those given.

    Raises Unsupported where fewer are given, or one is less than `least`."""
    given = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(given) < rank:
        mixer.refuse(f"{option}={value}", f"the grid has {rank} axes; give {option} for each")
    if any(each < least for each in given):
        mixer.refuse(f"{option}={value}", f"it must be at least {least} along every axis")
    return given[len(given) - rank :]


def no_prefix(mixer: TokenMixer, layout: Layout) -> None:
    """Refuse class and register tokens, which stand nowhere on a grid."""
    if layout.prefix:
        mixer.refuse("prefix tokens", "they stand nowhere on the grid; read out by a mean instead")


def of_rank(grid: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The grid with axes of length 1 in front: a sequence is a grid of one row."""
    return (1,) * (rank - len(grid)) + tuple(grid)


def pieces(layout: Layout, batch: int, causal: bool) -> list[tuple[Layout, int]]:
    """(plain layout, rows) of what a mixer computes at once: all rows, or every sequence by itself; padding after a
    causal mixer's tokens needs no care."""
    if layout.plain or (causal and layout.lengths is not None):
        return [(Layout(layout.grid, layout.prefix), batch)]
    return [(part, 1) for _, _, part in layout.sequences()]


def whole_bias(
    table: Tensor, grid: tuple[int, ...], centre: Sequence[int], dilation: Sequence[int] | None = None
) -> Tensor:
    """table (H, *extents), the bias of each relative place (key minus query, plus `centre`, along each axis, in steps
    of `dilation`) -> (H, N, N) for all pairs of a grid; places off the table get the nearest of it."""
    places = coordinates(torch.arange(torch.Size(grid).numel(), device=table.device), grid)
    index = torch.zeros(1, 1, dtype=torch.long, device=table.device)
    for place, middle, extent, step in zip(places, centre, table.shape[1:], dilation or [1] * len(grid), strict=True):
        place = place // step
        index = index * extent + (place - place[:, None] + middle).clamp(0, extent - 1)
    return table.flatten(1)[:, index]
