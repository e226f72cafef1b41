"""Forecast head: the next `horizon` steps of every variate.

    tokens="time"      y = W x_N + b                from the last token, all steps and variates at once
    tokens="variate"   y_v = W x_v + b              from each variate's token its own steps (iTransformer)
    normalise          y deviation + mean           of the raw window, undoing the embedding's normalisation

iTransformer: Inverted Transformers Are Effective for Time Series Forecasting, arXiv 2310.06625, 2023.
"""

from __future__ import annotations

from torch import Tensor, nn

from formwright.contract import Card, Cost, Head, Layout, parameter_count
from formwright.embeds.series import statistics
from formwright.heads.readout import check_pool, read_out, regression_loss, regression_scores
from formwright.parts import register


@register
class Forecast(Head):
    """(B, N, D) and the raw window (B, T, V) -> (B, horizon, V). Targets that are NaN are not scored.

    tokens says what the embedding's tokens are; pool (tokens="time" alone) what is read of them, by default the last.
    Raises ValueError where tokens="variate" and a token is not a variate, and where the window to undo the
    normalisation by is missing."""

    card = Card(
        name="forecast",
        kind="head",
        summary="the next steps of every variate of a series",
        source="iTransformer: Inverted Transformers Are Effective for Time Series Forecasting, arXiv 2310.06625, 2023",
    )

    def __init__(
        self,
        dim: int,
        *,
        horizon: int,
        variates: int,
        tokens: str = "time",
        pool: str = "last",
        normalise: bool = True,
    ):
        super().__init__()
        check_pool("forecast", pool)
        if tokens not in ("time", "variate"):
            raise ValueError(f"forecast: tokens is 'time' or 'variate', not {tokens!r}")
        self.dim, self.horizon, self.variates = dim, horizon, variates
        self.tokens, self.pool, self.normalise = tokens, pool, normalise
        self.project = nn.Linear(dim, horizon * variates if tokens == "time" else horizon)

    def forward(self, x: Tensor, layout: Layout, inputs: Tensor | None = None) -> Tensor:
        if self.tokens == "time":
            y = self.project(read_out(x, layout, self.pool, True, "forecast"))
            y = y.unflatten(-1, (self.horizon, self.variates))
        else:
            if layout.tokens != self.variates:
                raise ValueError(
                    f"forecast: tokens='variate' reads one token for each of {self.variates} variates, but there are "
                    f"{layout.tokens}; embed with series(tokens='variate'), or set tokens='time'"
                )
            y = self.project(x).transpose(1, 2)
        if not self.normalise:
            return y
        if inputs is None:
            raise ValueError("forecast: normalise=True needs the raw window; give inputs, or set normalise=False")
        mean, deviation = statistics(inputs)
        return y * deviation + mean

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return regression_loss(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, int]]:
        return regression_scores(outputs, targets)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        reads = 1 if self.tokens == "time" else layout.tokens
        return Cost(params=parameter_count(self), macs=batch * reads * self.project.weight.numel())
