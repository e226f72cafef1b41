"""Completion head:  y_t = W x_t + b  at every token, read from both sides; the loss is the mean squared error where a
value is asked for. With queries as the target of an encoder-decoder it tells values at places: Perceiver IO: A General
Architecture for Structured Inputs & Outputs, arXiv 2107.14795, 2021.
"""

from __future__ import annotations

from torch import Tensor, nn

from formwright.contract import Card, Cost, Head, Layout, parameter_count
from formwright.heads.readout import regression_loss, regression_scores
from formwright.parts import register


@register
class Completion(Head):
    """`outputs` numbers at every token: (B, N, D) -> (B, N, outputs), unlike `values` without making the stack causal.
    Targets (B, N, outputs), of which NaN are not scored. Raises ValueError for outputs below 1."""

    card = Card(
        name="completion",
        kind="head",
        summary="real numbers at every token, read from both sides",
        source="Perceiver IO: A General Architecture for Structured Inputs & Outputs, arXiv 2107.14795, 2021",
    )

    def __init__(self, dim: int, *, outputs: int = 1):
        super().__init__()
        if outputs < 1:
            raise ValueError(f"completion: outputs is {outputs}, but at least one number is predicted")
        self.dim, self.outputs = dim, outputs
        self.project = nn.Linear(dim, outputs)

    def forward(self, x: Tensor, layout: Layout, inputs: Tensor | None = None) -> Tensor:
        return self.project(x)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return regression_loss(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, int]]:
        return regression_scores(outputs, targets)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=parameter_count(self), macs=batch * layout.tokens * self.project.weight.numel())
