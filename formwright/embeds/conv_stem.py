"""A convolutional stem: patches embedded by a few small strided convolutions, each halving the image.

    x = c_L(GELU(c_{L-1}( ... GELU(c_1(image))))),   c_l(u) = batchnorm(conv 3 x 3 of stride 2),   L = log2(size)

The widths double up to D. position="fourier" adds learned maps of sines and cosines of a place's share of the grid,

    W [sin, cos](2 pi p_a / n_a / 10000^(2f/F)) + b,   p_a = 1 ... n_a along each axis a, f < F/2

which are the same for images of other sizes.
Early Convolutions Help Transformers See Better, 2106.14881, 2021; the stem and the positions of XCiT, 2106.09681, 2021.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Embed, Layout, Unsupported, parameter_count
from formwright.embeds.conv_patches import CONVOLUTIONS
from formwright.embeds.tokens import embedded_position
from formwright.norms.batchnorm import BatchNorm
from formwright.parts import register

BASE, WAVES = 10000.0, 32


class _Fourier(nn.Module):
    """Sines and cosines of places, WAVES numbers an axis, through a linear map."""

    def __init__(self, dim: int, rank: int):
        super().__init__()
        self.map = nn.Linear(rank * WAVES, dim)

    def forward(self, grid: tuple[int, ...]) -> Tensor:
        """(N, D) for the places of a grid."""
        like = self.map.weight
        sides = torch.tensor(grid, dtype=like.dtype, device=like.device)
        shares = (Layout(grid).positions(like.device) + 1) / (sides + 1e-6)  # (N, A)
        powers = torch.arange(0, WAVES, 2, dtype=like.dtype, device=like.device) / WAVES
        angles = 2 * math.pi * shares[..., None] * BASE**-powers
        return self.map(torch.stack([angles.sin(), angles.cos()], -1).flatten(1))


@register
class ConvStem(Embed):
    """Images (B, *image, channels), channel last, of one to three axes -> (B, N, D), a token for `size` pixels along
    every axis.

    size      a power of 2, at least 2
    position  "fourier", a part of role "embed", or None

    Raises ValueError for another size, for widths that can't be halved so often, and images that size doesn't
    divide."""

    card = Card(
        name="conv_stem",
        kind="embed",
        summary="patches embedded by small strided convolutions, each halving the image, with batch norms",
        source="Early Convolutions Help Transformers See Better, 2106.14881, 2021",
    )
    batched = True

    def __init__(
        self,
        dim: int,
        *,
        channels: int,
        image: tuple[int, ...],
        size: int = 4,
        position: Callable | str | None = "fourier",
    ):
        super().__init__()
        steps = size.bit_length() - 1
        if size < 2 or size != 1 << steps:
            raise ValueError(f"conv_stem: size={size} must be a power of 2, and at least 2")
        if dim % (size // 2):
            raise ValueError(f"conv_stem: the width {dim} is halved {steps - 1} times; take a multiple of {size // 2}")
        if isinstance(position, str) and position != "fourier":
            raise ValueError(f"conv_stem: position is 'fourier', a position part or None, not {position!r}")
        self.dim, self.channels, self.rank, self.size = dim, channels, len(image), size
        if self.rank not in CONVOLUTIONS:
            raise Unsupported("conv_stem", f"images of {self.rank} axes", "its kernels have up to three")
        self.length = math.prod(self.layout((*image, channels)).grid)
        widths = [channels, *(dim >> (steps - 1 - step) for step in range(steps))]
        make = CONVOLUTIONS[self.rank]
        self.convolutions = nn.ModuleList(
            make(a, b, 3, stride=2, padding=1, bias=False) for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(BatchNorm(width) for width in widths[1:])
        fourier = position == "fourier"
        self.places = _Fourier(dim, self.rank) if fourier else None
        self.position = None if fourier else embedded_position("conv_stem", position, dim)

    def forward(self, inputs: Tensor, layout: Layout | None = None) -> tuple[Tensor, Layout]:
        if layout is not None and not layout.plain:
            raise Unsupported("conv_stem", "lengths and offsets", "images are not padded or packed")
        layout = self.layout(tuple(inputs.shape[1:]))
        x = inputs
        for step, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = F.gelu(x) if step else x
            x = norm(convolution(x.movedim(-1, 1)).movedim(1, -1))
        x = x.flatten(1, -2)
        if self.places is not None:
            x = x + self.places(layout.grid).to(x.dtype)
        if self.position is not None:
            x = self.position.embed(x, layout.positions(x.device))
        return x, layout

    def layout(self, inputs: tuple[int, ...]) -> Layout:
        if len(inputs) != self.rank + 1 or inputs[-1] != self.channels:
            wanted = f"{self.rank} axes and {self.channels} channels, channels last"
            raise ValueError(f"conv_stem: an image has {wanted}, but the input is {inputs}")
        if any(n % self.size for n in inputs[:-1]):
            raise ValueError(f"conv_stem: size={self.size} doesn't divide an image of {tuple(inputs[:-1])}")
        return Layout(tuple(n // self.size for n in inputs[:-1]))

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        works, tokens = 0, math.prod(layout.grid)
        for step, convolution in enumerate(reversed(self.convolutions)):
            works += batch * tokens * 2 ** (step * self.rank) * convolution.weight.numel()
        if self.places is not None:
            works += tokens * self.places.map.weight.numel()
        return Cost(parameter_count(self), works)
