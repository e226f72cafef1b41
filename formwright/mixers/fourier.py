"""Fourier mixer, without parameters:  y = Re( F_N x F_D ),  the Fourier transforms over tokens and channels.

FNet: Mixing Tokens with Fourier Transforms, arXiv 2105.03824, 2021. Tokens of a grid are read in row-major order.
"""

from __future__ import annotations

from torch import Tensor

from formwright.contract import Card, Cost, Layout, TokenMixer, per_sequence
from formwright.ops import mixing
from formwright.parts import register


@register
class Fourier(TokenMixer):
    """The real part of the two-dimensional Fourier transform of x (B, N, D), over tokens and channels, not normalised.

    Padded and packed batches are transformed sequence by sequence."""

    card = Card(
        name="fourier",
        summary="the real part of a Fourier transform over tokens and channels, nothing learned",
        source="FNet: Mixing Tokens with Fourier Transforms, arXiv 2105.03824, 2021",
        patterns=("self",),
        time="N log N",
        state="0",
    )

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if not layout.plain:
            return per_sequence(self, x, layout)
        return mixing.fourier(x, backend=self.backend)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(other_flops=mixing.fourier_flops(layout.tokens, self.dim, batch))
