"""Time-series embedding: tokens are steps of time, or variates.

    tokens="time"      x_i = W [u_{ip}, ..., u_{ip+p-1}] + b + e_i      `patch` steps of all variates make a token
    tokens="variate"   x_v = W [u_{1v}, ..., u_{Tv}] + b                the whole window of one variate is a token
    normalise          u = (inputs - mean) / sqrt(var + 1e-5)           of each window and variate, over its time

iTransformer: Inverted Transformers Are Effective for Time Series Forecasting, arXiv 2310.06625, 2023; the
normalisation, undone by the forecast head, as there (without learned scales): Reversible Instance Normalization for
Accurate Time-Series Forecasting against Distribution Shift, ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Embed, Layout, Unsupported, parameter_count
from formwright.embeds.tokens import embedded_position
from formwright.parts import register


@register
class Series(Embed):
    """Windows (B, T, V) of T = input_length steps of V variates, without NaN -> (B, N, D).

    N is T / patch with tokens="time", V with tokens="variate". position (tokens="time" alone) is "grid", a learned
    vector for each token; a part of role "embed"; or None. Raises ValueError for a patch that doesn't divide the
    window and for windows of another shape."""

    card = Card(
        name="series",
        kind="embed",
        summary="tokens of time steps, or of whole variates, of a multivariate series",
        source="iTransformer: Inverted Transformers Are Effective for Time Series Forecasting, arXiv 2310.06625, 2023",
    )
    rank = 1

    def __init__(
        self,
        dim: int,
        *,
        variates: int,
        input_length: int,
        tokens: str = "time",
        patch: int = 1,
        position: Callable | str | None = "grid",
        normalise: bool = True,
    ):
        super().__init__()
        if tokens not in ("time", "variate"):
            raise ValueError(f"series: tokens is 'time' or 'variate', not {tokens!r}")
        if patch < 1 or input_length % patch:
            raise ValueError(f"series: a window of {input_length} steps can't be cut by patch={patch}; take a divisor")
        if tokens == "variate" and patch != 1:
            raise ValueError("series: patch cuts time, but with tokens='variate' a whole window is one token")
        learned = isinstance(position, str)
        if learned and position != "grid":
            raise ValueError(f"series: position is 'grid', a position part or None, not {position!r}")
        self.dim, self.variates, self.input_length = dim, variates, input_length
        self.tokens, self.patch, self.normalise = tokens, patch, normalise
        timely = tokens == "time"
        self.length = input_length // patch if timely else variates
        self.project = nn.Linear(patch * variates if timely else input_length, dim)
        self.places = nn.Parameter(torch.randn(self.length, dim) * 0.02) if learned and timely else None
        self.position = None if learned or not timely else embedded_position("series", position, dim)

    def forward(self, inputs: Tensor, layout: Layout | None = None) -> tuple[Tensor, Layout]:
        if layout is not None and not layout.plain:
            raise Unsupported("series", "lengths and offsets", "windows of a series are all of input_length")
        layout = self.layout(tuple(inputs.shape[1:]))
        if self.normalise:
            mean, deviation = statistics(inputs)
            inputs = (inputs - mean) / deviation
        if self.tokens == "variate":
            return self.project(inputs.transpose(1, 2)), layout
        x = self.project(inputs.reshape(len(inputs), self.length, -1))
        if self.places is not None:
            x = x + self.places
        if self.position is not None:
            x = self.position.embed(x, layout.positions(x.device))
        return x, layout

    def layout(self, inputs: tuple[int, ...]) -> Layout:
        if inputs != (self.input_length, self.variates):
            raise ValueError(
                f"series: a window is ({self.input_length} steps, {self.variates} variates), but the input is {inputs}"
            )
        return Layout((self.length,))

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=parameter_count(self), macs=batch * layout.tokens * self.project.weight.numel())


def statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, V) -> mean and deviation (B, 1, V) over time, no gradient through either; a constant's deviation is small
    but not zero."""
    inputs = inputs.detach()
    return inputs.mean(1, keepdim=True), (inputs.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
