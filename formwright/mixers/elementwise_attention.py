"""Attention without pairs: a token's weight is its own query times its own key, the same for whoever reads it.

    s_j = silu(W_q x_j)_h . (W_k x_j)_h / sqrt(K),   v_j = W_v x_j                        heads of width K
    y_i = W_o concat_h sum_{j <= i} exp(s_hj) v_hj / sum_{j <= i} exp(s_hj)

No queries meet other tokens' keys: time is linear, and the state two sums (kept below the largest s so far, so that no
exponential overflows). Two-directional, every token reads the same mean. What the paper measures with it: alone it
fails, in every second layer beside attention it serves as well as attention.
Deconstructing Attention: Investigating Design Principles for Effective Language Modeling, arXiv 2510.11602, 2025 (there
"Non-approximate").
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import (
    Card,
    Cost,
    Layout,
    TokenMixer,
    element_size,
    parameter_count,
    per_sequence,
    split_heads,
)
from formwright.ops.scan import flops, linear_scan
from formwright.parts import register

State = tuple[Tensor, Tensor]  # the largest score so far (B, H), the sums of exp(s - largest) [v, 1] (B, H, K + 1)


@register
class ElementwiseAttention(TokenMixer):
    """Softmax over tokens of scores that each token gives itself: (B, N, D) -> (B, N, D).

    Raises ValueError for widths that don't fit."""

    card = Card(
        name="elementwise_attention",
        summary="a softmax-weighted mean of values, each token's weight made of its own query and key alone",
        source="Deconstructing Attention: Investigating Design Principles for Effective Language Modeling, "
        "arXiv 2510.11602, 2025",
        patterns=("self", "causal"),
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
        """
        heads, head_dim  heads of width head_dim; dim / heads without it
        bias             of the four linear maps
        """
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("elementwise_attention", dim, heads, head_dim)
        width = self.heads * self.head_dim
        self.query = nn.Linear(dim, width, bias=bias)
        self.key = nn.Linear(dim, width, bias=bias)
        self.value = nn.Linear(dim, width, bias=bias)
        self.out = nn.Linear(width, dim, bias=bias)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        if self.causal:
            return self.extend(x, self.empty(len(x), like=x))[0]
        s, v = self._read(x)
        valid = layout.valid(x.device)
        s = s if valid is None else s.masked_fill(~valid[..., None], -math.inf)
        o = (s.softmax(1)[..., None] * v).sum(1, keepdim=True)
        return self.out(o.flatten(2).to(x.dtype)).expand_as(x)

    def _read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D) -> scores (B, N, H) and values (B, N, H, K), at least in float32."""
        q, k, v = (f(x).unflatten(-1, (self.heads, self.head_dim)) for f in (self.query, self.key, self.value))
        wide = torch.promote_types(x.dtype, torch.float32)
        return (F.silu(q) * k).sum(-1, dtype=wide) * self.head_dim**-0.5, v.to(wide)

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> State:
        """The largest score and the sums before the first token."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        like = self.key.weight if like is None else like
        dtype = torch.promote_types(like.dtype, torch.float32)
        largest = like.new_full((batch, self.heads), -math.inf, dtype=dtype)
        return largest, like.new_zeros(batch, self.heads, self.head_dim + 1, dtype=dtype)

    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        largest, sums = state
        s, v = self._read(x)
        # What is subtracted from all scores cancels, so that it needs no gradient.
        tops = torch.cat([largest.unsqueeze(1), s.detach()], 1).cummax(1).values
        decay, weight = (tops[:, :-1] - tops[:, 1:]).exp(), (s - tops[:, 1:]).exp()
        new = weight[..., None] * torch.cat([v, torch.ones_like(v[..., :1])], -1)
        seen, sums = linear_scan(decay[..., None], new, state=sums, backend=self.backend)
        o = seen[..., :-1] / seen[..., -1:]
        return self.out(o.flatten(2).to(x.dtype)), (tops[:, -1], sums)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, width = layout.tokens, self.heads * self.head_dim
        sequences = 1 if layout.offsets is None else len(list(layout.sequences()))
        reads = n if self.causal else sequences  # tokens of one sequence read the same
        linear = batch * self.dim * width * (3 * n + reads)
        scan = flops(batch, n, self.heads, self.head_dim + 1) if self.causal else 0
        state = batch * self.heads * (self.head_dim + 2) * max(4, element_size(self)) if self.causal else 0
        return Cost(parameter_count(self), linear, state, scan)
