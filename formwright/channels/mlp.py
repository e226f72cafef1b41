"""The Transformer's channel mixer:  y = GELU(x W_1 + b_1) W_2 + b_2.

Attention Is All You Need, arXiv 1706.03762, 2017; Gaussian Error Linear Units (GELUs), arXiv 1606.08415, 2016.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, ChannelMixer, Cost, Layout, parameter_count
from formwright.parts import register


@register
class MLP(ChannelMixer):
    """Two linear maps with a GELU between them, of hidden width round(expansion * D): (B, N, D) -> (B, N, D)."""

    card = Card(
        name="mlp",
        kind="channel",
        summary="two linear maps with a GELU between them",
        source="Attention Is All You Need, arXiv 1706.03762, 2017",
    )

    def __init__(self, dim: int, *, expansion: float = 4.0, bias: bool = True):
        super().__init__(dim)
        self.hidden = max(1, round(expansion * dim))
        self.inner = nn.Linear(dim, self.hidden, bias=bias)
        self.out = nn.Linear(self.hidden, dim, bias=bias)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return self.out(F.gelu(self.inner(x)))

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=parameter_count(self), macs=2 * batch * layout.tokens * self.dim * self.hidden)
