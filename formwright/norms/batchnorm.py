"""Batch norm:  y = (x - m) / sqrt(v + eps) * g + b,  m and v over all tokens of a training batch, in evaluation over
past batches: m <- m + momentum (m_batch - m), v likewise by the unbiased variance.

Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift, 1502.03167, 2015.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright.contract import Card, Norm
from formwright.parts import register


@register
class BatchNorm(Norm):
    """Centres and scales each channel by statistics of the batch: (..., D) -> (..., D).

    In a causal stack the statistics of a training batch let tokens see later ones; evaluation and decoding don't."""

    card = Card(
        name="batchnorm",
        kind="norm",
        summary="centres and scales each channel by the statistics of training batches",
        source="Batch Normalization, 1502.03167, 2015",
    )
    batched = True

    def __init__(self, dim: int, *, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__(dim)
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.mean, self.variance
        if self.training:
            tokens = x.flatten(0, -2).to(torch.promote_types(x.dtype, torch.float32))
            variance, mean = torch.var_mean(tokens, 0, correction=0)
            with torch.no_grad():
                unbiased = variance * len(tokens) / max(len(tokens) - 1, 1)
                self.mean.lerp_(mean.to(self.mean.dtype), self.momentum)
                self.variance.lerp_(unbiased.to(self.variance.dtype), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return x * scale.to(x.dtype) + (self.bias - mean * scale).to(x.dtype)
