"""Classification head:  logits = W r + b,  r one vector read out of the tokens."""

from __future__ import annotations

from torch import Tensor, nn

from formwright.contract import Card, Cost, Head, Layout, parameter_count
from formwright.heads.lm import classification_loss, classification_scores
from formwright.heads.readout import check_pool, read_out
from formwright.parts import register


@register
class Classify(Head):
    """Logits over `classes`: (B, N, D) -> (B, classes); one row a sequence for packed batches. Targets (B,).

    pool is "mean" over valid tokens, "last" valid token or "cls", the class token; left out, the last token of a causal
    stack, else the class token where there is one, else the mean."""

    card = Card(name="classify", kind="head", summary="logits of a class, from one vector read out of the tokens")

    def __init__(self, dim: int, *, classes: int, pool: str | None = None, causal: bool = False):
        super().__init__()
        check_pool("classify", pool)
        self.dim, self.classes, self.pool, self.reads_causal = dim, classes, pool, causal
        self.project = nn.Linear(dim, classes)

    def forward(self, x: Tensor, layout: Layout, inputs: Tensor | None = None) -> Tensor:
        return self.project(read_out(x, layout, self.pool, self.reads_causal, "classify"))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return classification_loss(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, int]]:
        return classification_scores(outputs, targets)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=parameter_count(self), macs=batch * self.project.weight.numel())
