"""BASED's linear attention: the exponential of attention by its Taylor series to the second order.

    phi(x) = [1, x / d^(1/4), x (x) x / sqrt(2 d)],  so that  phi(q) . phi(k) = 1 + s + s^2 / 2,  s = q . k / sqrt(d)
    S_t = S_{t-1} + phi(k_t) [v_t, 1]^T,    y_t = numerator / denominator of S_t^T phi(q_t),    d = feature_dim

x (x) x is symmetric: its d (d+1) / 2 different entries, those off the diagonal weighted by sqrt(2), give the same
products with half the state. The denominator is at least 1/2 a token. With initial_state S_0, denominators included, is
a parameter instead of 0. Rows of no more tokens than there are features are read without them, by every pair's
1 + s + s^2 / 2.

The paper's models alternate this mixer with softmax attention in a small window and with gated convolutions of three
taps, each followed by swiglu. The two that recall and compare are, as an expression,
    n * (based + swiglu >> attention(window=64, position=rope) + swiglu)
and the gated convolution is a part of its own, not of this mixer.
Simple linear attention language models balance the recall-throughput tradeoff, arXiv 2402.18668, 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, split_heads
from formwright.mixers.linear_attention import normalised, packed_lengths
from formwright.mixers.sequences import first_state, learned_state, state_before
from formwright.ops import recurrence
from formwright.ops.tiles import compute_dtype
from formwright.parts import register


@register
class Based(TokenMixer):
    """Causal linear attention with features of the second-order Taylor series of exp: (B, N, D) -> (B, N, D)."""

    card = Card(
        name="based",
        summary="linear attention whose features are the second-order Taylor series of the exponential",
        source="Simple linear attention language models balance the recall-throughput tradeoff, arXiv 2402.18668, 2024",
        patterns=("causal",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        feature_dim: int = 16,
        initial_state: bool = False,
        eps: float = 1e-12,
    ):
        """head_dim is the width of a head's values, feature_dim that of its queries and keys before the series."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("based", dim, heads, head_dim)
        if feature_dim < 1:
            raise ValueError(f"based: feature_dim is {feature_dim}, but must be at least 1")
        self.feature_dim, self.eps = feature_dim, eps
        self.features = 1 + feature_dim + feature_dim * (feature_dim + 1) // 2
        self.query = nn.Linear(dim, self.heads * feature_dim, bias=False)
        self.key = nn.Linear(dim, self.heads * feature_dim, bias=False)
        self.value = nn.Linear(dim, self.heads * self.head_dim, bias=False)
        self.out = nn.Linear(self.heads * self.head_dim, dim, bias=False)
        self.initial = learned_state(self, initial_state, self.heads, self.features, self.head_dim + 1)

    def series(self, x: Tensor) -> Tensor:
        """x (..., d) -> phi(x) (..., 1 + d + d (d+1) / 2)."""
        d = self.feature_dim
        row, column = torch.triu_indices(d, d, device=x.device)
        weight = (d * (1 + (row == column))).to(x.dtype).rsqrt()
        return torch.cat([torch.ones_like(x[..., :1]), x / d**0.25, x[..., row] * x[..., column] * weight], -1)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(f(x).unflatten(-1, (self.heads, -1)) for f in (self.query, self.key, self.value))

    def _mix(self, x: Tensor, state: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = self._heads(x)
        q, k = self.series(q), self.series(k)
        o, state = normalised(q, k, v, self.eps, state=state, offsets=offsets, backend=self.backend)
        return self.out(o.flatten(2)), state

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if self._short(layout):
            return self._pairs(x)
        return self._mix(x, first_state(self.initial, len(x), layout.offsets), layout.offsets)[0]

    def _short(self, layout: Layout) -> bool:
        """Whether pairs of tokens are fewer than the features of them, and nothing but the row is asked for."""
        alone = self.initial is None and layout.offsets is None and self.backend == "auto"
        return alone and layout.tokens <= self.features

    def _pairs(self, x: Tensor) -> Tensor:
        q, k, v = (rows.transpose(1, 2) for rows in self._heads(x))
        dtype = v.dtype
        with torch.autocast(x.device.type, enabled=False):  # in float32, as the recurrence computes half precisions
            q, k, v = (rows.to(compute_dtype(dtype)) for rows in (q, k, v))
            s = q @ k.mT * self.feature_dim**-0.5
            weights = (1 + s + s.square() / 2).tril()
            o = weights @ v / (weights.sum(-1, keepdim=True) + self.eps)
        return self.out(o.to(dtype).transpose(1, 2).flatten(2))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Tensor:
        """The sums of phi(k) [v, 1]^T: (B, H, features, V+1)."""
        like = self.query.weight if like is None else like
        return state_before(like, batch, self.heads, self.features, self.head_dim + 1, initial=self.initial)

    def extend(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self._mix(x, state, None)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, value = layout.tokens, self.head_dim + 1
        linear = 2 * batch * n * self.dim * self.heads * (self.feature_dim + self.head_dim)
        if self._short(layout):
            products = batch * n * n * self.heads * (self.feature_dim + self.head_dim)
            return Cost(parameter_count(self), linear + products, self._state_bytes(batch))
        products = recurrence.macs(batch, n, self.heads, self.features, value, lengths=packed_lengths(layout))
        return Cost(parameter_count(self), linear + products, self._state_bytes(batch))

    def _state_bytes(self, batch: int) -> int:
        return batch * self.heads * self.features * (self.head_dim + 1) * element_size(self)
