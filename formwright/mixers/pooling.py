"""Pooling mixer, without parameters:  y_t = mean of x over the `window` tokens around t, minus x_t.

Along every axis of the grid; places outside it don't count in the mean. The token is subtracted because the block adds
it again. Causal: the mean of the last `window` tokens.

MetaFormer Is Actually What You Need for Vision, arXiv 2111.11418, 2021 (PoolFormer).
"""

from __future__ import annotations

import torch
from torch import Tensor

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, per_sequence
from formwright.ops import mixing
from formwright.parts import register


@register
class Pooling(TokenMixer):
    """Average pooling over `window` tokens along each axis, minus the input: (B, N, D) -> (B, N, D).

    Prefix tokens count as a part of a sequence, but have no place in a grid of two or more axes, which is refused.
    Raises ValueError for an even window, unless causal."""

    card = Card(
        name="pooling",
        summary="the average of a token's neighbours minus the token",
        source="MetaFormer Is Actually What You Need for Vision, arXiv 2111.11418, 2021",
        patterns=("self", "causal"),
        time="N",
        state="1",
    )

    def __init__(self, dim: int, *, causal: bool = False, window: int = 3):
        super().__init__(dim, causal=causal)
        if window < 1 or (not causal and window % 2 == 0):
            raise ValueError(f"pooling: window is {window}, but must be odd so that it has a centre; take {window + 1}")
        self.window = window

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        grid = _grid(self, layout)
        valid = layout.valid(x.device)
        y = mixing.pooling(
            x.unflatten(1, grid),
            self.window,
            causal=self.causal,
            valid=None if valid is None else valid.unflatten(1, grid),
            backend=self.backend,
        )
        return y.flatten(1, -2)

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> tuple[Tensor, int]:
        """The last window-1 inputs, and how many of them there are."""
        if not self.causal:
            self.refuse("empty", "it was built with causal=False")
        shape = (batch, self.window - 1, self.dim)
        return (torch.zeros(shape) if like is None else like.new_zeros(shape)), 0

    def extend(self, x: Tensor, state: tuple[Tensor, int]) -> tuple[Tensor, tuple[Tensor, int]]:
        last, count = state
        seen = torch.cat([last[:, self.window - 1 - count :].to(x.dtype), x], 1)
        y = mixing.pooling(seen, self.window, causal=True, backend=self.backend)[:, count:]
        count = min(self.window - 1, seen.shape[1])
        last = torch.cat([last.to(x.dtype), x], 1)[:, x.shape[1] :]
        return y, (last.clone(), count)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        grid = _grid(self, layout)
        return Cost(
            state_bytes=batch * (self.window - 1) * self.dim * element_size(self) if self.causal else 0,
            other_flops=mixing.pooling_flops(grid, self.dim, self.window, batch),
        )


def _grid(mixer: TokenMixer, layout: Layout) -> tuple[int, ...]:
    if len(layout.grid) == 1 or mixer.causal:
        return (layout.tokens,)
    if layout.prefix:
        mixer.refuse("prefix", f"class tokens have no place in a grid of {len(layout.grid)} axes; set cls=False")
    return layout.grid
