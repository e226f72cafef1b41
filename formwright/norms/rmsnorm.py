"""Root-mean-square norm:  y = x / sqrt(mean(x^2) + eps) * g,  over the channels of each token.

Root Mean Square Layer Normalization, arXiv 1910.07467, 2019.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Norm
from formwright.parts import register


@register
class RMSNorm(Norm):
    """Divides the channels by their root mean square and scales each: (..., D) -> (..., D)."""

    card = Card(
        name="rmsnorm",
        kind="norm",
        summary="divides channels by their root mean square",
        source="Root Mean Square Layer Normalization, arXiv 1910.07467, 2019",
    )

    def __init__(self, dim: int, *, eps: float = 1e-6):
        super().__init__(dim)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.dim,), self.weight.to(x.dtype), self.eps)
