"""URPE attention: softmax weights are multiplied by learned factors of the distance, negative ones and zero too.

    p_hij = softmax_j(q_hi . k_hj / sqrt(K) + b_h(i - j)),      b a relative position, if there is one
    y_i   = W_o concat_h sum_j p_hij C_h(i - j) v_hj,           C a learned number for each head and distance, first 1

Softmax rows sum to one, so that without C equal tokens give equal outputs whatever the position bias; with it attention
with relative positions is a universal approximator.
Your Transformer May Not be as Powerful as You Expect, arXiv 2205.13401, 2022.
"""

from __future__ import annotations

from collections.abc import Callable

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
from formwright.mixers.cache import Cache, append_heads, empty_cache
from formwright.mixers.rotary import rotary, turned
from formwright.ops.attention import Distance
from formwright.ops.gained_attention import gained_attention, macs
from formwright.parts import class_of, register


@register
class URPEAttention(TokenMixer):
    """Attention with factors of the distance: (B, N, D) -> (B, N, D), any N <= length.

    Raises ValueError for more tokens than `length` and widths that don't fit, Unsupported for other positions than
    rotary ones and biases of the distance."""

    card = Card(
        name="urpe_attention",
        summary="softmax attention whose weights are multiplied by learned factors of the distance",
        source="Your Transformer May Not be as Powerful as You Expect, arXiv 2205.13401, 2022",
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
        length: int = 1024,
        heads: int | None = None,
        head_dim: int | None = None,
        position: Callable | None = None,
        bias: bool = False,
    ):
        """
        length           the most tokens: there is a factor for each distance
        heads, head_dim  heads of width head_dim; dim / heads without it
        position         a rotary position, or a bias of the distance
        bias             of the four linear maps
        """
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("urpe_attention", dim, heads, head_dim)
        self.length = length
        self.inputs = nn.Linear(dim, 3 * self.heads * self.head_dim, bias=bias)
        self.out = nn.Linear(self.heads * self.head_dim, dim, bias=bias)
        self.factors = nn.Parameter(torch.ones(self.heads, length if causal else 2 * length - 1))
        self.scores = self.position = None
        if position is not None and getattr(class_of(position), "relative", False):
            self.scores = position(heads=self.heads)
        else:
            self.position = rotary(self, position, self.head_dim)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.offsets is not None or (layout.lengths is not None and not self.causal):
            return per_sequence(self, x, layout)
        self._check_length(layout.tokens)
        return self.out(self._attend(*self._split(x, layout.positions(x.device))).flatten(2))

    def _check_length(self, tokens: int) -> None:
        if tokens > self.length:
            raise ValueError(
                f"urpe_attention: {tokens} tokens, but factors for length={self.length}; set length={tokens} or more"
            )

    def _split(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.inputs(x).unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)
        return turned(q, self.position, positions), turned(k, self.position, positions), v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, m = q.shape[1], k.shape[1]
        if self.causal:
            gain = Distance(F.pad(self.factors[:, :m], (n - 1, 0)), n - 1)
        else:
            gain = Distance(self.factors, self.length - 1)
        bias = None
        if self.scores is not None:
            distances = torch.arange(1 - n, m, device=q.device)[:, None]
            table = self.scores.bias(distances, torch.zeros_like(distances[:1]))
            bias = Distance(table[..., 0].to(q.dtype), n - 1)
        return gained_attention(q, k, v, gain, bias=bias, causal=self.causal, backend=self.backend)

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """Keys and values (B, H, capacity, K)."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        shape = batch, self.heads, self.head_dim
        room = min(capacity or 0, self.length)
        return empty_cache(self.inputs.weight if like is None else like, room, keys=shape, values=shape)

    def extend(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        count = state["count"]
        self._check_length(count + x.shape[1])
        q, k, v = self._split(x, torch.arange(count, count + x.shape[1], device=x.device)[:, None])
        k, v, state = append_heads(state, k, v)
        o = self._attend(q, k, v)
        return self.out(o.flatten(2)), state

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, inner = layout.tokens, self.heads * self.head_dim
        alone = layout.plain or (layout.lengths is not None and self.causal)
        sizes = [(n, batch)] if alone else [(part.tokens, 1) for _, _, part in layout.sequences()]
        how = {"heads": self.heads, "key_dim": self.head_dim, "causal": self.causal, "backend": self.backend}
        products = sum(macs(tokens, tokens, batch=rows, **how) for tokens, rows in sizes)
        state = 2 * batch * n * inner * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), 4 * batch * n * self.dim * inner + products, state)
