"""Random mixer: a random matrix over the tokens, frozen,  y = softmax(R) x.  What mixing is worth without learning it.

MetaFormer Baselines for Vision, arXiv 2210.13452, 2022 (RandFormer). R is uniform on [0, 1] and saved with the model.
Causal: softmax over the tokens so far.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, per_sequence
from formwright.ops import mixing
from formwright.parts import register


@register
class Random(TokenMixer):
    """A frozen random (length, length) matrix whose rows sum to one: (B, N, D) -> (B, N, D), any N <= length.

    Fewer tokens use R's first N rows and columns, normalised anew; grids are read in row-major order.

    Raises ValueError for more tokens than `length`."""

    card = Card(
        name="random",
        summary="a random matrix over the tokens that is never trained",
        source="MetaFormer Baselines for Vision, arXiv 2210.13452, 2022",
        patterns=("self", "causal"),
        time="N^2",
        state="N",
    )

    def __init__(self, dim: int, *, causal: bool = False, length: int = 1024):
        super().__init__(dim, causal=causal)
        self.length = length
        self.register_buffer("logits", torch.rand(length, length))

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        tokens, valid = self._check(layout.tokens), layout.valid(x.device)
        logits = self.logits[:tokens, :tokens].to(x.dtype)
        if valid is None or self.causal:
            matrix = mixing.random_matrix(logits, causal=self.causal)
            return mixing.dense(x, matrix, backend=self.backend)
        matrix = logits.masked_fill(~valid[:, None], -math.inf).softmax(-1)
        return torch.bmm(matrix, torch.where(valid[..., None], x, 0))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> tuple[Tensor, int]:
        """Room for `capacity` inputs, by default `length`, and how many there are."""
        if not self.causal:
            self.refuse("empty", "it was built with causal=False")
        shape = (batch, min(capacity or self.length, self.length), self.dim)
        return (torch.zeros(shape) if like is None else like.new_zeros(shape)), 0

    def extend(self, x: Tensor, state: tuple[Tensor, int]) -> tuple[Tensor, tuple[Tensor, int]]:
        history, count = state
        end = self._check(count + x.shape[1])
        history = mixing.append(history, count, x)
        matrix = mixing.random_matrix(self.logits[count:end, :end].to(x.dtype), causal=True)
        return mixing.dense(history[:, :end], matrix, backend=self.backend), (history, end)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        tokens = layout.tokens
        return Cost(
            macs=mixing.dense_macs(tokens, tokens, self.dim, batch),
            state_bytes=batch * tokens * self.dim * element_size(self) if self.causal else 0,
        )

    def _check(self, tokens: int) -> int:
        if tokens > self.length:
            raise ValueError(
                f"random: {tokens} tokens, but its matrix is for length={self.length}; set length={tokens} or more"
            )
        return tokens
