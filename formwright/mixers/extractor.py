"""The Extractors: every token sums up what came before it with weights of the lag, and adjusts the sum by itself.

    y_t = (A x_t + b) * e_t                       adjustment, element by element
    she   e_t = sum_{s<=t} W_{t-s} x_s            super high-performance: a matrix for each lag
    he    e_t = sum_{s<=t} w_{t-s} * (W x_s)      higher-performance: a vector for each lag
    we    e_t = sum_{s<=t} w_{t-s} W x_s          worthwhile: a number for each lag
    me    e_t = sum_{s<=t} w_{t-s} x_s            minimalist: a number for each lag, and no W

There is no softmax and no product of queries and keys: weights don't depend on the input. This file's reading of the
paper: weights belong to lags, not places, and HE, WE and ME are SHE with its matrices tied further and further.
Attention Is Not All You Need Anymore, arXiv 2308.07661, 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, per_sequence
from formwright.ops import mixing
from formwright.ops.convolution import long_convolution, long_flops
from formwright.ops.matrix_convolution import flops, last_output, macs, matrix_convolution
from formwright.parts import register

KINDS = ("she", "he", "we", "me")
State = tuple[Tensor, int]  # what e sums, token by token, and how many tokens came


@register
class Extractor(TokenMixer):
    """An Extractor: (B, N, D) -> (B, N, D), any N <= length. kind is "she", "he", "we" or "me"; length is the most
    tokens, a weight for each lag. Raises ValueError for other kinds and for more tokens."""

    card = Card(
        name="extractor",
        summary="sums over the past with a learned weight for each lag, multiplied by a linear map of the token",
        source="Attention Is Not All You Need Anymore, arXiv 2308.07661, 2023",
        patterns=("causal",),
        grid_ranks=(1,),
        time="N log N",
        state="N",
    )

    def __init__(self, dim: int, *, causal: bool = False, kind: str = "she", length: int = 128):
        super().__init__(dim, causal=causal)
        if kind not in KINDS:
            raise ValueError(f"extractor: kind is one of {', '.join(KINDS)}, not {kind!r}")
        if length < 1:
            raise ValueError(f"extractor: length is {length}, but must be at least 1")
        self.kind, self.length = kind, length
        shape = {"she": (dim, dim), "he": (dim,)}.get(kind, (1,))
        fan = length * (dim if kind == "she" else 1)
        self.lags = nn.Parameter(torch.empty(length, *shape).normal_(std=fan**-0.5))
        self.values = nn.Linear(dim, dim, bias=False) if kind in ("he", "we") else None
        self.adjust = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        self._check_length(layout.tokens)
        values = x if self.values is None else self.values(x)
        if self.kind == "she":
            extracted = matrix_convolution(values, self.lags, backend=self.backend)
        else:
            extracted = long_convolution(values, self._filter(), backend=self.backend)
        return self.adjust(x) * extracted

    def _filter(self) -> Tensor:
        return self.lags.expand(-1, self.dim)

    def _check_length(self, tokens: int) -> None:
        if tokens > self.length:
            raise ValueError(
                f"extractor: {tokens} tokens, but weights for length={self.length}; set length={tokens} or more"
            )

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> State:
        """Room for `capacity` tokens (B, capacity, D), by default `length`, and how many there are."""
        like = self.lags if like is None else like
        return like.new_zeros(batch, min(capacity or self.length, self.length), self.dim), 0

    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        history, count = state
        end = count + x.shape[1]
        self._check_length(end)
        values = x if self.values is None else self.values(x)
        if self.kind != "she":
            before = history[:, :count] if count else None
            extracted = long_convolution(values, self._filter(), history=before, backend=self.backend)
        history = mixing.append(history, count, values)
        if self.kind == "she" and x.shape[1] == 1:
            extracted = last_output(history[:, :end], self.lags)
        elif self.kind == "she":
            extracted = matrix_convolution(history[:, :end], self.lags, backend=self.backend)[:, count:]
        return self.adjust(x) * extracted, (history, end)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, dim = layout.tokens, self.dim
        products = batch * n * dim**2 * (1 if self.values is None else 2)
        if self.kind == "she":
            products += macs(n, self.length, dim, dim, batch)
            other = flops(n, self.length, dim, dim, batch)
        else:
            other = long_flops((n,), dim, batch=batch)
        return Cost(parameter_count(self), products, batch * n * dim * element_size(self), other)
