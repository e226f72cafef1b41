"""Dense mixer: a learned matrix over the tokens for each head, the same for every input,  y^h = M^h x^h.

The MatrixMixer reading of a sequence mixer is y = M f(x); JustDense puts a free dense matrix in the place of M and
leaves f the identity. project=True makes f a linear map of values and adds one of outputs, as attention has.
Causal: M^h lower-triangular, so that decoding keeps the values seen.

JustDense: Just using Dense instead of Sequence Mixer for Time Series analysis, arXiv 2508.09153, 2025; MatrixMixer from
Hydra: Bidirectional State Space Models Through Generalized Matrix Mixers, arXiv 2407.09941, 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, per_sequence
from formwright.ops import mixing
from formwright.parts import register


@register
class Dense(TokenMixer):
    """A learned (length, length) matrix for each head over the tokens: (B, N, D) -> (B, N, D), any N <= length.

    Fewer tokens use the matrix's first N rows and columns; grids are read in row-major order. Each of the heads mixes
    D / heads channels; the paper has as many as the attention it replaces, and a matrix of length^2 numbers for each.

    Raises ValueError for more tokens than `length` and for heads that don't divide D."""

    card = Card(
        name="dense",
        summary="a learned matrix over the tokens in place of attention, the same for every input",
        source="JustDense: Just using Dense instead of Sequence Mixer for Time Series analysis, arXiv 2508.09153, 2025",
        patterns=("self", "causal"),
        time="N^2",
        state="N",
    )

    def __init__(self, dim: int, *, causal: bool = False, length: int = 512, heads: int = 1, project: bool = False):
        super().__init__(dim, causal=causal)
        self.heads = heads
        if heads < 1 or dim % heads:
            raise ValueError(f"dense: the width {dim} is no multiple of heads={heads}; choose heads that divide it")
        self.length = length
        self.matrix = nn.Parameter(torch.empty(self.heads, length, length))
        nn.init.normal_(self.matrix, std=length**-0.5)
        self.values = nn.Linear(dim, dim, bias=False) if project else None
        self.out = nn.Linear(dim, dim, bias=False) if project else None

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        tokens = check_length(self, layout.tokens)
        valid = layout.valid(x.device)
        values = x if self.values is None else self.values(x)
        if valid is not None:
            values = torch.where(valid[..., None], values, 0)
        matrix = self.matrix[:, :tokens, :tokens]
        y = mixing.dense(values, matrix, causal=self.causal, backend=self.backend)
        return y if self.out is None else self.out(y)

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> tuple[Tensor, int]:
        """Room for the values of `capacity` tokens, by default `length`, and how many there are."""
        if not self.causal:
            self.refuse("empty", "it was built with causal=False")
        like = self.matrix if like is None else like
        return like.new_zeros(batch, min(capacity or self.length, self.length), self.dim), 0

    def extend(self, x: Tensor, state: tuple[Tensor, int]) -> tuple[Tensor, tuple[Tensor, int]]:
        history, count = state
        end = check_length(self, count + x.shape[1])
        history = mixing.append(history, count, x if self.values is None else self.values(x))
        matrix = self.matrix[:, count:end, :end]
        y = mixing.dense(history[:, :end], matrix, causal=True, backend=self.backend)
        return (y if self.out is None else self.out(y)), (history, end)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        tokens, dim = layout.tokens, self.dim
        projections = 0 if self.values is None else 2 * batch * tokens * dim * dim
        return Cost(
            params=parameter_count(self),
            macs=projections + mixing.dense_macs(tokens, tokens, dim, batch),
            state_bytes=batch * tokens * dim * element_size(self) if self.causal else 0,
        )


def check_length(mixer: Dense, tokens: int) -> int:
    """`tokens`, or ValueError where the mixer's matrix has no room for them."""
    if tokens > mixer.length:
        raise ValueError(
            f"dense: {tokens} tokens, but its matrix is for length={mixer.length}; set length={tokens} or more"
        )
    return tokens
