"""Masked-language-model head:  logits = LayerNorm(GELU(x W_1 + b_1)) W^T + b  of the token that a mask hides.

BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding, arXiv 1810.04805, 2018.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Head, Layout, parameter_count
from formwright.heads.lm import classification_loss, classification_scores
from formwright.parts import register


@register
class MaskedLM(Head):
    """Logits over the vocabulary: (B, N, D) -> (B, N, vocab), from both sides. Targets (B, N) are the tokens hidden,
    -100 where none is. tied=True shares `weight` (vocab, D) with the token embedding."""

    card = Card(
        name="masked_lm",
        kind="head",
        summary="logits of hidden tokens, read from both sides",
        source="BERT: Pre-training of Deep Bidirectional Transformers, arXiv 1810.04805, 2018",
    )

    def __init__(self, dim: int, *, vocab: int, tied: bool = False, eps: float = 1e-12):
        super().__init__()
        self.dim, self.vocab, self.tied = dim, vocab, tied
        self.inner = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.weight = nn.Parameter(torch.randn(vocab, dim) * 0.02)
        self.bias = nn.Parameter(torch.zeros(vocab))

    def forward(self, x: Tensor, layout: Layout, inputs: Tensor | None = None) -> Tensor:
        return F.linear(self.norm(F.gelu(self.inner(x))), self.weight, self.bias)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return classification_loss(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, int]]:
        return classification_scores(outputs, targets)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        macs = batch * layout.tokens * (self.inner.weight.numel() + self.weight.numel())
        return Cost(params=parameter_count(self), macs=macs)
