"""Transformer-XL's attention, as in GTrXL: a token reads its own segment so far and the whole segment before it.

    s_hij = ((q_hi + u_h) . k_hj + (q_hi + v_h) . W_R^h R_{i-j}) / sqrt(K)     j <= i, of i's segment or the one before
    y_i = W_o concat_h sum_j softmax_j(s_hij) W_V^h x_j

R_d holds the sines and cosines of distance d (frequencies 10000^(-2f/D)); u, v are learned, one for each head. Keys and
values of the segment before are a memory: no gradient goes through them to the tokens they came from. Stacked, depth
carries what segments hold further back. `gated(...)` is GTrXL's residual wiring:
`gated(12*(memory_attention(segment=128) + mlp))`.
Transformer-XL, arXiv 1901.02860, 2019; Stabilizing Transformers for Reinforcement Learning, arXiv 1910.06764, 2019.
"""

from __future__ import annotations

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
from formwright.mixers.cache import Cache, append_ring, empty_cache
from formwright.ops.attention import attention, macs
from formwright.ops.masks import Causal
from formwright.parts import register


@register
class MemoryAttention(TokenMixer):
    """Attention to a segment and its memory: (B, N, D) -> (B, N, D), time and memory linear in N.

    segment is how many tokens a segment has; heads of width head_dim, dim / heads without it; bias is that of the maps
    of tokens. stop_gradient=False lets gradients through the memory, and backward is forward's derivative beyond one
    segment too. Raises ValueError for widths that don't fit."""

    card = Card(
        name="memory_attention",
        summary="attention to a token's own segment and to the one before, a memory without gradient; relative places",
        source="Stabilizing Transformers for Reinforcement Learning, arXiv 1910.06764, 2019",
        patterns=("causal",),
        grid_ranks=(1,),
        time="N",
        state="1",
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        segment: int = 128,
        stop_gradient: bool = True,
        heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
    ):
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("memory_attention", dim, heads, head_dim)
        if segment < 1:
            raise ValueError(f"memory_attention: segment is {segment}, but holds at least one token")
        self.segment, self.stop_gradient = segment, stop_gradient
        inner = self.heads * self.head_dim
        self.query = nn.Linear(dim, inner, bias=bias)
        self.key_value = nn.Linear(dim, 2 * inner, bias=bias)
        self.places = nn.Linear(dim, inner, bias=False)
        self.out = nn.Linear(inner, dim, bias=bias)
        self.content_bias = nn.Parameter(torch.empty(self.heads, self.head_dim).normal_(std=0.02))
        self.place_bias = nn.Parameter(torch.empty(self.heads, self.head_dim).normal_(std=0.02))

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        q, k, v = self.query(x), *self.key_value(x).chunk(2, -1)
        memory = k, v
        if self.stop_gradient and torch.is_grad_enabled() and x.requires_grad and x.shape[1] > self.segment:
            memory = self.key_value(x.detach()).chunk(2, -1)
        return self.out(self._read(*map(self._split, (q, k, v, *memory)), 0).flatten(2))

    def _split(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (self.heads, self.head_dim))

    def _read(self, q: Tensor, k: Tensor, v: Tensor, old_k: Tensor, old_v: Tensor, start: int) -> Tensor:
        """What T tokens read, the first of them at place `start`: q (B, T, H, K); k and v (B, M, H, K) begin with the
        segment before that of the first token and end with the last token's; old_k, old_v are k, v as a memory."""
        length, tokens = self.segment, q.shape[1]
        past = k.shape[1] - tokens
        distances = self._distances(min(past + tokens, 2 * length), q)
        first = min(tokens, length - start % length)  # to the end of a segment that has begun
        out = [self._attend(q[:, :first], k[:, : past + first], v[:, : past + first], distances)]
        whole = (tokens - first) // length
        if whole:
            rows = slice(past + first - length, past + first + whole * length)
            pairs = [self._with_memory(old[:, rows], new[:, rows]) for old, new in ((old_k, k), (old_v, v))]
            queries = q[:, first : first + whole * length].unflatten(1, (whole, length)).flatten(0, 1)
            out.append(self._attend(queries, *pairs, distances).unflatten(0, (len(q), whole)).flatten(1, 2))
        rest = tokens - first - whole * length
        if rest:
            split = k.shape[1] - rest
            before = slice(split - length, split)
            keys, values = (torch.cat([old[:, before], new[:, split:]], 1) for old, new in ((old_k, k), (old_v, v)))
            out.append(self._attend(q[:, -rest:], keys, values, distances))
        return torch.cat(out, 1)

    def _with_memory(self, old: Tensor, new: Tensor) -> Tensor:
        """(B, (S + 1) L, H, K) of S segments and the one before them -> (B S, 2 L, H, K), each after its memory."""
        old, new = (each.unflatten(1, (-1, self.segment)) for each in (old[:, : -self.segment], new[:, self.segment :]))
        return torch.cat([old, new], 2).flatten(0, 1)

    def _distances(self, count: int, like: Tensor) -> Tensor:
        """W_R R_d for d = count - 1, ..., 1, 0: (count, H, K)."""
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        d = torch.arange(count - 1, -1, -1, dtype=wide, device=like.device)
        powers = torch.arange(0, self.dim, 2, dtype=wide, device=like.device) / self.dim
        angles = d[:, None] * 10000.0**-powers
        waves = torch.cat([angles.sin(), angles.cos()], -1)[:, : self.dim]
        return self._split(self.places(waves.to(like.dtype)))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, distances: Tensor) -> Tensor:
        n, m = q.shape[1], k.shape[1]
        scores = torch.einsum("bnhk,mhk->bhnm", q + self.place_bias, distances[-m:]) * self.head_dim**-0.5
        # Column c of row i is distance m-1-c; key j is at distance m-n+i-j, so row i moves n-1-i to the left. What
        # wraps around is later than the query.
        bias = F.pad(scores, (0, 1)).flatten(2)[..., n - 1 : n - 1 + n * m].unflatten(2, (n, m))
        return attention(q + self.content_bias, k, v, mask=Causal(), bias=bias, backend=self.backend)

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """Keys and values (B, H, room, K) of the last two segments' tokens."""
        room = min(capacity or 0, 2 * self.segment)
        shape = batch, self.heads, self.head_dim
        return empty_cache(self.query.weight if like is None else like, room, keys=shape, values=shape)

    def extend(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        start = state["count"]
        q, k, v = map(self._split, (self.query(x), *self.key_value(x).chunk(2, -1)))
        seen, state = append_ring(state, 2 * self.segment, keys=k.transpose(1, 2), values=v.transpose(1, 2))
        rows = state["count"] - max(0, start // self.segment - 1) * self.segment
        k, v = (seen[name][:, :, -rows:].transpose(1, 2) for name in ("keys", "values"))
        return self.out(self._read(q, k, v, k, v, start).flatten(2)), state

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        if layout.offsets is not None:
            alone = [self.cost(part) for _, _, part in layout.sequences()]
            return Cost(
                parameter_count(self), sum(each.macs for each in alone), sum(each.state_bytes for each in alone)
            )
        n, length, inner = layout.tokens, self.segment, self.heads * self.head_dim
        first, (whole, rest) = min(n, length), divmod(max(0, n - length), length)
        pieces = [(first, first, batch), (length, 2 * length, batch * whole), (rest, length + rest, batch)]
        how = {"heads": self.heads, "key_dim": self.head_dim, "mask": Causal(), "bias": True, "backend": self.backend}
        read = sum(
            macs(queries, keys, batch=rows, **how) + rows * queries * keys * inner
            for queries, keys, rows in pieces
            if queries and rows
        )
        linear = (4 * batch * n + min(n, 2 * length)) * self.dim * inner
        state = 2 * batch * min(n, 2 * length) * inner * element_size(self)
        return Cost(parameter_count(self), linear + read, state)
