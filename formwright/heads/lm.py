"""Language-model head:  logits = x W^T  at every token; the loss is the cross-entropy of the next one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Head, Layout
from formwright.parts import register

IGNORED = -100


@register
class LM(Head):
    """Logits over the vocabulary: (B, N, D) -> (B, N, vocab); makes the stack causal. Targets (B, N) of -100 are not
    scored. tied=True shares `weight` (vocab, D) with the token embedding."""

    card = Card(name="lm", kind="head", summary="logits of the next token at every token")
    causal = True

    def __init__(self, dim: int, *, vocab: int, tied: bool = False):
        super().__init__()
        self.dim, self.vocab, self.tied = dim, vocab, tied
        self.weight = nn.Parameter(torch.randn(vocab, dim) * 0.02)

    def forward(self, x: Tensor, layout: Layout, inputs: Tensor | None = None) -> Tensor:
        return F.linear(x, self.weight)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return classification_loss(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, int]]:
        return classification_scores(outputs, targets)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=self.weight.numel(), macs=batch * layout.tokens * self.weight.numel())


def classification_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy over the targets that are not -100; zero where all are. Computed in float32."""
    total = F.cross_entropy(outputs.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def classification_scores(outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, int]]:
    """Summed cross-entropy and the number of right guesses, with the number of targets that are not -100."""
    outputs, targets = outputs.flatten(0, -2).float(), targets.flatten()
    count = int((targets != IGNORED).sum())
    total = F.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="sum")
    return {"loss": (total, count), "accuracy": ((outputs.argmax(-1) == targets).sum(), count)}
