"""Block-sparse attention: tokens attend to the blocks near them, to a few that all read, and to a few drawn at random.

    y_i = W_o concat_h sum_j softmax_j(q_hi . k_hj / sqrt(K)) v_hj,   block(j) in window(i) + global + random_h(i)

The window is i's block and those beside it (causal: those before it); the global blocks, the first ones, are read by
all and read all; every head draws its own random blocks for each block of queries, once and for all by `seed`. They
are spread out: one from each of equal stretches of the blocks that are left. A causal token reads those that came
before alone, the same ones however long the sequence gets, so that decoding finds them again.

Big Bird: Transformers for Longer Sequences, 2007.14062, 2020. Work is linear in N (ops.block_sparse).
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
from formwright.mixers.cache import Cache, append_heads, empty_cache
from formwright.mixers.grids import no_prefix, pieces
from formwright.ops.attention import attention
from formwright.ops.block_sparse import block_sparse_attention, macs
from formwright.ops.masks_grid import BlockSparse
from formwright.parts import register


@register
class BlockSparseAttention(TokenMixer):
    card = Card(
        name="block_sparse_attention",
        summary="attention to a window of blocks, to global blocks, and to random blocks of each head's own",
        source="Big Bird: Transformers for Longer Sequences, 2007.14062, 2020",
        patterns=("self", "causal"),
        grid_ranks=(1,),
        time="N",
        state="N",
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        block: int = 64,
        window_blocks: int = 3,
        global_blocks: int = 1,
        random_blocks: int = 2,
        seed: int = 0,
        bias: bool = False,
    ):
        """
        heads, head_dim  heads of width head_dim; dim / heads without it
        block            tokens of a block
        window_blocks    blocks near a token, its own among them; an odd number unless causal
        global_blocks    first blocks, which all read
        random_blocks    further blocks of each head and block of queries, drawn by `seed`
        bias             of the linear maps

        Raises ValueError or Unsupported for what doesn't fit."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("block_sparse_attention", dim, heads, head_dim)
        least = {"block": 1, "window_blocks": 1, "global_blocks": 0, "random_blocks": 0}
        sizes = {"block": block, "window_blocks": window_blocks}
        sizes |= {"global_blocks": global_blocks, "random_blocks": random_blocks}
        for name, value in sizes.items():
            if value < least[name]:
                self.refuse(f"{name}={value}", f"it must be at least {least[name]}")
        if not causal and window_blocks % 2 == 0:
            self.refuse(f"window_blocks={window_blocks}", "as many stand before a block as after it: an odd number")
        self.pattern = block, window_blocks, global_blocks, random_blocks
        self.seed = seed
        width = self.heads * self.head_dim
        self.query, self.key, self.value = (nn.Linear(dim, width, bias=bias) for _ in range(3))
        self.out = nn.Linear(width, dim, bias=bias)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """x (B, N, D) -> (B, N, D)."""
        no_prefix(self, layout)
        if layout.offsets is not None or (layout.lengths is not None and not self.causal):
            return per_sequence(self, x, layout)
        return self.out(block_sparse_attention(*self._heads(x), self.mask(layout.tokens)).flatten(2))

    def reference(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """The definition: for each head the scores of all pairs, those of blocks not read hidden."""
        heads = zip(*(each.split(1, 2) for each in self._heads(x)), strict=True)
        masks = (self.mask(layout.tokens, head) for head in range(self.heads))
        o = [attention(*parts, mask=mask, backend="reference") for parts, mask in zip(heads, masks, strict=True)]
        return self.out(torch.cat(o, 2).flatten(2))

    def mask(self, tokens: int, head: int = 0) -> BlockSparse:
        """What a head's tokens may attend to in a sequence of so many."""
        blocks = 0 if self.causal else -(-tokens // self.pattern[0])
        return BlockSparse(*self.pattern, head, self.seed, self.causal, blocks)

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, N, H, K) of queries, keys and values."""
        return tuple(part(x).unflatten(-1, (self.heads, self.head_dim)) for part in (self.query, self.key, self.value))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """Keys and values (B, H, capacity, K)."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        shape = batch, self.heads, self.head_dim
        return empty_cache(self.key.weight if like is None else like, capacity, keys=shape, values=shape)

    def extend(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        """x (B, T, D) -> outputs (B, T, D) and the state after them."""
        q, k, v = self._heads(x)
        k, v, state = append_heads(state, k, v)
        return self.out(block_sparse_attention(q, k, v, self.mask(k.shape[1])).flatten(2)), state

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        """Projections, and all pairs of the blocks that are read, padding included."""
        width = self.heads * self.head_dim
        total = 4 * batch * layout.tokens * self.dim * width
        for part, rows in pieces(layout, batch, self.causal):
            total += macs(part.tokens, self.mask(part.tokens), heads=self.heads, key_dim=self.head_dim, batch=rows)
        state = 2 * batch * layout.tokens * width * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), total, state)
