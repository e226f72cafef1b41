"""Retention: linear attention whose past fades at a rate of its own in each head, with rotated queries and keys.

    S_t = gamma_h S_{t-1} + r(k_t) v_t^T / sqrt(K),   o_t = S_t^T r(q_t),   gamma_h = 1 - 2^(-5-h)
    y_t = W_o (swish(W_g x_t) * norm(o_t)),           norm: root mean square of each head, without scale

r turns pairs of neighbouring channels by t theta_f, theta_f = 10000^(-f), f from 0 to 1 over the pairs. The paper's
score normalisations only rescale o_t, which the norm of each head takes back. Values are `expansion` times as wide as
keys. With initial_state S_0 is a parameter instead of 0. Two-directional, every token reads all others of its sequence,
which fade with their distance, a grid in row-major order:

    o_t = sum_s gamma_h^|t-s| (r(q_t) . r(k_s)) v_s / sqrt(K)

Retentive Network: A Successor to Transformer for Large Language Models, arXiv 2307.08621, 2023; two-directional: RMT:
Retentive Networks Meet Vision Transformers, arXiv 2309.11523, 2023.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, split_heads
from formwright.mixers.linear_attention import packed_lengths
from formwright.mixers.sequences import decayed_both_ways, first_state, learned_state, places, state_before
from formwright.ops import recurrence
from formwright.ops.recurrence import linear_recurrence
from formwright.parts import register


@register
class Retention(TokenMixer):
    """Multi-scale retention: (B, N, D) -> (B, N, D), causal or two-directional.

    Raises ValueError for an odd head_dim or heads that don't fit."""

    card = Card(
        name="retention",
        summary="linear attention with rotated keys whose past fades at one fixed rate a head; gated output",
        source="Retentive Network: A Successor to Transformer for Large Language Models, arXiv 2307.08621, 2023",
        patterns=("self", "causal"),
        symmetries=("shift",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        expansion: int = 2,
        initial_state: bool = False,
        eps: float = 1e-6,
    ):
        """head_dim is the width of a head's queries and keys; its values are `expansion` times as wide."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("retention", dim, heads, head_dim)
        if self.head_dim % 2:
            raise ValueError(f"retention: head_dim is {self.head_dim}, but pairs of channels are turned; make it even")
        if expansion < 1:
            raise ValueError(f"retention: expansion is {expansion}, but must be at least 1")
        self.value_dim, self.eps = expansion * self.head_dim, eps
        inner, wide = self.heads * self.head_dim, self.heads * self.value_dim
        self.query = nn.Linear(dim, inner, bias=False)
        self.key = nn.Linear(dim, inner, bias=False)
        self.value = nn.Linear(dim, wide, bias=False)
        self.gate = nn.Linear(dim, wide, bias=False)
        self.out = nn.Linear(wide, dim, bias=False)
        for layer in (self.query, self.key, self.value, self.gate):
            nn.init.xavier_uniform_(layer.weight, gain=2**-2.5)
        nn.init.xavier_uniform_(self.out.weight)
        self.initial = learned_state(self, initial_state, self.heads, self.head_dim, self.value_dim)

    def _turned(self, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k (B,N,H,K) turned by their places `at` (N,), and v (B,N,H,V)."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.query, self.key, self.value))
        wide = torch.promote_types(x.dtype, torch.float32)
        theta = 10000 ** -torch.linspace(0, 1, self.head_dim // 2, dtype=wide, device=x.device)
        angles = (at.to(wide)[:, None] * theta)[:, None]
        cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)
        return _turn(q, cos, sin), _turn(k, cos, sin), v

    def _log_decay(self, x: Tensor) -> Tensor:
        """log gamma_h, (H,)."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return torch.log1p(-(2 ** (-5 - torch.arange(self.heads, dtype=wide, device=x.device))))

    def _gated(self, x: Tensor, o: Tensor) -> Tensor:
        return self.out(F.silu(self.gate(x)) * F.rms_norm(o, (self.value_dim,), eps=self.eps).flatten(2))

    def _causal(self, x: Tensor, at: Tensor, state: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = self._turned(x, at)
        o, state = linear_recurrence(
            q,
            k,
            v,
            log_decay=self._log_decay(x).expand(q.shape[:3]),
            scale=self.head_dim**-0.5,
            state=state,
            offsets=offsets,
            backend=self.backend,
        )
        return self._gated(x, o), state

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        at = places(layout, x.device)
        if self.causal:
            return self._causal(x, at, first_state(self.initial, len(x), layout.offsets), layout.offsets)[0]
        parts = *self._turned(x, at), self._log_decay(x)
        return self._gated(x, decayed_both_ways(*parts, layout, scale=self.head_dim**-0.5, backend=self.backend))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> tuple[Tensor, int]:
        """(S (B, H, K, V), tokens seen)."""
        like = self.query.weight if like is None else like
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        return state_before(like, batch, self.heads, self.head_dim, self.value_dim, initial=self.initial), 0

    def extend(self, x: Tensor, state: tuple[Tensor, int]) -> tuple[Tensor, tuple[Tensor, int]]:
        s, count = state
        y, s = self._causal(x, torch.arange(count, count + x.shape[1], device=x.device), s, None)
        return y, (s, count + x.shape[1])

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, key, value = layout.tokens, self.head_dim, self.value_dim
        linear = batch * n * self.dim * self.heads * (2 * key + 3 * value)
        products = recurrence.macs(batch, n, self.heads, key, value, log_decay="scalar", lengths=packed_lengths(layout))
        state = batch * self.heads * key * value * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), linear + products * (1 if self.causal else 2), state)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B,N,H,K) with pairs of neighbouring channels turned; cos, sin (N,1,K/2)."""
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
