"""Rotary positions: pairs of channels are turned by angles that grow with position, so that scores see distances alone.

    (x_f, x_{f+d/2}) -> (x_f cos a - x_{f+d/2} sin a, x_f sin a + x_{f+d/2} cos a),  a = p base^(-2f/d),  f < d/2

The first `fraction` of a head's channels is turned, the rest is left. With A axes each axis turns d = fraction K / A
channels of its own (rounded down to even) by its own coordinate; coordinates may be reals. Scores depend on differences
of positions alone; trained lengths are not exceeded well without scaling.
RoFormer: Enhanced Transformer with Rotary Position Embedding, 2104.09864, 2021; partial rotation: GPT-NeoX-20B,
2204.06745, 2022; several axes: Rotary Position Embedding for Vision Transformer, 2403.13298, 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

from formwright.contract import Card, Position
from formwright.parts import register


@register
class Rope(Position):
    card = Card(
        name="rope",
        kind="position",
        summary="turns queries and keys by angles proportional to their positions, on any number of axes",
        source="RoFormer: Enhanced Transformer with Rotary Position Embedding, 2104.09864, 2021",
        symmetries=("shift",),
    )
    role = "rotate"

    def __init__(self, dim: int, *, base: float = 10000.0, fraction: float = 1.0):
        """dim is the width of a head. Raises ValueError for a base not above 0 or a fraction outside (0, 1]."""
        super().__init__()
        if base <= 0 or not 0 < fraction <= 1:
            raise ValueError(f"rope: base must be above 0 and fraction in (0, 1], but they are {base}, {fraction}")
        self.dim, self.base, self.fraction = dim, base, fraction
        if int(dim * fraction) < 2:
            raise ValueError(f"rope: {fraction} of a head of {dim} channels is less than one pair; use wider heads")

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, N, H, K), positions (N, A) or (B, N, A) -> x turned. Raises ValueError where the axes are more than the
        pairs of channels."""
        axes = positions.shape[-1]
        turned = int(self.dim * self.fraction)
        d = turned // axes // 2 * 2
        if d == 0:
            raise ValueError(f"rope: {turned} channels of a head can't be shared by {axes} axes; use wider heads")
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        powers = torch.arange(0, d, 2, dtype=wide, device=x.device) / d
        angles = positions.to(wide)[..., None] * self.base**-powers  # (..., N, A, d/2)
        cos, sin = (wave.to(x.dtype).unsqueeze(-3) for wave in (angles.cos(), angles.sin()))  # (..., N, 1, A, d/2)
        first, second = x[..., : axes * d].unflatten(-1, (axes, 2, d // 2)).unbind(-2)
        y = torch.stack([first * cos - second * sin, first * sin + second * cos], -2).flatten(-3)
        return y if axes * d == x.shape[-1] else torch.cat([y, x[..., axes * d :]], -1)
