"""Token MLP: two dense maps over the tokens with a GELU between them, the same for every channel.

    Y^T = GELU(X^T W_1 + b_1) W_2 + b_2           W_1: (length, hidden),  W_2: (hidden, length)

What MLP-Mixer has in the place of attention; no weight depends on the input.
MLP-Mixer: An all-MLP Architecture for Vision, 2105.01601, 2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, parameter_count, per_sequence
from formwright.mixers.grids import pieces
from formwright.parts import register


@register
class TokenMLP(TokenMixer):
    """An MLP over up to `length` tokens, of `hidden` units (D / 2 without it): (B, N, D) -> (B, N, D).

    Fewer tokens use the first N rows of W_1 and columns of W_2; grids are read in row-major order, prefix tokens first.
    Raises ValueError for more tokens than `length`."""

    card = Card(
        name="token_mlp",
        summary="an MLP over the tokens of each channel, the same for every input",
        source="MLP-Mixer: An all-MLP Architecture for Vision, 2105.01601, 2021",
        patterns=("self",),
        time="N",
        state="0",
    )

    def __init__(self, dim: int, *, causal: bool = False, length: int = 512, hidden: int | None = None):
        super().__init__(dim, causal=causal)
        self.length, self.hidden = length, max(1, dim // 2) if hidden is None else hidden
        if min(self.length, self.hidden) < 1:
            raise ValueError(f"token_mlp: length={length} and hidden={hidden} must be at least 1")
        self.inner = nn.Linear(self.length, self.hidden)
        self.out = nn.Linear(self.hidden, self.length)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if not layout.plain:
            return per_sequence(self, x, layout)
        n = layout.tokens
        if n > self.length:
            raise ValueError(f"token_mlp: {n} tokens, but its maps are for length={self.length}; set length={n}")
        h = F.gelu(F.linear(x.transpose(1, 2), self.inner.weight[:, :n], self.inner.bias))
        return F.linear(h, self.out.weight[:n], self.out.bias[:n]).transpose(1, 2)

    def reference(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """The definition, unit by unit."""
        y = self.out.bias[: x.shape[1], None].expand_as(x)
        for unit in range(self.hidden):
            read = torch.einsum("n,bnd->bd", self.inner.weight[unit, : x.shape[1]], x) + self.inner.bias[unit]
            y = y + self.out.weight[: x.shape[1], unit, None] * F.gelu(read)[:, None]
        return y

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        works = sum(2 * rows * part.tokens for part, rows in pieces(layout, batch, False))
        return Cost(parameter_count(self), works * self.dim * self.hidden)
