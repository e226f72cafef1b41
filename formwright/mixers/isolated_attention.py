"""Attention with a group of tokens that don't attend to one another, as images before text: SAISA's NAAViT.

    y_i = W_o concat_h sum_{j allowed} softmax_j(q_hi . k_hj / sqrt(K)) v_hj
    allowed: j <= i where causal, and not both i and j in the group start ... stop-1, but for j = i

Tokens of the group read those outside it and themselves. The group and the tokens around it are computed apart, so that
of the V^2 pairs among V tokens only those near the diagonal are computed.
SAISA: Towards Multimodal Large Language Models with Both Training and Inference Efficiency, arXiv 2502.02458, 2025.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, per_sequence, split_heads
from formwright.mixers.cache import Cache, append_heads, empty_cache
from formwright.mixers.rotary import rotary, turned
from formwright.ops.attention import attention, macs
from formwright.ops.masks import Causal, Mask
from formwright.ops.masks_groups import Isolated
from formwright.parts import register


@register
class IsolatedAttention(TokenMixer):
    """Softmax attention without attention among the tokens start..stop-1 of each sequence: (B, N, D) -> (B, N, D).

    Raises ValueError or Unsupported for widths, groups and positions that don't fit."""

    card = Card(
        name="isolated_attention",
        summary="softmax attention in which the tokens of one group, such as an image's, don't attend to one another",
        source="SAISA: Towards Multimodal Large Language Models with Both Training and Inference Efficiency, "
        "arXiv 2502.02458, 2025",
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
        start: int = 0,
        stop: int = 64,
        heads: int | None = None,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        position: Callable | None = None,
        bias: bool = False,
    ):
        """
        start, stop      the group's tokens are start..stop-1 of each sequence
        heads, head_dim  heads of width head_dim; dim / heads without it
        kv_heads         key/value heads, a divisor of the heads, as many without it
        position         a rotary position
        bias             of the four linear maps
        """
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("isolated_attention", dim, heads, head_dim)
        self.kv_heads = self.heads if kv_heads is None else kv_heads
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            self.refuse(f"kv_heads={kv_heads}", f"the {self.heads} query heads must be a multiple of them")
        self.group = Isolated(start, stop)
        self.query = nn.Linear(dim, self.heads * self.head_dim, bias=bias)
        self.key = nn.Linear(dim, self.kv_heads * self.head_dim, bias=bias)
        self.value = nn.Linear(dim, self.kv_heads * self.head_dim, bias=bias)
        self.out = nn.Linear(self.heads * self.head_dim, dim, bias=bias)
        self.position = rotary(self, position, self.head_dim)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.offsets is not None or (layout.lengths is not None and not self.causal):
            return per_sequence(self, x, layout)
        q, k, v = self._split(x, layout.positions(x.device))
        start, stop = self._group(layout.tokens)
        if not self.causal:  # the group last, where the queries of a piece stand
            q, k, v = (torch.cat([y[:, :start], y[:, stop:], y[:, start:stop]], 1) for y in (q, k, v))
        pieces = self._pieces(layout.tokens)
        out = [attention(q[:, i], k[:, j], v[:, j], mask=mask, backend=self.backend) for i, j, mask in pieces]
        o = torch.cat(out, 1)
        if not self.causal:
            last = layout.tokens - (stop - start)
            o = torch.cat([o[:, :start], o[:, last:], o[:, start:last]], 1)
        return self.out(o.flatten(2))

    def _group(self, n: int) -> tuple[int, int]:
        return min(self.group.start, n), min(self.group.stop, n)

    def _pieces(self, n: int) -> list[tuple[slice, slice, Mask | None]]:
        """Queries, the keys they may see, and their mask: around the group, and in it."""
        start, stop = self._group(n)
        if self.causal:
            bounds = [(0, start, Causal()), (start, stop, Isolated(start, stop)), (stop, n, Causal())]
            return [(slice(a, b), slice(0, b), mask) for a, b, mask in bounds if a < b]
        last = n - (stop - start)
        bounds = [(0, last, None), (last, n, Isolated(last, n))]
        return [(slice(a, b), slice(0, n), mask) for a, b, mask in bounds if a < b]

    def _split(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (each(x).unflatten(-1, (-1, self.head_dim)) for each in (self.query, self.key, self.value))
        return turned(q, self.position, positions), turned(k, self.position, positions), v

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """Keys and values (B, G, capacity, K)."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        shape = batch, self.kv_heads, self.head_dim
        return empty_cache(self.key.weight if like is None else like, capacity, keys=shape, values=shape)

    def extend(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        positions = torch.arange(state["count"], state["count"] + x.shape[1], device=x.device)[:, None]
        q, k, v = self._split(x, positions)
        k, v, state = append_heads(state, k, v)
        return self.out(attention(q, k, v, mask=Causal() & self.group, backend=self.backend).flatten(2)), state

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, width = layout.tokens, self.head_dim
        alone = layout.plain or (layout.lengths is not None and self.causal)
        sizes = [(n, batch)] if alone else [(part.tokens, 1) for _, _, part in layout.sequences()]
        how = {"heads": self.heads, "kv_heads": self.kv_heads, "key_dim": width, "backend": self.backend}
        products = sum(
            macs(i.stop - i.start, j.stop, mask=mask, batch=rows, **how)
            for tokens, rows in sizes
            for i, j, mask in self._pieces(tokens)
        )
        linear = 2 * batch * n * self.dim * (self.heads + self.kv_heads) * width
        state = 2 * batch * self.kv_heads * n * width * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), linear + products, state)
