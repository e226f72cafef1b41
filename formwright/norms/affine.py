"""Affine:  y = x * g + b,  a scale and a shift of each channel, without statistics.

ResMLP: Feedforward Networks for Image Classification with Data-Efficient Training, 2105.03404, 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright.contract import Card, Norm
from formwright.parts import register


@register
class Affine(Norm):
    """Scales and shifts each channel: (..., D) -> (..., D)."""

    card = Card(
        name="affine",
        kind="norm",
        summary="scales and shifts channels, without statistics; what fused batch norms become",
        source="ResMLP, 2105.03404, 2021",
    )

    def __init__(self, dim: int):
        super().__init__(dim)
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.to(x.dtype) + self.bias.to(x.dtype)
