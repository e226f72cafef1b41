"""Language-model head:  logits = x W^T  at every token; the loss is the cross-entropy of the next one.

scaled: x W^T / sqrt(D), as T5 has it with tied weights: 1910.10683, 2019.
cap:    c tanh(logits / c), as in RecurrentGemma, 2404.07839, 2024.
"""

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
    scored. tied=True shares `weight` (vocab, D) with the token embedding; scaled=True divides logits by sqrt(D); cap
    bends them so that they stay between -cap and cap. Raises ValueError for a cap not above 0."""

    card = Card(name="lm", kind="head", summary="logits of the next token at every token")
    causal = True

    def __init__(self, dim: int, *, vocab: int, tied: bool = False, scaled: bool = False, cap: float | None = None):
        super().__init__()
        if cap is not None and cap <= 0:
            raise ValueError(f"lm: cap is {cap}, but logits are kept below something above 0")
        self.dim, self.vocab, self.tied, self.cap = dim, vocab, tied, cap
        self.scale = dim**-0.5 if scaled else 1.0
        self.weight = nn.Parameter(torch.randn(vocab, dim) * 0.02)

    def forward(self, x: Tensor, layout: Layout, inputs: Tensor | None = None) -> Tensor:
        logits = F.linear(x if self.scale == 1 else x * self.scale, self.weight)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

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
