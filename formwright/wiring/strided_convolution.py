"""strided_convolution(width=w): a convolution over the grid that keeps every second token, in between stages.

    y_g = b + sum_o W_o x_{stride g + o - padding},   width D -> w, zeros beyond the grid

The overlapping patch merging of PoolFormer, MetaFormer Is Actually What You Need for Vision, 2111.11418, 2021; a norm
before it is a stage of its own: layernorm >> strided_convolution(width=128). It reads tokens that come after, so it
stands in two-directional stacks alone.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from formwright.contract import Card, Cost, Layout, Unsupported, Wiring, parameter_count
from formwright.embeds.conv_patches import CONVOLUTIONS
from formwright.parts import register


@register
class StridedConvolution(Wiring):
    card = Card(
        name="strided_convolution",
        kind="wiring",
        summary="a convolution that merges overlapping neighbourhoods of the grid into fewer, wider tokens",
        source="MetaFormer Is Actually What You Need for Vision, 2111.11418, 2021",
    )
    stacks = ()

    def __init__(
        self,
        dim: int,
        *,
        width: int | None = None,
        size: int = 3,
        stride: int = 2,
        padding: int | None = None,
        bias: bool = True,
        causal: bool = False,
        rank: int | None = None,
    ):
        """
        width    of the tokens after it, stride D without it
        size     tokens that one reads along every axis; padding is size // 2 without it

        Raises ValueError or Unsupported for what doesn't fit."""
        super().__init__()
        rank = rank or 1
        if min(size, stride) < 1:
            raise ValueError(f"strided_convolution: size={size} and stride={stride} must be at least 1")
        if causal:
            raise Unsupported("strided_convolution", "causal=True", "it reads tokens after; write downsample")
        if rank not in CONVOLUTIONS:
            raise Unsupported("strided_convolution", f"a grid of {rank} axes", "its kernel has up to three")
        self.dim, self.dim_out, self.rank = dim, width or stride * dim, rank
        self.size, self.stride, self.padding = size, stride, size // 2 if padding is None else padding
        self.project = CONVOLUTIONS[rank](dim, self.dim_out, size, stride=stride, padding=self.padding, bias=bias)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        if not layout.plain or layout.coords is not None:
            raise Unsupported("strided_convolution", "padded, packed or irregular tokens", "it needs a full grid")
        if layout.prefix:
            raise Unsupported("strided_convolution", "prefix tokens", "they stand nowhere on the grid")
        if len(layout.grid) != self.rank:
            raise Unsupported(
                "strided_convolution", f"a grid of {len(layout.grid)} axes", f"it was built for {self.rank}"
            )
        y = self.project(x.transpose(1, 2).unflatten(2, layout.grid))
        return y.flatten(2).transpose(1, 2), self.after(layout)

    def after(self, layout: Layout) -> Layout:
        wide = 2 * self.padding - self.size
        return replace(layout, grid=tuple((n + wide) // self.stride + 1 for n in layout.grid))

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(parameter_count(self), batch * self.after(layout).tokens * self.project.weight.numel())
