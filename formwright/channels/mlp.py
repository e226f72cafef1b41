"""The Transformer's channel mixer:  y = GELU(x W_1 + b_1) W_2 + b_2,  or another function in the GELU's place.

Attention Is All You Need, arXiv 1706.03762, 2017; Gaussian Error Linear Units (GELUs), arXiv 1606.08415, 2016.
"""

from __future__ import annotations

from torch import Tensor, nn

from formwright.channels.activations import activation_of
from formwright.contract import Card, ChannelMixer, Cost, Layout, parameter_count
from formwright.parts import register


@register
class MLP(ChannelMixer):
    """Two linear maps of hidden width round(expansion * D) with an activation (gelu, gelu_tanh, relu, silu) between
    them: (B, N, D) -> (B, N, D). Raises ValueError for another activation."""

    card = Card(
        name="mlp",
        kind="channel",
        summary="two linear maps with a GELU, or another activation, between them",
        source="Attention Is All You Need, arXiv 1706.03762, 2017",
    )

    def __init__(self, dim: int, *, expansion: float = 4.0, activation: str = "gelu", bias: bool = True):
        super().__init__(dim)
        self.hidden = max(1, round(expansion * dim))
        self.activation = activation_of("mlp", activation)
        self.inner = nn.Linear(dim, self.hidden, bias=bias)
        self.out = nn.Linear(self.hidden, dim, bias=bias)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return self.out(self.activation(self.inner(x)))

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=parameter_count(self), macs=2 * batch * layout.tokens * self.dim * self.hidden)
