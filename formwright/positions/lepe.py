"""Locally enhanced positions: attention's outputs get a depthwise convolution of the values over the grid.

    o = softmax(q k^T / sqrt(K)) v + conv(v)

The kernel's taps tell neighbours by where they stand, for any size of the grid.
CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows, 2107.00652, 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright.contract import Card, Layout, Position
from formwright.parts import register
from formwright.positions.grid_convolution import CONVOLUTIONS, grid_convolution


@register
class Lepe(Position):
    card = Card(
        name="lepe",
        kind="position",
        summary="adds a depthwise convolution of the values over the grid to the heads' outputs",
        source="CSWin Transformer, 2107.00652, 2021",
        symmetries=("shift",),
        extrapolates=True,
    )
    role = "value"

    def __init__(self, dim: int, rank: int = 1, *, size: int = 3):
        """dim is the width of all heads' values, rank the number of axes. Raises ValueError for an even size and more
        than three axes."""
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"lepe: size={size} has no middle; make it odd")
        if rank not in CONVOLUTIONS:
            raise ValueError(f"lepe: its kernel has up to three axes, but the grid has {rank}")
        self.dim, self.rank = dim, rank
        bound = size ** (-rank / 2)
        self.weight = nn.Parameter(torch.empty(dim, *(size,) * rank).uniform_(-bound, bound))
        self.offset = nn.Parameter(torch.zeros(dim))

    def local(self, v: Tensor, layout: Layout) -> Tensor:
        """Values v (B, N, H, V) -> (B, N, H, V). Raises ValueError for a grid of other axes."""
        if len(layout.grid) != self.rank:
            raise ValueError(f"lepe: it was built for {self.rank} axes, but the grid has {len(layout.grid)}")
        return grid_convolution(v.flatten(2), layout, self.weight, self.offset).unflatten(2, v.shape[2:])
