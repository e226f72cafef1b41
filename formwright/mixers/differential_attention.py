"""Differential attention: the difference of two softmax maps cancels what both give to every token alike.

    [q1_i, q2_i] = W_q x_i,  [k1_j, k2_j] = W_k x_j  of width K each,   v_j = W_v x_j  of width 2 K,   for each head
    o_i = sum_j (softmax_j(q1_i . k1_j / sqrt(K)) - lambda softmax_j(q2_i . k2_j / sqrt(K))) v_j
    lambda = exp(l_q1 . l_k1) - exp(l_q2 . l_k2) + lambda_init              vectors of width K, one for all heads
    y_i = W_o concat_h (1 - lambda_init) norm_h(o_hi)                       an RMS norm over each head's 2 K channels

With H heads of 2 K channels it has the parameters of attention with 2 H heads of K. lambda_init is 0.8 in every layer;
the paper's models also take 0.8 - 0.6 exp(-0.3 (l - 1)) in layer l.
Differential Transformer, arXiv 2410.05258, 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count
from formwright.mixers.cache import Cache, append_heads, empty_cache
from formwright.mixers.rotary import rotary, turned
from formwright.mixers.scores import attend, attend_macs, looks_back
from formwright.ops.attention import attention
from formwright.parts import register


@register
class DifferentialAttention(TokenMixer):
    """Differential attention: (B, N, D) -> (B, N, D).

    Raises ValueError or Unsupported for widths, heads and positions that don't fit."""

    card = Card(
        name="differential_attention",
        summary="the difference of two softmax maps over the same values, the second times a learned number",
        source="Differential Transformer, arXiv 2410.05258, 2024",
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
        heads: int | None = None,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        position: Callable | None = None,
        lambda_init: float = 0.8,
        scaled_norm: bool = True,
        bias: bool = False,
    ):
        """
        heads        heads, each of two maps; as many as heads of 128 channels fit without it
        kv_heads     heads of keys and values, a divisor of heads; as many without it
        head_dim     K, the width of one map's queries and keys; dim / (2 heads) without it
        position     a rotary position
        lambda_init  of lambda at the start, and of the scale behind the norm
        scaled_norm  a learned scale in the norm, the same for all heads
        bias         of the four linear maps
        """
        super().__init__(dim, causal=causal)
        self.heads = max(1, round(dim / 128)) if heads is None else heads
        self.kv_heads = self.heads if kv_heads is None else kv_heads
        if self.heads < 1 or self.kv_heads < 1 or self.heads % self.kv_heads:
            self.refuse(f"kv_heads={kv_heads}", f"the {self.heads} heads must be a multiple of them, both at least 1")
        if head_dim is None and dim % (2 * self.heads):
            raise ValueError(
                f"differential_attention: the width {dim} is no multiple of 2 x {self.heads} heads; choose heads that "
                "divide half of it, or set head_dim"
            )
        self.head_dim = dim // (2 * self.heads) if head_dim is None else head_dim
        if not 0 <= lambda_init < 1:
            raise ValueError(f"differential_attention: lambda_init is {lambda_init}, but must lie in [0, 1)")
        self.lambda_init = lambda_init
        width, kv_width = 2 * self.heads * self.head_dim, 2 * self.kv_heads * self.head_dim
        self.query = nn.Linear(dim, width, bias=bias)
        self.key = nn.Linear(dim, kv_width, bias=bias)
        self.value = nn.Linear(dim, kv_width, bias=bias)
        self.out = nn.Linear(width, dim, bias=bias)
        self.norm = nn.RMSNorm(2 * self.head_dim, eps=1e-5, elementwise_affine=scaled_norm)
        self.lambda_query = nn.Parameter(torch.randn(2, self.head_dim) * 0.1)
        self.lambda_key = nn.Parameter(torch.randn(2, self.head_dim) * 0.1)
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
        source, across = (x, layout) if context is None else (context, context_layout)
        queries = self._maps(self.query(x), layout.positions(x.device))
        keys, v = self._maps(self.key(source), across.positions(x.device)), self._values(source)
        how = {"mask": looks_back(self.causal) if context is None else None, "backend": self.backend}
        how |= {"causal": self.causal, "context_layout": context_layout}
        return self._join([attend(q, k, v, layout, **how) for q, k in zip(queries, keys, strict=True)])

    def _maps(self, projected: Tensor, places: Tensor) -> list[Tensor]:
        """(B, N, 2 heads K) -> what each of the two maps has, (B, N, heads, K)."""
        each = turned(projected.unflatten(-1, (-1, self.head_dim)), self.position, places)
        return list(each.chunk(2, 2))

    def _values(self, x: Tensor) -> Tensor:
        return self.value(x).unflatten(-1, (self.kv_heads, 2 * self.head_dim))

    def _join(self, maps: list[Tensor]) -> Tensor:
        first, second = (self.lambda_query * self.lambda_key).sum(-1).exp()
        o = maps[0] - (first - second + self.lambda_init) * maps[1]
        return self.out((1 - self.lambda_init) * self.norm(o).flatten(2))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """Keys (B, 2 G, capacity, K) of both maps, values (B, G, capacity, 2 K)."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        keys, values = (batch, 2 * self.kv_heads, self.head_dim), (batch, self.kv_heads, 2 * self.head_dim)
        return empty_cache(self.key.weight if like is None else like, capacity, keys=keys, values=values)

    def extend(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        places = torch.arange(state["count"], state["count"] + x.shape[1], device=x.device)[:, None]
        queries, keys = self._maps(self.query(x), places), torch.cat(self._maps(self.key(x), places), 2)
        keys, v, state = append_heads(state, keys, self._values(x))
        how = {"mask": looks_back(True), "backend": self.backend}
        return self._join([attention(q, k, v, **how) for q, k in zip(queries, keys.chunk(2, 2), strict=True)]), state

    def cost(self, layout: Layout, batch: int = 1, context_layout: Layout | None = None) -> Cost:
        n = layout.tokens
        m = n if context_layout is None else context_layout.tokens
        linear = batch * self.dim * 4 * (n * self.heads + m * self.kv_heads) * self.head_dim
        how = {"mask": looks_back(self.causal) if context_layout is None else None, "backend": self.backend}
        how |= {"heads": self.heads, "kv_heads": self.kv_heads}
        how |= {"key_dim": self.head_dim, "value_dim": 2 * self.head_dim}
        products = 2 * attend_macs(layout, batch, causal=self.causal, context_layout=context_layout, **how)
        state = 4 * batch * self.kv_heads * n * self.head_dim * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), linear + products, state)
