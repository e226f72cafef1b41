"""Cross-covariance attention: channels attend to channels, by the products of their values over all tokens.

    Q, K, V = X W_q, X W_k, X W_v                 (N, K) a head; columns of Q and K scaled to length 1 over tokens
    A = softmax(tau Q^T K)                        (K, K), each row over the channels of K; tau learned, one a head
    Y = concat_h (V A^T) W_o

Work is linear in N and no K x K map depends on the length of the sequence; every token reads all others through A, so
it computes the two-directional pattern alone.
XCiT: Cross-Covariance Image Transformers, 2106.09681, 2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, parameter_count, per_sequence, split_heads
from formwright.parts import register


@register
class CrossCovarianceAttention(TokenMixer):
    """(B, N, D) -> (B, N, D) by heads of width head_dim, dim / heads without it; bias is that of queries, keys and
    values. Raises ValueError for widths that don't fit."""

    card = Card(
        name="cross_covariance_attention",
        summary="attention between channels instead of tokens, by their products over all tokens",
        source="XCiT: Cross-Covariance Image Transformers, 2106.09681, 2021",
        patterns=("self",),
        time="N",
        state="0",
        symmetries=("permutation",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
    ):
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("cross_covariance_attention", dim, heads, head_dim)
        width = self.heads * self.head_dim
        self.temperature = nn.Parameter(torch.ones(self.heads))
        self.query_key_value = nn.Linear(dim, 3 * width, bias=bias)
        self.out = nn.Linear(width, dim)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        q, k, v = self._heads(x, layout)
        weights = (self.temperature[:, None, None] * (q @ k.transpose(-2, -1))).softmax(-1)
        return self.out((weights @ v).permute(0, 3, 1, 2).flatten(2))

    def reference(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """The definition, channel by channel."""
        q, k, v = self._heads(x, layout)
        rows = []
        for channel in range(self.head_dim):
            scores = self.temperature[:, None] * (q[:, :, channel, None] * k).sum(-1)  # (B, H, K)
            rows.append((scores.softmax(-1)[..., None] * v).sum(2))
        return self.out(torch.stack(rows, 2).permute(0, 3, 1, 2).flatten(2))

    def _heads(self, x: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        """(B, H, K, N) of queries and keys, of length 1 over the valid tokens, and of values."""
        q, k, v = self.query_key_value(x).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 4, 1)
        valid = layout.valid(x.device)
        if valid is not None:
            q, k = (torch.where(valid[:, None, None], each, 0) for each in (q, k))
        return F.normalize(q, dim=-1), F.normalize(k, dim=-1), v

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        """Four projections, and two products of (K, N) with (N, K) a head."""
        width = self.heads * self.head_dim
        return Cost(parameter_count(self), batch * layout.tokens * width * (4 * self.dim + 2 * self.head_dim))
