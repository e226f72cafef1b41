"""conditional_position: tokens get a depthwise convolution over their grid added, which tells them where they stand.

    x <- x + conv(x)                the position encoding generator, zeros beyond the grid

The zeros at the borders tell places from one another, so that it reads grids of any size. It stands between stages,
as in tokens >> (attention + mlp) >> conditional_position >> 5*(attention + mlp); the paper puts it after the first
block. In a causal stack (one axis) the kernel reads the token itself and those before it. Prefix tokens stay as they
are.
Conditional Positional Encodings for Vision Transformers, 2102.10882, 2021.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, Unsupported, Wiring, parameter_count
from formwright.parts import register
from formwright.positions.grid_convolution import CONVOLUTIONS, grid_convolution, grid_macs


@register
class ConditionalPosition(Wiring):
    card = Card(
        name="conditional_position",
        kind="wiring",
        summary="adds a depthwise convolution over the grid to the tokens, a position that depends on neighbours",
        source="Conditional Positional Encodings for Vision Transformers, 2102.10882, 2021",
        extrapolates=True,
    )
    stacks = ()

    def __init__(self, dim: int, *, size: int = 3, causal: bool = False, rank: int | None = None):
        """Raises ValueError for a size without a middle, Unsupported for grids it can't read."""
        super().__init__()
        rank = rank or 1
        if size < 1 or (size % 2 == 0 and not causal):
            raise ValueError(f"conditional_position: size={size} has no middle; make it odd")
        if rank not in CONVOLUTIONS:
            raise Unsupported("conditional_position", f"a grid of {rank} axes", "its kernel has up to three")
        if causal and rank > 1:
            raise Unsupported("conditional_position", "causal grids of several axes", "tokens have an order along one")
        self.dim = self.dim_out = dim
        self.causal, self.rank = causal, rank
        bound = size ** (-rank / 2)
        self.weight = nn.Parameter(torch.empty(dim, *(size,) * rank).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        if len(layout.grid) != self.rank:
            raise Unsupported("conditional_position", f"a grid of {len(layout.grid)} axes", f"it has {self.rank}")
        return x + grid_convolution(x, layout, self.weight, self.bias, causal=self.causal), layout

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        """The last size - 1 tokens (B, size - 1, D), zeros at first."""
        if not self.causal:
            raise Unsupported("conditional_position", "extend", "it was built for a two-directional stack")
        like = self.weight if like is None else like
        return like.new_zeros(batch, self.weight.shape[1] - 1, self.dim)

    def extend(
        self, x: Tensor, state: Any, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Any]:
        if x.shape[1] == 0:
            return x, state
        past = torch.cat([state, x], 1)
        kept = state.shape[1]
        y = grid_convolution(past, Layout((past.shape[1],)), self.weight, self.bias, causal=True)
        return x + y[:, kept:], past[:, past.shape[1] - kept :]

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        kept = batch * (self.weight.shape[1] - 1) * self.dim * self.weight.element_size() if self.causal else 0
        return Cost(parameter_count(self), grid_macs(layout, self.weight, batch), kept)
