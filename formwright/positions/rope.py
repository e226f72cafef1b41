"""Rotary positions: pairs of channels are turned by angles that grow with position, so that scores see distances alone.

    (x_f, x_{f+d/2}) -> (x_f cos a - x_{f+d/2} sin a, x_f sin a + x_{f+d/2} cos a),  a = p theta_f,  f < d/2
    theta_f = base^(-2f/d), or one of the scalings in rope_scaling.py for inputs longer than those trained on

The first `fraction` of a head's channels is turned, the rest is left. With A axes each axis turns d = fraction K / A
channels of its own (rounded down to even) by its own coordinate; coordinates may be reals. Scores depend on differences
of positions alone; trained lengths are not exceeded well without scaling.
RoFormer: Enhanced Transformer with Rotary Position Embedding, 2104.09864, 2021; partial rotation: GPT-NeoX-20B,
2204.06745, 2022; several axes: Rotary Position Embedding for Vision Transformer, 2403.13298, 2024.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from formwright.contract import Card, Position
from formwright.parts import register
from formwright.positions.rope_scaling import FAST, SCALINGS, frequencies


def turn(x: Tensor, angles: Tensor, magnitude: float = 1.0) -> Tensor:
    """x (..., H, K), angles (..., 1 or H, f) with 2f <= K -> the first 2f channels turned in pairs (i, i + f)."""
    cos, sin = angles.cos(), angles.sin()
    if magnitude != 1:
        cos, sin = cos * magnitude, sin * magnitude
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    pairs = angles.shape[-1]
    first, second = x[..., :pairs], x[..., pairs : 2 * pairs]
    return torch.cat([first * cos - second * sin, first * sin + second * cos, x[..., 2 * pairs :]], -1)


@register
class Rope(Position):
    card = Card(
        name="rope",
        kind="position",
        summary="turns queries and keys by angles proportional to their positions, on any number of axes",
        source="RoFormer: Enhanced Transformer with Rotary Position Embedding, 2104.09864, 2021",
        symmetries=("shift",),
        extrapolates=False,
    )
    role = "rotate"

    def __init__(
        self,
        dim: int,
        *,
        base: float = 10000.0,
        fraction: float = 1.0,
        scaling: str | None = None,
        factor: float | None = None,
        trained: int = 8192,
        fast: float | None = None,
        slow: float = 1.0,
    ):
        """dim is the width of a head.

        scaling     "linear", "ntk", "yarn" or "llama3", for inputs `factor` times as long as the `trained` ones
        fast, slow  yarn, llama3: a pair that turns more than `fast` times in `trained` tokens is left as it is, one
                    that turns fewer than `slow` times is interpolated in full; fast is 32 for yarn, 4 for llama3

        Raises ValueError for a base not above 0, a fraction outside (0, 1], and scalings that don't fit."""
        super().__init__()
        if base <= 0 or not 0 < fraction <= 1:
            raise ValueError(f"rope: base must be above 0 and fraction in (0, 1], but they are {base}, {fraction}")
        self.dim, self.base, self.fraction = dim, base, fraction
        if int(dim * fraction) < 2:
            raise ValueError(f"rope: {fraction} of a head of {dim} channels is less than one pair; use wider heads")
        if scaling not in (None, *SCALINGS):
            raise ValueError(f"rope: scaling is one of {', '.join(SCALINGS)} or None, not {scaling!r}")
        if (scaling is None) != (factor is None):
            raise ValueError(
                "rope: scaling and factor say together how inputs grow, such as scaling='yarn', factor=4.0"
            )
        if factor is not None and factor < 1:
            raise ValueError(
                f"rope: factor is {factor}, but inputs longer than those trained on have one of at least 1"
            )
        if fast is not None and scaling not in FAST:
            raise ValueError(f"rope: fast belongs to scaling={' and '.join(FAST)}, not {scaling!r}")
        self.scaling, self.factor, self.trained = scaling, 1.0 if factor is None else factor, trained
        self.fast, self.slow = FAST.get(scaling, 0.0) if fast is None else fast, slow
        if scaling in FAST and not 0 < self.slow < self.fast:
            raise ValueError(f"rope: slow must lie between 0 and fast={self.fast}, but is {slow}")
        if scaling is not None:
            self.card = replace(self.card, extrapolates=True)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, N, H, K), positions (N, A) or (B, N, A) -> x turned. Raises ValueError where the axes are more than the
        pairs of channels."""
        axes = positions.shape[-1]
        turned = int(self.dim * self.fraction)
        d = turned // axes // 2 * 2
        if d == 0:
            raise ValueError(f"rope: {turned} channels of a head can't be shared by {axes} axes; use wider heads")
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        places = positions.to(wide)
        how = self.scaling, self.factor, self.trained, self.fast, self.slow
        theta, magnitude = frequencies(d, self.base, *how, like=places)
        angles = (places[..., None] * theta).unsqueeze(-3)  # (..., N, 1, A, d/2)
        if axes == 1:
            return turn(x, angles[..., 0, :], magnitude)
        parts = [turn(x[..., a * d : a * d + d], angles[..., a, :], magnitude) for a in range(axes)]
        return torch.cat([*parts, x[..., axes * d :]], -1)
