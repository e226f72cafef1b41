"""Squared ReLU:  y = ReLU(x W_1)^2 W_2.

Primer: Searching for Efficient Transformers for Language Modeling, arXiv 2109.08668, 2021.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, ChannelMixer, Cost, Layout, parameter_count
from formwright.parts import register


@register
class ReLU2(ChannelMixer):
    """Two linear maps with the square of a ReLU between them, of hidden width round(expansion * D):
    (B, N, D) -> (B, N, D)."""

    card = Card(
        name="relu2",
        kind="channel",
        summary="two linear maps with a squared ReLU between them",
        source="Primer: Searching for Efficient Transformers for Language Modeling, arXiv 2109.08668, 2021",
    )

    def __init__(self, dim: int, *, expansion: float = 4.0, bias: bool = False):
        super().__init__(dim)
        self.hidden = max(1, round(expansion * dim))
        self.inner = nn.Linear(dim, self.hidden, bias=bias)
        self.out = nn.Linear(self.hidden, dim, bias=bias)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return self.out(F.relu(self.inner(x)).square())

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=parameter_count(self), macs=2 * batch * layout.tokens * self.dim * self.hidden)
