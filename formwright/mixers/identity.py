"""Identity mixer: y = x. No token sees another; the baseline that every mixer must beat.

MetaFormer Baselines for Vision, arXiv 2210.13452, 2022 (IdentityFormer).
"""

from __future__ import annotations

from torch import Tensor

from formwright.contract import Card, Cost, Layout, TokenMixer
from formwright.parts import register


@register
class Identity(TokenMixer):
    """y = x: (B, N, D) -> (B, N, D), for any grid, padded and packed batches; its state is empty."""

    card = Card(
        name="identity",
        summary="mixes nothing: what the channel mixers reach alone",
        source="MetaFormer Baselines for Vision, arXiv 2210.13452, 2022",
        patterns=("self", "causal"),
        time="N",
        state="0",
        symmetries=("permutation",),
    )

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        return x.clone()

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> tuple[()]:
        if not self.causal:
            self.refuse("empty", "it was built with causal=False")
        return ()

    def extend(self, x: Tensor, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
        return x.clone(), state

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost()
