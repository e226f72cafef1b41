"""Regression head:  y = W r + b,  r one vector read out of the tokens; the loss is the mean squared error."""

from __future__ import annotations

from torch import Tensor, nn

from formwright.contract import Card, Cost, Head, Layout, parameter_count
from formwright.heads.readout import check_pool, read_out, regression_loss, regression_scores
from formwright.parts import register


@register
class Regress(Head):
    """`outputs` numbers: (B, N, D) -> (B, outputs); one row a sequence for packed batches. Targets (B, outputs), of
    which NaN are not scored. pool as in `classify`."""

    card = Card(name="regress", kind="head", summary="real numbers, from one vector read out of the tokens")

    def __init__(self, dim: int, *, outputs: int = 1, pool: str | None = None, causal: bool = False):
        super().__init__()
        check_pool("regress", pool)
        self.dim, self.outputs, self.pool, self.reads_causal = dim, outputs, pool, causal
        self.project = nn.Linear(dim, outputs)

    def forward(self, x: Tensor, layout: Layout, inputs: Tensor | None = None) -> Tensor:
        return self.project(read_out(x, layout, self.pool, self.reads_causal, "regress"))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return regression_loss(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, int]]:
        return regression_scores(outputs, targets)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=parameter_count(self), macs=batch * self.project.weight.numel())
