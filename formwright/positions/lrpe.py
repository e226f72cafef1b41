"""Linearised relative positions: a unitary map of queries and keys that moves on with position.

    q_s -> W_s q_s,  k_t -> W_t k_t,   W_s = Lambda(s) P,   so that scores hold W_s^T W_t = P^T Lambda(t - s) P

Lambda turns pair f of the channels by s theta_f, with learned theta, at first base^(-2f/K); P is the reflection I - 2
u u^T / |u|^2 at a learned u (Householder) or the identity, which leaves RoPE with learned frequencies. The map acts
on queries and keys alone, so that linear attention can have it as well (the mixer `lightning` holds the paper's
complex form itself). On A axes pair f follows axis f mod A; coordinates may be reals.
Linearized Relative Positional Encoding, 2307.09270, 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright.contract import Card, Position
from formwright.parts import register
from formwright.positions.rope import turn

MAPS = ("householder", "identity")


@register
class Lrpe(Position):
    card = Card(
        name="lrpe",
        kind="position",
        summary="turns queries and keys by learned angles, after a learned reflection",
        source="Linearized Relative Positional Encoding, 2307.09270, 2023",
        symmetries=("shift",),
        extrapolates=False,
    )
    role = "rotate"

    def __init__(self, dim: int, *, base: float = 10000.0, reflection: str = "householder"):
        """dim is the width of a head. Raises ValueError for odd heads, a base not above 0, an unknown reflection."""
        super().__init__()
        if dim % 2:
            raise ValueError(f"lrpe: it turns pairs of channels, but heads have {dim}; make head_dim even")
        if base <= 0:
            raise ValueError(f"lrpe: base must be above 0, but is {base}")
        if reflection not in MAPS:
            raise ValueError(f"lrpe: reflection is one of {', '.join(MAPS)}, not {reflection!r}")
        self.dim = dim
        self.theta = nn.Parameter(base ** -(torch.arange(0, dim, 2) / dim))
        self.mirror = nn.Parameter(torch.randn(dim)) if reflection == "householder" else None

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, N, H, K), positions (N, A) or (B, N, A) -> x reflected and turned."""
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        axis = torch.arange(self.dim // 2, device=x.device) % positions.shape[-1]
        angles = positions.to(wide)[..., axis] * self.theta.to(wide)
        if self.mirror is not None:
            u = self.mirror.to(wide)
            u = (u / u.norm()).to(x.dtype)
            x = x - 2 * (x * u).sum(-1, keepdim=True) * u
        return turn(x, angles.unsqueeze(-2))
