"""GEGLU:  y = (GELU(x W_1 + b_1) * (x W_2 + b_2)) W_3 + b_3.

GLU Variants Improve Transformer, arXiv 2002.05202, 2020. T5 1.1, Griffin and Gemma use it, with the GELU's tanh form.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from formwright.channels.activations import activation_of
from formwright.contract import Card, ChannelMixer, Cost, Layout, parameter_count
from formwright.parts import register


@register
class GEGLU(ChannelMixer):
    """A gated linear unit with GELU: (B, N, D) -> (B, N, D); activation="gelu" takes the exact one.

    The hidden width is round(expansion * D); left open, that of `swiglu`. Raises ValueError for an activation it does
    not know."""

    card = Card(
        name="geglu",
        kind="channel",
        summary="a linear unit gated by a GELU",
        source="GLU Variants Improve Transformer, arXiv 2002.05202, 2020",
    )

    def __init__(self, dim: int, *, expansion: float | None = None, activation: str = "gelu_tanh", bias: bool = False):
        super().__init__(dim)
        self.hidden = math.ceil(dim / 3) * 8 if expansion is None else max(1, round(expansion * dim))
        self.activation = activation_of("geglu", activation)
        self.gate = nn.Linear(dim, self.hidden, bias=bias)
        self.value = nn.Linear(dim, self.hidden, bias=bias)
        self.out = nn.Linear(self.hidden, dim, bias=bias)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return self.out(self.activation(self.gate(x)) * self.value(x))

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=parameter_count(self), macs=3 * batch * layout.tokens * self.dim * self.hidden)
