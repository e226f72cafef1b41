"""Vector embedding:  x_t = W u_t + b + P_t,  a linear map of each token's own vector, plus a position where asked for.

What Can Transformers Learn In-Context? A Case Study of Simple Function Classes, arXiv 2208.01066, 2022, read prompts of
real vectors so. Unlike `series`, which normalises over its whole window, it lets no token see another.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Embed, Layout, parameter_count
from formwright.embeds.tokens import embedded_position
from formwright.parts import register


@register
class Vectors(Embed):
    """Real vectors (B, N, variates), one a token -> (B, N, D); `position` is a part of role "embed".

    Padded and packed batches come with a layout that says so. Raises ValueError for vectors of another width and for
    positions of another role."""

    card = Card(
        name="vectors",
        kind="embed",
        summary="a linear map of each token's own real vector",
        source="What Can Transformers Learn In-Context? A Case Study of Function Classes, arXiv 2208.01066, 2022",
    )
    rank = 1

    def __init__(self, dim: int, *, variates: int, position: Callable | None = None):
        super().__init__()
        if variates < 1:
            raise ValueError(f"vectors: variates is {variates}, but a vector has at least one number")
        self.dim, self.variates = dim, variates
        self.project = nn.Linear(variates, dim)
        self.position = embedded_position("vectors", position, dim)

    def forward(self, inputs: Tensor, layout: Layout | None = None) -> tuple[Tensor, Layout]:
        layout = layout or self.layout(tuple(inputs.shape[1:]))
        return self._embed(inputs, None if self.position is None else layout.positions(inputs.device)), layout

    def layout(self, inputs: tuple[int, ...]) -> Layout:
        self._check(inputs)
        return Layout((inputs[0],))

    def extend(self, inputs: Tensor, start: int) -> Tensor:
        places = None
        if self.position is not None:
            places = torch.arange(start, start + inputs.shape[1], device=inputs.device)[:, None]
        return self._embed(inputs, places)

    def _embed(self, inputs: Tensor, places: Tensor | None) -> Tensor:
        self._check(tuple(inputs.shape[1:]))
        x = self.project(inputs)
        return x if places is None else self.position.embed(x, places)

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or shape[1] != self.variates:
            raise ValueError(
                f"vectors: an input is (N tokens, {self.variates} numbers each), but this one is {shape}; "
                "set variates to the width of the vectors"
            )

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=parameter_count(self), macs=batch * layout.tokens * self.project.weight.numel())
