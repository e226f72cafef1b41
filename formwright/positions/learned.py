"""Learned positions: one trained vector for each place, added to the embedded tokens.

    x_n <- x_n + E[p_n],   E (length, D)

On one axis p is the token's position (packed sequences each begin at 0); on a grid p is the token's index in row-major
order, prefix tokens first, so that each has a vector of its own. Ends at `length`: longer inputs are refused.
Convolutional Sequence to Sequence Learning, 1705.03122, 2017; BERT, 1810.04805, 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright.contract import Card, Position, Unsupported
from formwright.parts import register


@register
class Learned(Position):
    card = Card(
        name="learned",
        kind="position",
        summary="adds a trained vector for each place, up to the length it was made for",
        source="Convolutional Sequence to Sequence Learning, 1705.03122, 2017",
        extrapolates=False,
    )
    role = "embed"

    def __init__(self, dim: int, *, length: int = 1024):
        """length is the number of places. Raises ValueError where it is below 1."""
        super().__init__()
        if length < 1:
            raise ValueError(f"learned: length is {length}, but must be at least 1")
        self.length = length
        self.table = nn.Parameter(torch.empty(length, dim).normal_(std=0.02))

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, N, D), positions (N, A) or (B, N, A) -> x with positions added. Raises ValueError for places beyond
        `length`, Unsupported for positions that are not whole numbers."""
        if positions.is_floating_point():
            raise Unsupported("learned", "coords", "places have whole numbers; use sinusoidal for real coordinates")
        grid = positions.shape[-1] > 1
        index = torch.arange(x.shape[1], device=x.device) if grid else positions[..., 0]
        last = x.shape[1] - 1
        if not grid and not torch.compiler.is_compiling():
            last = int(index.max())
        if last >= self.length:
            raise ValueError(
                f"learned: a token stands at place {last}, but there are {self.length} places; build with "
                f"learned(length={last + 1}) or more"
            )
        return x + self.table[index].to(x.dtype)
