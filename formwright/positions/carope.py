"""Context-aware rotary positions: every token says, for each head, how far it moves the phases on.

    f(x_t)_h = 1 / (1 + softplus(w_h . x_t + b_h))                          in (0, 1)
    phi_h,i(n) = sum_{t <= n} f(x_t)_h^i,   i = 0 .. K/2 - 1                pair i of head h is turned by phi_h,i(n)

Where f is the constant base^(-2/K) this is RoPE, phi_i(n) = n base^(-2i/K), and so it begins: b has that value and w
is 0. The paper leaves the bias out of its equation and states the beginning alone. A score sees the tokens between
its query and its key, whatever stands before them: moving a text on changes nothing. Queries of a group share the
phases of its key head.
Context-aware Rotary Position Embedding, 2507.23083, 2025.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, Position, Unsupported, element_size, parameter_count
from formwright.parts import register
from formwright.positions.rope import turn


@register
class Carope(Position):
    """Phases are kept in float32 at least. Packed sequences go on where the last one ended, which no score sees."""

    card = Card(
        name="carope",
        kind="position",
        summary="turns queries and keys by phases that each token moves on by an amount of its own, RoPE at first",
        source="Context-aware Rotary Position Embedding, 2507.23083, 2025",
        symmetries=("shift",),
        extrapolates=True,
    )
    role = "rotate"
    contextual = True

    def __init__(self, dim: int, heads: int | None = None, width: int | None = None, *, base: float = 10000.0):
        """dim is the width of a head, heads the number of key heads, width that of the tokens. Raises Unsupported for a
        mixer that doesn't name the last two, ValueError for odd heads and a base not above 1."""
        super().__init__()
        if heads is None or width is None:
            reason = "its phases depend on the tokens, which the mixer must hand it; attention does"
            raise Unsupported("carope", "a mixer that gives it places alone", reason)
        if dim % 2:
            raise ValueError(f"carope: it turns pairs of channels, but heads have {dim}; make head_dim even")
        if base <= 1:
            raise ValueError(f"carope: base must be above 1, but is {base}")
        self.dim, self.heads, self.base = dim, heads, base
        self.speed = nn.Linear(width, heads)
        softplus = base ** (2 / dim) - 1  # 1 / f - 1 at the beginning
        nn.init.zeros_(self.speed.weight)
        nn.init.constant_(self.speed.bias, softplus + math.log(-math.expm1(-softplus)))

    def start(self, batch: int, like: Tensor) -> Tensor:
        """Phases of 0 (B, G K/2)."""
        return like.new_zeros(batch, self.heads * self.dim // 2, dtype=torch.promote_types(like.dtype, torch.float32))

    def coordinates(self, x: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, N, D), phases before (B, G K/2) -> phases (B, N, G, K/2), the last ones (B, G K/2)."""
        wide = torch.promote_types(x.dtype, torch.float32)
        logs = -torch.log1p(F.softplus(self.speed(x).to(wide)))
        powers = torch.arange(self.dim // 2, dtype=wide, device=x.device)
        phases = (logs[..., None] * powers).exp().cumsum(1)
        if before is not None:
            phases = phases + before.unflatten(-1, (self.heads, -1)).unsqueeze(1)
        return phases, phases[:, -1].flatten(1)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, N, H, K), phases (B, N, G, K/2) that `coordinates` gave, H a multiple of G -> x turned."""
        return turn(x, positions.repeat_interleave(x.shape[2] // self.heads, 2))

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        """Of `coordinates`; the state is where the tokens end."""
        kept = batch * self.heads * (self.dim // 2) * max(4, element_size(self))
        return Cost(parameter_count(self), batch * layout.tokens * self.speed.weight.numel(), kept)
