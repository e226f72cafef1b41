"""Combiner: attention to every token at less than quadratic cost, through abstractions of groups of tokens.

    y_i = W_o concat_h ( sum_{j in Omega_0(i)} p(j|i) v_j + sum_r p(Omega_r|i) sum_{j in Omega_r} p(j|Omega_r) v_j )

A token reads some tokens by their own keys (Omega_0), and each group Omega_r of the others by one pooled key; what it
then gets is the group's local expectation, made by one pooled query. Every weight is positive: nothing is out of reach.
`pattern` says which groups (ops.combiner has the equations): "fixed" blocks, or the columns of "axial" rows of tokens,
with `block` near sqrt(N) for N sqrt(N) work; "logsparse" blocks of 1, 2, 4, ... tokens, N log N work at any length.

Combiner: Full Attention Transformer with Sparse Computation Cost, arXiv 2107.05768, 2021.
"""

from __future__ import annotations

from typing import Any

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
from formwright.mixers.cache import append, empty_cache
from formwright.mixers.grids import no_prefix, pieces
from formwright.ops.combiner import axial, dense_weights, fixed, logsparse, macs
from formwright.parts import register

PATTERNS, POOLINGS = ("fixed", "logsparse", "axial"), ("max", "mean")
NAMES = ("queries", "keys", "values")


@register
class Combiner(TokenMixer):
    """Attention to all tokens, directly or through their group: (B, N, D) -> (B, N, D)."""

    card = Card(
        name="combiner",
        summary="attention to some tokens and to abstractions of groups of all others, so that none is out of reach",
        source="Combiner: Full Attention Transformer with Sparse Computation Cost, arXiv 2107.05768, 2021",
        patterns=("self", "causal"),
        grid_ranks=(1,),
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
        pattern: str = "fixed",
        block: int = 32,
        pooling: str = "max",
    ):
        """
        heads, head_dim  heads of width head_dim; dim / heads without it
        pattern          which groups stand for many tokens: "fixed", "logsparse" or "axial"
        block            tokens of a block of "fixed", of a row of "axial"
        pooling          of a group's queries and keys: "max" or "mean"

        Raises ValueError or Unsupported for what doesn't fit."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("combiner", dim, heads, head_dim)
        if pattern not in PATTERNS:
            self.refuse(f"pattern={pattern}", "it is one of " + ", ".join(PATTERNS))
        if pooling not in POOLINGS:
            self.refuse(f"pooling={pooling}", "it is one of " + ", ".join(POOLINGS))
        if block < 1:
            self.refuse(f"block={block}", "it must be at least 1")
        self.pattern, self.block, self.pooling = pattern, block, pooling
        width = self.heads * self.head_dim
        self.query, self.key, self.value = (nn.Linear(dim, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, dim, bias=False)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """x (B, N, D) -> (B, N, D)."""
        no_prefix(self, layout)
        if layout.offsets is not None or (layout.lengths is not None and not self.causal):
            return per_sequence(self, x, layout)
        if self.pattern == "fixed":
            return self._join(fixed(*self._heads(x), self.block, self.causal, self.pooling)[0])
        if self.pattern == "axial":
            return self._join(axial(*self._heads(x), self.block, self.causal, self.pooling)[0])
        return self._join(logsparse(*self._heads(x), self.causal, self.pooling)[0])

    def reference(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """The definition: the whole matrix of weights."""
        return self._join(self.weights(x) @ self._heads(x)[2])

    def weights(self, x: Tensor) -> Tensor:
        """x (B, N, D) -> what each token takes of each: (B, H, N, N), rows sum to 1."""
        q, k, _ = self._heads(x)
        return dense_weights(q, k, self.pattern, self.block, self.causal, self.pooling)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, N, K) of scaled queries, keys and values."""
        sizes = self.heads, self.head_dim
        q, k, v = (part(x).unflatten(-1, sizes).transpose(1, 2) for part in (self.query, self.key, self.value))
        return q * self.head_dim**-0.5, k, v

    def _join(self, o: Tensor) -> Tensor:
        return self.out(o.transpose(1, 2).flatten(2))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> dict[str, Any]:
        """The abstractions (B, H, groups, K) of whole groups, and queries, keys and values (B, H, ., K) of which
        further ones are made: of the block begun, or of all tokens."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        like, capacity = self.key.weight if like is None else like, capacity or 0
        shape = batch, self.heads, self.head_dim
        if self.pattern == "fixed":
            begun = {name: like.new_zeros(batch, self.heads, self.block, self.head_dim) for name in NAMES}
            groups = empty_cache(like, capacity // self.block, keys=shape, values=shape)
            return {"begun": begun, "groups": groups, "count": 0}
        tokens = empty_cache(like, capacity, **dict.fromkeys(NAMES, shape))
        if self.pattern == "axial":
            above = {name: like.new_zeros(batch, self.heads, self.block, self.head_dim) for name in NAMES[1:]}
            return {"tokens": tokens, "above": above}
        levels = {n: like.new_zeros(batch, self.heads, capacity.bit_length(), self.head_dim) for n in NAMES[1:]}
        return {"tokens": tokens, "levels": levels}

    def extend(self, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """x (B, T, D) -> outputs (B, T, D) and the state after them."""
        ways = {"fixed": self._extend_fixed, "logsparse": self._extend_logsparse, "axial": self._extend_axial}
        return ways[self.pattern](x, state)

    def _extend_fixed(self, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        begun = state["count"] % self.block
        parts = zip(NAMES, self._heads(x), strict=True)
        q, k, v = (torch.cat([state["begun"][name][:, :, :begun], new], 2) for name, new in parts)
        groups = state["groups"]
        past = tuple(groups[name][:, :, : groups["count"]] for name in NAMES[1:])
        o, (keys, values) = fixed(q, k, v, self.block, True, self.pooling, past, begun)
        if keys.shape[2]:
            groups = append(groups, keys=keys, values=values)[1]
        whole, rest = q.shape[2] // self.block * self.block, q.shape[2] % self.block
        left = {n: F.pad(t[:, :, whole:], (0, 0, 0, self.block - rest)) for n, t in zip(NAMES, (q, k, v), strict=True)}
        return self._join(o), {"begun": left, "groups": groups, "count": state["count"] + x.shape[1]}

    def _extend_logsparse(self, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        start = state["tokens"]["count"]
        new = dict(zip(NAMES, self._heads(x), strict=True))
        seen, tokens = append(state["tokens"], **new)
        needed = (start + x.shape[1]).bit_length()
        room = state["levels"]["keys"].shape[2]
        levels = [F.pad(state["levels"][name], (0, 0, 0, max(0, needed - room))) for name in NAMES[1:]]
        used = tuple(each[:, :, :needed] for each in levels)
        o, last = logsparse(*(seen[name] for name in NAMES), True, self.pooling, used, start)
        levels = [torch.cat([new, old[:, :, needed:]], 2) for new, old in zip(last, levels, strict=True)]
        return self._join(o), {"tokens": tokens, "levels": dict(zip(NAMES[1:], levels, strict=True))}

    def _extend_axial(self, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        begun = state["tokens"]["count"] % self.block
        row = state["tokens"]["count"] - begun
        seen, tokens = append(state["tokens"], **dict(zip(NAMES, self._heads(x), strict=True)))
        past, new = (tuple(seen[name][:, :, where] for name in NAMES) for where in (slice(row), slice(row, None)))
        above = tuple(state["above"].values())
        o, above = axial(*new, self.block, True, self.pooling, past, above, begun)
        return self._join(o), {"tokens": tokens, "above": dict(zip(NAMES[1:], above, strict=True))}

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        """Projections, and the matrix products of the blocks, whose padding counts."""
        n, width = layout.tokens, self.heads * self.head_dim
        total = 4 * batch * n * self.dim * width
        for part, rows in pieces(layout, batch, self.causal):
            total += rows * macs(self.pattern, part.tokens, self.block, self.causal, width)
        groups = {"fixed": n // self.block, "logsparse": n.bit_length(), "axial": self.block}[self.pattern]
        held = 3 * (self.block if self.pattern == "fixed" else n) + 2 * groups
        state = batch * held * width * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), total, state)
