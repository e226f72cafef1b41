"""Sinusoidal positions: sines and cosines of geometric frequencies, added to the embedded tokens.

    PE(p, 2f) = sin(p base^(-2f/d)),   PE(p, 2f+1) = cos(p base^(-2f/d))

With A axes each has d = D / A channels of its own (rounded down to even; channels left over get nothing); coordinates
may be reals. Defined at every position, though models seldom use well those beyond the trained ones.
Attention Is All You Need, 1706.03762, 2017.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from formwright.contract import Card, Position
from formwright.parts import register


@register
class Sinusoidal(Position):
    card = Card(
        name="sinusoidal",
        kind="position",
        summary="adds sines and cosines of geometric frequencies to the tokens, on any number of axes",
        source="Attention Is All You Need, 1706.03762, 2017",
        symmetries=("shift",),
        extrapolates=False,
    )
    role = "embed"

    def __init__(self, dim: int, *, base: float = 10000.0):
        """Raises ValueError for a base not above 0."""
        super().__init__()
        if base <= 0:
            raise ValueError(f"sinusoidal: base must be above 0, but is {base}")
        self.dim, self.base = dim, base

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, N, D), positions (N, A) or (B, N, A) -> x with positions added. Raises ValueError where the width is
        less than two channels an axis."""
        axes = positions.shape[-1]
        d = self.dim // axes // 2 * 2
        if d == 0:
            raise ValueError(f"sinusoidal: a width of {self.dim} can't be shared by {axes} axes; use a wider model")
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        powers = torch.arange(0, d, 2, dtype=wide, device=x.device) / d
        angles = positions.to(wide)[..., None] * self.base**-powers
        waves = torch.stack([angles.sin(), angles.cos()], -1).flatten(-3)  # (..., N, A d)
        return x + F.pad(waves, (0, self.dim - axes * d)).to(x.dtype)
