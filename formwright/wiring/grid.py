"""downsample(f), upsample(f): change the token grid and the width; pyramids need nothing else.

    downsample   y_g = W norm([x_t : t in block g]),   f tokens along every axis into one, width D -> f D
    upsample     [y_t : t in block g] = reshape(W x_g),  one token into f along every axis, width D -> D / f

The blocks are those of Swin's patch merging (Liu et al., 2103.14030, 2021); a grid that f does not divide is padded
with zeros at its end. In a causal stack block g ends at token g f, as in Hourglass (Nawrot et al., 2110.13711, 2021):
group g reads tokens g f - f + 1 ... g f, and gives tokens g f ... g f + f - 1, so nothing is read before its time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, Norm, Unsupported, Wiring, parameter_count
from formwright.norms.rmsnorm import RMSNorm
from formwright.parts import register


def blocks(x: Tensor, grid: tuple[int, ...], factor: int) -> Tensor:
    """(B, prod(grid), D) with grid divisible by factor -> (B, prod(grid) / f^A, f^A D)."""
    batch, _, dim = x.shape
    axes = len(grid)
    x = x.view(batch, *(n for size in grid for n in (size // factor, factor)), dim)
    outer, inner = [1 + 2 * a for a in range(axes)], [2 + 2 * a for a in range(axes)]
    return x.permute(0, *outer, *inner, 1 + 2 * axes).reshape(batch, -1, factor**axes * dim)


def _unblocks(x: Tensor, grid: tuple[int, ...], factor: int) -> Tensor:
    """(B, prod(grid), f^A D) -> (B, prod(grid) f^A, D): the inverse of blocks for the smaller grid."""
    batch, axes = x.shape[0], len(grid)
    x = x.view(batch, *grid, *(factor,) * axes, -1)
    order = [i for a in range(axes) for i in (1 + a, 1 + axes + a)]
    return x.permute(0, *order, 1 + 2 * axes).reshape(batch, math.prod(grid) * factor**axes, -1)


def _only_plain(name: str, layout: Layout) -> None:
    if not layout.plain or layout.coords is not None:
        raise Unsupported(name, "padded, packed or irregular tokens", "its blocks need a full grid")
    if layout.prefix:
        raise Unsupported(name, "prefix tokens", "they have no place in the grid; use a head that pools instead")


@register
class Downsample(Wiring):
    card = Card(
        name="downsample",
        kind="wiring",
        summary="merges blocks of tokens into one wider token",
        source="Swin Transformer, 2103.14030, 2021; Hierarchical Transformers Are More Efficient, 2110.13711, 2021",
    )
    stacks = ()

    def __init__(
        self,
        dim: int,
        *,
        factor: int = 2,
        width: int | None = None,
        norm: Callable[[int], Norm] = RMSNorm,
        causal: bool = False,
        rank: int | None = None,
    ):
        super().__init__()
        if factor < 1:
            raise ValueError(f"downsample: factor is {factor}, but must be at least 1")
        rank = rank or 1
        if causal and rank > 1:
            raise Unsupported("downsample", "causal grids of several axes", "tokens have an order along one axis alone")
        self.dim, self.factor, self.causal, self.rank = dim, factor, causal, rank
        self.dim_out = width or dim * factor
        self.norm = norm(factor**rank * dim)
        self.project = nn.Linear(factor**rank * dim, self.dim_out, bias=False)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        _only_plain("downsample", layout)
        if len(layout.grid) != self.rank:
            raise Unsupported("downsample", f"a grid of {len(layout.grid)} axes", f"it was built for {self.rank}")
        after = self.after(layout)
        if self.causal:
            x = F.pad(x, (0, 0, self.factor - 1, after.tokens * self.factor - (self.factor - 1) - layout.tokens))
        else:
            x = x.view(x.shape[0], *layout.grid, self.dim)
            short = [big * self.factor - size for big, size in zip(after.grid, layout.grid, strict=True)]
            x = F.pad(x, (0, 0, *(n for missing in reversed(short) for n in (0, missing)))).flatten(1, -2)
        grid = tuple(size * self.factor for size in after.grid)
        return self.project(self.norm(blocks(x, grid, self.factor))), after

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        if not self.causal:
            raise Unsupported("downsample", "extend", "it was built for a two-directional stack")
        like = self.project.weight if like is None else like
        return like.new_zeros(batch, self.factor - 1, self.dim)

    def extend(
        self, x: Tensor, state: Any, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Any]:
        x = torch.cat([state, x], 1)
        groups = x.shape[1] // self.factor
        used = x[:, : groups * self.factor]
        out = self.project(self.norm(used.reshape(x.shape[0], groups, self.factor * self.dim)))
        return out, x[:, groups * self.factor :]

    def after(self, layout: Layout) -> Layout:
        return replace(layout, grid=tuple(-(-size // self.factor) for size in layout.grid))

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(parameter_count(self), batch * self.after(layout).tokens * self.project.weight.numel())


@register
class Upsample(Wiring):
    card = Card(
        name="upsample",
        kind="wiring",
        summary="turns every token into a block of narrower tokens",
        source="Swin Transformer, 2103.14030, 2021; Hierarchical Transformers Are More Efficient, 2110.13711, 2021",
    )
    stacks = ()

    def __init__(self, dim: int, *, factor: int = 2, width: int | None = None, rank: int | None = None):
        super().__init__()
        rank = rank or 1
        if factor < 1 or (width is None and dim % factor):
            raise ValueError(f"upsample: factor={factor} does not divide the width {dim}; set width")
        self.dim, self.factor, self.rank = dim, factor, rank
        self.dim_out = width or dim // factor
        self.project = nn.Linear(dim, factor**rank * self.dim_out, bias=False)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        _only_plain("upsample", layout)
        if len(layout.grid) != self.rank:
            raise Unsupported("upsample", f"a grid of {len(layout.grid)} axes", f"it was built for {self.rank}")
        return _unblocks(self.project(x), layout.grid, self.factor), self.after(layout)

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        return ()

    def extend(
        self, x: Tensor, state: Any, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Any]:
        return self.project(x).reshape(x.shape[0], x.shape[1] * self.factor, self.dim_out), state

    def after(self, layout: Layout) -> Layout:
        return replace(layout, grid=tuple(size * self.factor for size in layout.grid))

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(parameter_count(self), batch * layout.tokens * self.project.weight.numel())
