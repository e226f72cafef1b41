"""CRATE's multi-head subspace self-attention: each head's projection onto a subspace is its query, key and value.

    w_hi = U_h^T x_i                                  (U_h a basis of the h-th subspace, of width K)
    y_i = W sum_h [ sum_j softmax_j(w_hi . w_hj / sqrt(K)) w_hj ] + b       W (D, H K) in the place of [U_1 ... U_H]

A residual step along y is an approximate gradient step that lowers the coding rate of the tokens in the subspaces,

    R_c(x | U) = sum_h 1/2 log det(I + K / (N eps^2) (U_h^T x) (U_h^T x)^T),

and `ista` is the sparse step that follows it: `crate + plain(layernorm >> ista)`. Of a token that is past, decoding
keeps w alone: half of what attention keeps.
White-Box Transformers via Sparse Rate Reduction, arXiv 2306.01129, 2023; causal: arXiv 2311.13110, 2023.
"""

from __future__ import annotations

from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, split_heads
from formwright.mixers.cache import Cache, append, empty_cache
from formwright.mixers.scores import attend, attend_macs, looks_back
from formwright.ops.attention import attention
from formwright.parts import register


@register
class Crate(TokenMixer):
    """Multi-head subspace self-attention: (B, N, D) -> (B, N, D). heads of width head_dim, dim / heads without it; bias
    is that of the outward map. Raises ValueError for widths that don't fit."""

    card = Card(
        name="crate",
        summary="softmax attention within one subspace a head: a single projection is query, key and value",
        source="White-Box Transformers via Sparse Rate Reduction, arXiv 2306.01129, 2023",
        patterns=("self", "causal"),
        time="N^2",
        state="N",
        symmetries=("permutation",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
    ):
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("crate", dim, heads, head_dim)
        self.subspaces = nn.Linear(dim, self.heads * self.head_dim, bias=False)
        self.out = nn.Linear(self.heads * self.head_dim, dim, bias=bias)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        w = self._project(x)
        o = attend(w, w, w, layout, causal=self.causal, mask=looks_back(self.causal), backend=self.backend)
        return self.out(o.flatten(2))

    def _project(self, x: Tensor) -> Tensor:
        return self.subspaces(x).unflatten(-1, (self.heads, self.head_dim))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """Projections (B, H, capacity, K)."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        like = self.subspaces.weight if like is None else like
        return empty_cache(like, capacity, projections=(batch, self.heads, self.head_dim))

    def extend(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        q = self._project(x)
        seen, state = append(state, projections=q.transpose(1, 2))
        w = seen["projections"].transpose(1, 2)
        o = attention(q, w, w, mask=None if x.shape[1] == 1 else looks_back(True), backend=self.backend)
        return self.out(o.flatten(2)), state

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, width = layout.tokens, self.heads * self.head_dim
        how = {"heads": self.heads, "key_dim": self.head_dim, "mask": looks_back(self.causal), "backend": self.backend}
        products = attend_macs(layout, batch, causal=self.causal, **how)
        state = batch * n * width * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), 2 * batch * n * self.dim * width + products, state)
