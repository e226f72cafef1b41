"""Attention that never looks at its input: queries and keys come from fixed random embeddings of the places.

    e_i ~ N(0, I)  drawn once for each place i;   q_i = W_q e_i,  k_j = W_k e_j,  v_j = W_v x_j
    y_i = W_o concat_h sum_j softmax_j(q_hi . k_hj / sqrt(K)) v_hj

Weights are learned, but the same for all inputs: a test of what dependence on the sequence is worth. The scores of a
place are computed once for all rows of a batch, and decoding keeps one row of keys for all. In the paper (RndEmbQK) the
embeddings pass through the model's own layers below; here each layer has embeddings of its own. Its other ablations are
parts as well: `static_attention` (by what the tokens are, not by what layers made of them), `elementwise_attention` (no
product of queries and keys) and `based` (the exponential's series); for the one without any mixing write `swiglu` in
attention's place.
Deconstructing Attention: Investigating Design Principles for Effective Language Modeling, arXiv 2510.11602, 2025.
"""

from __future__ import annotations

import torch
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
from formwright.mixers.cache import Cache, append, empty_cache
from formwright.mixers.scores import attend, attend_macs, looks_back
from formwright.mixers.sequences import places
from formwright.ops.attention import attention
from formwright.parts import register


@register
class FixedAttention(TokenMixer):
    """Softmax attention by places alone: (B, N, D) -> (B, N, D), any N <= length; grids are read in row-major order.

    Raises ValueError for more tokens than `length`, and for widths that don't fit."""

    card = Card(
        name="fixed_attention",
        summary="softmax attention whose queries and keys are learned maps of random embeddings, not of the input",
        source="Deconstructing Attention: Investigating Design Principles for Effective Language Modeling, "
        "arXiv 2510.11602, 2025",
        patterns=("self", "causal"),
        time="N^2",
        state="N",
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        length: int = 1024,
        bias: bool = False,
    ):
        """
        heads, head_dim  heads of width head_dim; dim / heads without it
        length           the most tokens of a sequence
        bias             of the four linear maps
        """
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("fixed_attention", dim, heads, head_dim)
        self.length = length
        width = self.heads * self.head_dim
        self.query = nn.Linear(dim, width, bias=bias)
        self.key = nn.Linear(dim, width, bias=bias)
        self.value = nn.Linear(dim, width, bias=bias)
        self.out = nn.Linear(width, dim, bias=bias)
        self.register_buffer("embeddings", torch.randn(length, dim))

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.lengths is not None and not self.causal:
            return per_sequence(self, x, layout)
        self._check(layout.tokens if layout.offsets is None else int(layout.offsets.diff().max()))
        e = self._embeddings(places(layout, x.device), x)
        alone = Layout((layout.tokens,), offsets=layout.offsets)
        how = {"causal": self.causal, "mask": looks_back(self.causal), "backend": self.backend}
        return self._join(attend(self._heads(self.query, e), self._heads(self.key, e), self._values(x), alone, **how))

    def _embeddings(self, at: Tensor | slice, x: Tensor) -> Tensor:
        """(1, N, D)"""
        return self.embeddings[at].to(x.dtype)[None]

    def _heads(self, linear: nn.Linear, x: Tensor) -> Tensor:
        return linear(x).unflatten(-1, (self.heads, self.head_dim))

    def _values(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (1, N, H, B K): the rows of the batch stand side by side, so that weights are made once."""
        return self._heads(self.value, x).permute(1, 2, 0, 3).flatten(2)[None]

    def _join(self, o: Tensor) -> Tensor:
        """(1, N, H, B K) -> (B, N, D)"""
        return self.out(o[0].unflatten(-1, (-1, self.head_dim)).permute(2, 0, 1, 3).flatten(2))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """Keys (H, capacity, K) for all rows, and their values beside one another, (H, capacity, B K)."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        room = None if capacity is None else min(capacity, self.length)
        keys, values = (self.heads, self.head_dim), (self.heads, batch * self.head_dim)
        return empty_cache(self.key.weight if like is None else like, room, keys=keys, values=values)

    def extend(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        e = self._embeddings(slice(state["count"], self._check(state["count"] + x.shape[1])), x)
        new = {"keys": self._heads(self.key, e)[0], "values": self._values(x)[0]}
        seen, state = append(state, **{name: rows.transpose(0, 1) for name, rows in new.items()})
        k, v = (seen[name].transpose(0, 1)[None] for name in ("keys", "values"))
        o = attention(self._heads(self.query, e), k, v, mask=looks_back(True), backend=self.backend)
        return self._join(o), state

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, width = layout.tokens, self.heads * self.head_dim
        if layout.lengths is not None and not self.causal:
            parts = [self.cost(part) for _, _, part in layout.sequences()]
            return Cost(parameter_count(self), sum(part.macs for part in parts))
        linear = (2 + 2 * batch) * n * self.dim * width
        how = {"heads": self.heads, "key_dim": self.head_dim, "value_dim": batch * self.head_dim}
        alone = Layout((n,), offsets=layout.offsets)
        mask = looks_back(self.causal)
        products = attend_macs(alone, 1, causal=self.causal, mask=mask, backend=self.backend, **how)
        state = (1 + batch) * n * width * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), linear + products, state)

    def _check(self, tokens: int) -> int:
        if tokens > self.length:
            raise ValueError(
                f"fixed_attention: {tokens} tokens, but it has embeddings of length={self.length} places; set "
                f"length={tokens} or more"
            )
        return tokens
