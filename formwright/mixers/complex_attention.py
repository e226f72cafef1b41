"""Complex attention: pairs of channels are complex numbers, whose angles each head takes in a measure of its own.

    q_i = W_q x_i,  k_j = W_k x_j     as K / 2 complex numbers a head: |q_ic| exp(i a_ic), |k_jc| exp(i b_jc)
    s_ij = sum_c |q_ic| |k_jc| cos(delta_c (a_ic - b_jc) + bias_c + (i - j) g_c) / sqrt(K),   g_c = 10000^(-2c / K)
    y_i = W_o concat_h sum_j softmax_j(s_ij) v_j                              delta and bias for every head and c

delta (semantic differences) and bias are learned; (i - j) g_c is what rope adds, so that delta = 1 and bias = 0 is
attention with rope. A sum of angles is a sum of turns: with the angles of q and k taken times delta, plus bias, plus
rope's, the scores are plain products, and this is attention on queries and keys of the same width.
ComplexFormer: Disruptively Advancing Transformer Inference Ability via Head-Specific Complex Vector Attention, arXiv
2505.10222, 2025 (its second version withdraws it). Equations and first values (delta of spread sqrt(2 / K), bias 0) are
those of the authors' program, which leaves out the division by sqrt(K).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, split_heads
from formwright.mixers.cache import Cache, append_heads, empty_cache
from formwright.mixers.rotary import rotary, turned
from formwright.mixers.scores import attend, attend_macs, looks_back
from formwright.ops.attention import attention
from formwright.parts import register
from formwright.positions.rope import Rope


@register
class ComplexAttention(TokenMixer):
    """Complex multi-head attention (CMHA): (B, N, D) -> (B, N, D).

    Raises ValueError or Unsupported for widths and positions that don't fit."""

    card = Card(
        name="complex_attention",
        summary="softmax attention on complex queries and keys: each head scales and shifts the angles between them",
        source="ComplexFormer: Disruptively Advancing Transformer Inference Ability via Head-Specific Complex Vector "
        "Attention, arXiv 2505.10222, 2025",
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
        position: Callable | None = Rope,
        bias: bool = False,
    ):
        """
        heads, head_dim  heads of an even width head_dim; dim / heads without it
        position         the rotary position whose angles are added; None adds none
        bias             of the four linear maps
        """
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("complex_attention", dim, heads, head_dim)
        if self.head_dim % 2:
            raise ValueError(f"complex_attention: heads hold pairs of channels, but head_dim is {self.head_dim}")
        width, pairs = self.heads * self.head_dim, self.head_dim // 2
        self.query = nn.Linear(dim, width, bias=bias)
        self.key = nn.Linear(dim, width, bias=bias)
        self.value = nn.Linear(dim, width, bias=bias)
        self.out = nn.Linear(width, dim, bias=bias)
        self.delta = nn.Parameter(torch.randn(self.heads, pairs) * pairs**-0.5)
        self.shift = nn.Parameter(torch.zeros(self.heads, pairs))
        self.position = rotary(self, position, self.head_dim)
        if position is None:
            self.card = replace(self.card, symmetries=("permutation",))

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        q, k, v = self._read(x, layout.positions(x.device))
        o = attend(q, k, v, layout, causal=self.causal, mask=looks_back(self.causal), backend=self.backend)
        return self.out(o.flatten(2))

    def _read(self, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> q, k, v (B, N, H, K), q and k with the angles that scores are made of."""
        q, k, v = (f(x).unflatten(-1, (self.heads, self.head_dim)) for f in (self.query, self.key, self.value))
        q, k = with_angles(q, self.delta, self.shift), with_angles(k, self.delta)
        return turned(q, self.position, places), turned(k, self.position, places), v

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """Keys and values (B, H, capacity, K)."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        shape = batch, self.heads, self.head_dim
        return empty_cache(self.key.weight if like is None else like, capacity, keys=shape, values=shape)

    def extend(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        places = torch.arange(state["count"], state["count"] + x.shape[1], device=x.device)[:, None]
        q, k, v = self._read(x, places)
        k, v, state = append_heads(state, k, v)
        return self.out(attention(q, k, v, mask=looks_back(True), backend=self.backend).flatten(2)), state

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, width = layout.tokens, self.heads * self.head_dim
        how = {"mask": looks_back(self.causal), "backend": self.backend}
        products = attend_macs(layout, batch, causal=self.causal, heads=self.heads, key_dim=self.head_dim, **how)
        state = 2 * batch * n * width * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), batch * n * 4 * self.dim * width + products, state)


def with_angles(x: Tensor, times: Tensor, plus: Tensor | None = None) -> Tensor:
    """x (..., K) as K / 2 complex numbers, real parts first, with their angles taken `times` (..., K/2), `plus`."""
    real, imaginary = x.chunk(2, -1)
    square = real * real + imaginary * imaginary
    zero = square == 0  # whose angle, and its gradient, is none
    length = torch.where(zero, 0, torch.where(zero, 1, square).sqrt())
    angle = times * torch.atan2(imaginary, torch.where(zero, 1, real))
    angle = angle if plus is None else angle + plus
    return torch.cat([length * angle.cos(), length * angle.sin()], -1)
