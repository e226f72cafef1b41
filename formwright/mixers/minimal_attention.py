"""Minimal attention: softmax attention with one matrix for queries and keys, and one or none for values.

    y_i = W_vo sum_j softmax_j(x_i W_qk x_j^T / sqrt(D)) x_j               one head: W_qk = W_q W_k^T, W_vo = W_v W_o

In one head the two products of matrices lose nothing by being learned as one. `values=False` leaves W_vo out: outputs
are weighted means of tokens. `symmetric=True` makes x_i as similar to x_j as x_j to x_i: W_qk = T T^T with T lower
triangular (Cholesky), half as many parameters again. With several heads each reads its own D / H channels of keys x_j
and values x_j, and symmetric similarities share W_q = W_k, which is T in full.

The paper's blocks have no other parts: `6*minimal_attention` in place of `6*(attention + mlp)`.
Reducing the Transformer Architecture to a Minimum, arXiv 2410.13732, 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count
from formwright.mixers.cache import Cache, append, empty_cache
from formwright.mixers.rotary import rotary, turned
from formwright.mixers.scores import attend, attend_macs, looks_back
from formwright.ops.attention import attention
from formwright.parts import register


@register
class MinimalAttention(TokenMixer):
    """Attention with collapsed matrices: (B, N, D) -> (B, N, D).

    Raises ValueError or Unsupported for heads and positions that don't fit."""

    card = Card(
        name="minimal_attention",
        summary="softmax attention with one matrix for queries and keys, maybe symmetric, and one or none for values",
        source="Reducing the Transformer Architecture to a Minimum, arXiv 2410.13732, 2024",
        patterns=("self", "causal", "cross", "causal_cross"),
        time="N^2",
        state="N",
        symmetries=("permutation",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int = 1,
        symmetric: bool = False,
        values: bool = True,
        position: Callable | None = None,
    ):
        """
        heads      heads, a divisor of dim
        symmetric  similarities that are the same from both sides
        values     False: without W_vo
        position   a rotary position
        """
        super().__init__(dim, causal=causal)
        if heads < 1 or dim % heads:
            raise ValueError(f"minimal_attention: heads must divide the width {dim}, but are {heads}")
        self.heads, self.head_dim, self.symmetric = heads, dim // heads, symmetric
        # T's entries row by row, or the whole matrix
        shape = (dim * (dim + 1) // 2,) if symmetric and heads == 1 else (dim, dim)
        self.similarity = nn.Parameter(torch.empty(shape).uniform_(-1, 1) * dim**-0.5)
        self.out = nn.Linear(dim, dim, bias=False) if values else None
        self.position = rotary(self, position, self.head_dim)
        if position is not None:
            self.card = replace(self.card, patterns=("self", "causal"), symmetries=())

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """x (B, N, D), context (B, M, D) -> (B, N, D). With a context every token reads all of it and no other token of
        x, so that the causal cross pattern is the same."""
        if context is not None and context_layout is None:
            context_layout = Layout((context.shape[1],))
        places = layout.positions(x.device)
        q = self._queries(x, places)
        if context is None:
            k, v, mask = self._keys(x, q, places), self._split(x), looks_back(self.causal)
        else:
            v, mask = self._split(context), None
            k = self._split(context @ self._matrix()) if self.symmetric else v  # no positions reach a context
        how = {"causal": self.causal, "context_layout": context_layout, "mask": mask, "backend": self.backend}
        return self._join(attend(q, k, v, layout, **how))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim))

    def _queries(self, x: Tensor, places: Tensor) -> Tensor:
        return turned(self._split(x @ self._matrix()), self.position, places)

    def _keys(self, x: Tensor, queries: Tensor, places: Tensor) -> Tensor:
        """Of tokens whose queries are known."""
        return queries if self.symmetric else turned(self._split(x), self.position, places)

    def _matrix(self) -> Tensor:
        """W_qk, or what queries and keys share: (D, D)."""
        if self.similarity.ndim == 2:
            return self.similarity
        row, column = torch.tril_indices(self.dim, self.dim, device=self.similarity.device)
        return self.similarity.new_zeros(self.dim, self.dim).index_put((row, column), self.similarity)

    def _join(self, o: Tensor) -> Tensor:
        return o.flatten(2) if self.out is None else self.out(o.flatten(2))

    @property
    def _plain_keys(self) -> bool:
        """Whether keys are the tokens themselves, so that decoding keeps one of them."""
        return not self.symmetric and self.position is None

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """Tokens (B, H, capacity, D / H), and keys of that shape where they are something else."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        shape = batch, self.heads, self.head_dim
        shapes = {"tokens": shape} if self._plain_keys else {"tokens": shape, "keys": shape}
        return empty_cache(self.similarity if like is None else like, capacity, **shapes)

    def extend(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        places = torch.arange(state["count"], state["count"] + x.shape[1], device=x.device)[:, None]
        q, new = self._queries(x, places), {"tokens": self._split(x).transpose(1, 2)}
        if not self._plain_keys:
            new["keys"] = self._keys(x, q, places).transpose(1, 2)
        seen, state = append(state, **new)
        v = seen["tokens"].transpose(1, 2)
        k = v if self._plain_keys else seen["keys"].transpose(1, 2)
        return self._join(attention(q, k, v, mask=looks_back(True), backend=self.backend)), state

    def cost(self, layout: Layout, batch: int = 1, context_layout: Layout | None = None) -> Cost:
        n = layout.tokens
        m = n if context_layout is None else context_layout.tokens
        maps = n + (m if self.symmetric and context_layout is not None else 0) + (0 if self.out is None else n)
        how = {"mask": looks_back(self.causal) if context_layout is None else None, "backend": self.backend}
        how |= {"heads": self.heads, "key_dim": self.head_dim}
        products = attend_macs(layout, batch, causal=self.causal, context_layout=context_layout, **how)
        rows = n * (1 if self._plain_keys else 2) if self.causal else 0
        state = batch * rows * self.dim * element_size(self)
        return Cost(parameter_count(self), batch * maps * self.dim**2 + products, state)
