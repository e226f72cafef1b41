"""Time2Vec: one linear and otherwise periodic functions of time with learned frequencies, added to the tokens.

    t2v(p)_0 = w_0 . p + b_0,    t2v(p)_i = sin(w_i . p + b_i),  i = 1 .. D-1;    x_n <- x_n + t2v(p_n)

p are the token's coordinates, whole or real (time stamps); w (A, D) and b are learned. Frequencies begin geometric,
from 1 down to 1/10000, phases uniform in a full turn, and the linear function begins at the lowest frequency. The
paper leaves open how a model takes the vector in; here it is added, as other embedded positions are.
Time2Vec: Learning a Vector Representation of Time, 1907.05321, 2019.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from formwright.contract import Card, Position, Unsupported
from formwright.parts import register


@register
class Time2Vec(Position):
    card = Card(
        name="time2vec",
        kind="position",
        summary="adds learned sines of time, and time itself, to the tokens",
        source="Time2Vec: Learning a Vector Representation of Time, 1907.05321, 2019",
        extrapolates=False,
    )
    role = "embed"

    def __init__(self, dim: int, *, axes: int = 1):
        super().__init__()
        self.axes = axes
        frequency = (10000.0 ** -torch.linspace(0, 1, dim)).flip(0)
        self.frequency = nn.Parameter(frequency.expand(axes, dim).clone())
        self.phase = nn.Parameter(torch.rand(dim) * 2 * math.pi)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, N, D), positions (N, A) or (B, N, A) -> x with t2v added. Raises Unsupported for other axes."""
        if positions.shape[-1] != self.axes:
            found = positions.shape[-1]
            raise Unsupported(
                "time2vec", f"{found} axes", f"it was built for {self.axes}; write time2vec(axes={found})"
            )
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        angles = (positions.to(wide)[..., None] * self.frequency.to(wide)).sum(-2) + self.phase.to(wide)
        return x + torch.cat([angles[..., :1], angles[..., 1:].sin()], -1).to(x.dtype)
