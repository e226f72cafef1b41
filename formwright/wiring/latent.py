"""latent(stack, tokens=L): read N tokens into L latents, run the stack there, write back.

    z = z_0 + attend(norm(z_0), x),   z = stack(z),   y = x + attend(norm(x), norm(z))

Jaegle et al., Perceiver IO, 2107.14795, 2021. Cost N L instead of N^2. The latents see every token, so it stands in
two-directional stacks alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, Unsupported, Wiring, parameter_count
from formwright.mixers.attention import Attention
from formwright.norms.rmsnorm import RMSNorm
from formwright.parts import register


@register
class Latent(Wiring):
    card = Card(
        name="latent",
        kind="wiring",
        summary="runs a stack on a few learned latents that read all tokens and write back",
        source="Perceiver IO: A General Architecture for Structured Inputs & Outputs, 2107.14795, 2021",
    )

    @classmethod
    def inside(cls, stack: str, flow: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        if flow.get("causal"):
            raise Unsupported("latent", "causal=True", "its latents read tokens that come after")
        return {**flow, "length": options.get("tokens", 64), "rank": 1}

    def __init__(self, dim: int, stack: Wiring, *, tokens: int = 64, heads: int | None = None):
        super().__init__()
        if tokens < 1:
            raise ValueError(f"latent: tokens is {tokens}, but must be at least 1")
        if stack.dim_out != dim:
            raise ValueError(f"latent: the stack turns width {dim} into {stack.dim_out}; it must keep it")
        self.dim = self.dim_out = dim
        self.latents = nn.Parameter(torch.randn(tokens, dim) * 0.02)
        self.read, self.write = Attention(dim, heads=heads), Attention(dim, heads=heads)
        self.norm_latents, self.norm_read = RMSNorm(dim), RMSNorm(dim)
        self.norm_tokens, self.norm_write = RMSNorm(dim), RMSNorm(dim)
        self.stack = stack

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        if layout.offsets is not None:
            raise Unsupported("latent", "packed sequences", "their tokens would share latents")
        place = Layout((len(self.latents),))
        z = self.latents.repeat(x.shape[0], 1, 1)
        z = z + self.read(self.norm_latents(z), place, self.norm_read(x), layout)
        z, after = self.stack(z, place, context, context_layout)
        return x + self.write(self.norm_tokens(x), layout, self.norm_write(z), after), layout

    def inner(self, layout: Layout) -> list[tuple[str, nn.Module, Layout]]:
        return [("latents", self.stack, Layout((len(self.latents),)))]

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        place = Layout((len(self.latents),))
        after = self.stack.after(place)
        total = self.stack.cost(place, batch)
        total = total + self.read.cost(place, batch, layout) + self.write.cost(layout, batch, after)
        return Cost(parameter_count(self), total.macs, total.state_bytes, total.other_flops)
