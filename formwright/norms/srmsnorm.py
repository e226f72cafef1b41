"""Simple root-mean-square norm:  y = x / sqrt(mean(x^2) + eps),  over the channels of each token, without parameters.

Scaling TransNormer to 175 Billion Parameters (TransNormerLLM), 2307.14995, 2023.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from formwright.contract import Card, Norm
from formwright.parts import register


@register
class SRMSNorm(Norm):
    """Divides the channels by their root mean square: (..., D) -> (..., D)."""

    card = Card(
        name="srmsnorm",
        kind="norm",
        summary="divides channels by their root mean square, without a scale",
        source="Scaling TransNormer to 175 Billion Parameters, 2307.14995, 2023",
    )

    def __init__(self, dim: int, *, eps: float = 1e-6):
        super().__init__(dim)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.dim,), eps=self.eps)
