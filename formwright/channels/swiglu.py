"""SwiGLU:  y = (SiLU(x W_1) * x W_2) W_3.

GLU Variants Improve Transformer, arXiv 2002.05202, 2020.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, ChannelMixer, Cost, Layout, parameter_count
from formwright.parts import register


@register
class SwiGLU(ChannelMixer):
    """A gated linear unit with SiLU: (B, N, D) -> (B, N, D).

    The hidden width is round(expansion * D); left open, 8/3 D rounded up to a multiple of 8, which makes it as large as
    an `mlp` of expansion 4."""

    card = Card(
        name="swiglu",
        kind="channel",
        summary="a linear unit gated by a SiLU",
        source="GLU Variants Improve Transformer, arXiv 2002.05202, 2020",
    )

    def __init__(self, dim: int, *, expansion: float | None = None, bias: bool = False):
        super().__init__(dim)
        self.hidden = math.ceil(dim / 3) * 8 if expansion is None else max(1, round(expansion * dim))
        self.gate = nn.Linear(dim, self.hidden, bias=bias)
        self.value = nn.Linear(dim, self.hidden, bias=bias)
        self.out = nn.Linear(self.hidden, dim, bias=bias)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return self.out(F.silu(self.gate(x)) * self.value(x))

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=parameter_count(self), macs=3 * batch * layout.tokens * self.dim * self.hidden)
