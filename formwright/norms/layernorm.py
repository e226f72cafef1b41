"""Layer norm:  y = (x - mean x) / sqrt(var x + eps) * g + b,  over the channels of each token.

Layer Normalization, arXiv 1607.06450, 2016.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Norm
from formwright.parts import register


@register
class LayerNorm(Norm):
    """Centres the channels, divides them by their standard deviation, scales and shifts each: (..., D) -> (..., D).

    bias=False leaves out the shift."""

    card = Card(
        name="layernorm",
        kind="norm",
        summary="centres channels and divides them by their standard deviation",
        source="Layer Normalization, arXiv 1607.06450, 2016",
    )

    def __init__(self, dim: int, *, eps: float = 1e-5, bias: bool = True):
        super().__init__(dim)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, (self.dim,), self.weight.to(x.dtype), bias, self.eps)
