"""Primer's multi-DConv-head attention: queries, keys and values of each head see the last few tokens.

    q_i = sum_{t<W} c^q_t * W_q x_{i-t},   and so k_j, v_j with filters of their own: one for each channel of each head
    y_i = W_o concat_h sum_j softmax_j(q_hi . k_hj / sqrt(K)) v_hj

The width W is 3. At the start a filter weighs the token itself by 1/2 and each of the others by 1 / (2 W).
Two-directional attention centres the filters. `relu2` is the channel part that goes with it.
Primer: Searching for Efficient Transformers for Language Modeling, arXiv 2109.08668, 2021.
"""

from __future__ import annotations

from collections.abc import Callable

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
from formwright.mixers.rotary import rotary, turned
from formwright.mixers.scores import attend, attend_macs, looks_back
from formwright.ops.attention import attention
from formwright.ops.convolution import short_convolution, short_flops
from formwright.parts import register

State = tuple[Tensor, Cache]  # the last W - 1 projected tokens, before their filters; keys and values


@register
class PrimerAttention(TokenMixer):
    """Softmax attention with a short filter after each projection: (B, N, D) -> (B, N, D).

    Raises ValueError or Unsupported for widths and positions that don't fit."""

    card = Card(
        name="primer_attention",
        summary="softmax attention whose queries, keys and values pass a depthwise convolution over three tokens",
        source="Primer: Searching for Efficient Transformers for Language Modeling, arXiv 2109.08668, 2021",
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
        short: int = 3,
        position: Callable | None = None,
        bias: bool = False,
    ):
        """
        heads, head_dim  heads of width head_dim; dim / heads without it
        short            taps of the filters, odd unless causal
        position         a rotary position
        bias             of the four linear maps
        """
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("primer_attention", dim, heads, head_dim)
        if short < 1 or (not causal and short % 2 == 0):
            raise ValueError(
                f"primer_attention: short is {short}, but filters have at least one tap, an odd number where centred"
            )
        inner = self.heads * self.head_dim
        self.short = short
        self.inputs = nn.Linear(dim, 3 * inner, bias=bias)
        self.out = nn.Linear(inner, dim, bias=bias)
        taps = torch.full((3 * inner, short), 0.5 / short)
        taps[:, -1 if causal else short // 2] = 0.5
        self.filters = nn.Parameter(taps)
        self.position = rotary(self, position, self.head_dim)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.lengths is not None and not self.causal:
            return per_sequence(self, x, layout)  # centred filters would reach into the padding
        y, _ = short_convolution(
            self.inputs(x), self.filters, causal=self.causal, offsets=layout.offsets, backend=self.backend
        )
        q, k, v = self._split(y, layout.positions(x.device))
        o = attend(q, k, v, layout, causal=self.causal, mask=looks_back(self.causal), backend=self.backend)
        return self.out(o.flatten(2))

    def _split(self, y: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = y.unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)
        return turned(q, self.position, positions), turned(k, self.position, positions), v

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> State:
        """The last W - 1 tokens' projections, and keys and values (B, H, capacity, K)."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        like = self.inputs.weight if like is None else like
        shape = batch, self.heads, self.head_dim
        return like.new_zeros(batch, self.short - 1, len(self.filters)), empty_cache(
            like, capacity, keys=shape, values=shape
        )

    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        last, cache = state
        y, last = short_convolution(self.inputs(x), self.filters, state=last, backend=self.backend)
        positions = torch.arange(cache["count"], cache["count"] + x.shape[1], device=x.device)[:, None]
        q, k, v = self._split(y, positions)
        k, v, cache = append_heads(cache, k, v)
        o = attention(q, k, v, mask=None if x.shape[1] == 1 else looks_back(True), backend=self.backend)
        return self.out(o.flatten(2)), (last, cache)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, inner = layout.tokens, self.heads * self.head_dim
        how = {"heads": self.heads, "key_dim": self.head_dim, "mask": looks_back(self.causal), "backend": self.backend}
        products = attend_macs(layout, batch, causal=self.causal, **how)
        state = batch * (2 * n + 3 * (self.short - 1)) * inner * element_size(self) if self.causal else 0
        return Cost(
            parameter_count(self),
            4 * batch * n * self.dim * inner + products,
            state,
            short_flops(n, 3 * inner, self.short, batch),
        )
