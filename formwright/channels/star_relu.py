"""StarReLU:  y = (s ReLU(x W_1)^2 + b) W_2,  s and b one learned number each.

s = 0.8944 and b = -0.4472 give a standard normal input mean 0 and variance 1; the paper's models learn both, from 1
and 0. MetaFormer Baselines for Vision, arXiv 2210.13452, 2022.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, ChannelMixer, Cost, Layout, parameter_count
from formwright.parts import register


class Activation(nn.Module):
    """s ReLU(x)^2 + b, for numbers of any shape."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.relu(x).square() + self.shift


@register
class StarReLU(ChannelMixer):
    """Two linear maps with a StarReLU between them, of hidden width round(expansion * D): (B, N, D) -> (B, N, D)."""

    card = Card(
        name="star_relu",
        kind="channel",
        summary="two linear maps with a squared ReLU between them, scaled and shifted by learned numbers",
        source="MetaFormer Baselines for Vision, arXiv 2210.13452, 2022",
    )

    def __init__(self, dim: int, *, expansion: float = 4.0, bias: bool = False):
        super().__init__(dim)
        self.hidden = max(1, round(expansion * dim))
        self.inner = nn.Linear(dim, self.hidden, bias=bias)
        self.activation = Activation()
        self.out = nn.Linear(self.hidden, dim, bias=bias)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return self.out(self.activation(self.inner(x)))

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=parameter_count(self), macs=2 * batch * layout.tokens * self.dim * self.hidden)
