"""ISTA: one proximal gradient step of sparse coding in a dictionary D (D, D), CRATE's channel part.

    y = ReLU(x + eta D^T (x - D x) - eta lambda)

From the code z = x of the token x itself, a step of size eta down |x - D z|^2 / 2 + lambda |z|_1 over codes z >= 0:
the ReLU is the soft threshold of non-negative codes. y is the code itself, not a change to x: its skip connection is
inside. CRATE replaces the stream by it, `crate + plain(layernorm >> ista)`; `crate + ista` adds it to the stream, as
CRATE-alpha found better (2405.20299, 2024).
White-Box Transformers via Sparse Rate Reduction, arXiv 2306.01129, 2023.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, ChannelMixer, Cost, Layout, parameter_count
from formwright.parts import register


@register
class ISTA(ChannelMixer):
    """One step of sparse coding: (B, N, D) -> (B, N, D), outputs at least 0.

    step is eta, sparsity lambda. Raises ValueError for a step that is not above 0 or a sparsity below it."""

    card = Card(
        name="ista",
        kind="channel",
        summary="one proximal gradient step to a non-negative sparse code of the token in a learned dictionary",
        source="White-Box Transformers via Sparse Rate Reduction, arXiv 2306.01129, 2023",
    )

    def __init__(self, dim: int, *, step: float = 0.1, sparsity: float = 0.1):
        super().__init__(dim)
        if step <= 0 or sparsity < 0:
            raise ValueError(f"ista: step must be above 0 and sparsity at least 0, but they are {step}, {sparsity}")
        self.step, self.sparsity = step, sparsity
        self.dictionary = nn.Parameter(torch.empty(dim, dim))
        nn.init.kaiming_uniform_(self.dictionary)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        residual = x - F.linear(x, self.dictionary)
        return F.relu(x + self.step * F.linear(residual, self.dictionary.T) - self.step * self.sparsity)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=parameter_count(self), macs=2 * batch * layout.tokens * self.dim**2)
