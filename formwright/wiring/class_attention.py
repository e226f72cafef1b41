"""class_attention: a class token joins after the stack, and a few layers in which it alone reads all tokens.

    z = [c; x],   c learned
    u = norm(z),    z = z + g_1 * [attend(u_c, u); u_x]             for each of `depth` layers
    w = norm'(z),   z = w + [g_2 * mlp(w_c); w_x]

The patch tokens pass through the norms alone, as in XCiT's code: c reads them, they read nothing. Work is linear in N.
Class attention: Going Deeper with Image Transformers (CaiT), 2103.17239, 2021; this form: XCiT, 2106.09681, 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from formwright.channels.mlp import MLP
from formwright.contract import Card, Cost, Layout, Norm, Unsupported, Wiring, parameter_count
from formwright.mixers.attention import Attention
from formwright.norms.rmsnorm import RMSNorm
from formwright.parts import register

ALONE = Layout((1,))


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int | None, norm: Callable[[int], Norm], init: float):
        super().__init__()
        self.norm, self.norm_mlp = norm(dim), norm(dim)
        self.attention, self.mlp = Attention(dim, heads=heads, bias=True), MLP(dim)
        self.scale, self.scale_mlp = (nn.Parameter(torch.full((dim,), float(init))) for _ in range(2))

    def forward(self, z: Tensor) -> Tensor:
        u = self.norm(z)
        read = self.attention(u[:, :1], ALONE, u, Layout((u.shape[1],)))
        w = self.norm_mlp(z + self.scale * torch.cat([read, u[:, 1:]], 1))
        return w + torch.cat([self.scale_mlp * self.mlp(w[:, :1], ALONE), w[:, 1:]], 1)


@register
class ClassAttention(Wiring):
    card = Card(
        name="class_attention",
        kind="wiring",
        summary="a class token that joins late and alone reads all tokens",
        source="Going Deeper with Image Transformers, 2103.17239, 2021; XCiT, 2106.09681, 2021",
    )
    stacks = ()

    def __init__(
        self,
        dim: int,
        *,
        depth: int = 2,
        heads: int | None = None,
        norm: Callable[[int], Norm] = RMSNorm,
        init: float = 1.0,
        causal: bool = False,
    ):
        """
        depth  layers
        heads  of their attention
        init   of the scales g_1 and g_2

        Raises ValueError or Unsupported for what doesn't fit."""
        super().__init__()
        if causal:
            raise Unsupported("class_attention", "causal=True", "its class token reads all tokens")
        if depth < 1:
            raise ValueError(f"class_attention: depth={depth} must be at least 1")
        self.dim = self.dim_out = dim
        self.cls = nn.Parameter(torch.randn(dim) * 0.02)
        self.layers = nn.ModuleList(_Layer(dim, heads, norm, init) for _ in range(depth))

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        if not layout.plain or layout.coords is not None or layout.prefix:
            raise Unsupported("class_attention", "padded, packed, irregular or prefix tokens", "it needs a full grid")
        z = torch.cat([self.cls.to(x.dtype).expand(len(x), 1, -1), x], 1)
        for layer in self.layers:
            z = layer(z)
        return z, self.after(layout)

    def after(self, layout: Layout) -> Layout:
        return replace(layout, prefix=1)

    def inner(self, layout: Layout) -> list[tuple[str, nn.Module, Layout]]:
        return [row for layer in self.layers for row in (("", layer.attention, ALONE), ("", layer.mlp, ALONE))]

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        total = Cost()
        for layer in self.layers:
            total = total + layer.attention.cost(ALONE, batch, self.after(layout)) + layer.mlp.cost(ALONE, batch)
        return Cost(parameter_count(self), total.macs)
