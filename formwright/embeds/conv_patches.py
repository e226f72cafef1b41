"""Overlapping patches by a strided convolution:  x_g = b + sum_o W_o pixel_{stride g + o - padding}, zeros beyond.

Each token reads `size` pixels along every axis and stands `stride` pixels from the next. The stem of MetaFormer
Baselines for Vision, 2210.13452, 2022 (size 7, stride 4, padding 2). within=b cuts the image into blocks of b pixels
first and convolves each by itself, as Transformer in Transformer, 2103.00112, 2021, embeds the pixels of its patches.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from formwright.contract import Card, Cost, Embed, Layout, Unsupported, parameter_count
from formwright.parts import register

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@register
class ConvPatches(Embed):
    """Images (B, *image, channels), channel last, of one to three axes -> (B, N, D) on a grid of
    floor((side + 2 padding - size) / stride) + 1 tokens along every axis.

    size, stride, padding   in pixels, the same for all axes; padding is size // 2 without it
    within                  pixels of a block that is convolved by itself, None for the whole image

    Raises ValueError for images too small for a token, or that blocks don't divide."""

    card = Card(
        name="conv_patches",
        kind="embed",
        summary="overlapping patches of an image, each a token, by a strided convolution",
        source="MetaFormer Baselines for Vision, 2210.13452, 2022",
    )

    def __init__(
        self,
        dim: int,
        *,
        channels: int,
        image: tuple[int, ...],
        size: int = 7,
        stride: int = 4,
        padding: int | None = None,
        within: int | None = None,
    ):
        super().__init__()
        self.dim, self.channels, self.rank, self.within = dim, channels, len(image), within
        if min(size, stride) < 1 or (within is not None and within < 1):
            raise ValueError(f"conv_patches: size={size}, stride={stride} and within={within} must be at least 1")
        if self.rank not in CONVOLUTIONS:
            raise Unsupported("conv_patches", f"images of {self.rank} axes", "its kernel has up to three")
        self.size, self.stride, self.padding = size, stride, size // 2 if padding is None else padding
        self.length = math.prod(self._grid(tuple(image)))
        self.project = CONVOLUTIONS[self.rank](channels, dim, size, stride=stride, padding=self.padding)

    def forward(self, inputs: Tensor, layout: Layout | None = None) -> tuple[Tensor, Layout]:
        if layout is not None and not layout.plain:
            raise Unsupported("conv_patches", "lengths and offsets", "images are not padded or packed")
        layout = self.layout(tuple(inputs.shape[1:]))
        if self.within is None:
            return self.project(inputs.movedim(-1, 1)).flatten(2).transpose(1, 2), layout
        rank, counts = self.rank, [n // self.within for n in inputs.shape[1:-1]]
        x = inputs.reshape(len(inputs), *(n for count in counts for n in (count, self.within)), self.channels)
        x = x.permute(0, *range(1, 2 * rank, 2), 2 * rank + 1, *range(2, 2 * rank + 1, 2)).flatten(0, rank)
        x = self.project(x).unflatten(0, (len(inputs), *counts))  # (B, counts, D, places of each block)
        x = x.permute(0, *(i for a in range(rank) for i in (1 + a, 2 + rank + a)), 1 + rank)
        return x.flatten(1, -2), layout

    def layout(self, inputs: tuple[int, ...]) -> Layout:
        if len(inputs) != self.rank + 1 or inputs[-1] != self.channels:
            wanted = f"{self.rank} axes and {self.channels} channels, channels last"
            raise ValueError(f"conv_patches: an image has {wanted}, but the input is {inputs}")
        return Layout(self._grid(tuple(inputs[:-1])))

    def _grid(self, sides: tuple[int, ...]) -> tuple[int, ...]:
        if self.within is not None and any(n % self.within for n in sides):
            raise ValueError(f"conv_patches: blocks of within={self.within} pixels don't divide an image of {sides}")
        blocks = [1 if self.within is None else n // self.within for n in sides]
        wide = [n // b + 2 * self.padding - self.size for n, b in zip(sides, blocks, strict=True)]
        if min(wide) < 0:
            raise ValueError(f"conv_patches: an image of {sides} is too small for size={self.size}; take a smaller one")
        return tuple(b * (w // self.stride + 1) for b, w in zip(blocks, wide, strict=True))

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(parameter_count(self), batch * math.prod(layout.grid) * self.project.weight.numel())
