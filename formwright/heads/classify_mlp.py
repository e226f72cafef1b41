"""Classification by a hidden layer:  logits = W_2 norm(ReLU(W_1 r + b_1)^2) + b_2,  r read out of the tokens.

MetaFormer Baselines for Vision, 2210.13452, 2022, whose ConvFormer and CAFormer end so.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Head, Layout, parameter_count
from formwright.heads.lm import classification_loss, classification_scores
from formwright.heads.readout import check_pool, read_out
from formwright.norms.layernorm import LayerNorm
from formwright.parts import register


@register
class ClassifyMLP(Head):
    """Logits over `classes` through a hidden layer of expansion * D: (B, N, D) -> (B, classes); one row a sequence for
    packed batches. Targets (B,). pool as in `classify`."""

    card = Card(
        name="classify_mlp",
        kind="head",
        summary="logits of a class by a hidden layer with a squared ReLU and a layer norm",
        source="MetaFormer Baselines for Vision, 2210.13452, 2022",
    )

    def __init__(
        self,
        dim: int,
        *,
        classes: int,
        expansion: float = 4.0,
        eps: float = 1e-6,
        pool: str | None = None,
        causal: bool = False,
    ):
        super().__init__()
        check_pool("classify_mlp", pool)
        self.dim, self.classes, self.pool, self.reads_causal = dim, classes, pool, causal
        self.hidden = max(1, round(expansion * dim))
        self.inner = nn.Linear(dim, self.hidden)
        self.norm = LayerNorm(self.hidden, eps=eps)
        self.project = nn.Linear(self.hidden, classes)

    def forward(self, x: Tensor, layout: Layout, inputs: Tensor | None = None) -> Tensor:
        r = read_out(x, layout, self.pool, self.reads_causal, "classify_mlp")
        return self.project(self.norm(F.relu(self.inner(r)).square()))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return classification_loss(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, int]]:
        return classification_scores(outputs, targets)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(parameter_count(self), batch * self.hidden * (self.dim + self.classes))
