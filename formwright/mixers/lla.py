"""Local Linear Attention: every token fits a line, not a constant, to the values about its query.

    q_i = W_q x_i,  k_j = W_k x_j,  v_j = W_v x_j            H heads of width K; q and k RMS-normalised, with a scale
    w_ij = exp(q_i . k_j / sqrt(K)),   log lambda_i = W_r x_i + b_r        a ridge for every head and token
    (b_i, S_i) = argmin sum_j w_ij |v_j - b - S (k_j - q_i)|^2 + lambda_i |S|^2,       y_i = W_o concat_h b_hi

Softmax attention is the constant fit (lambda -> infinity), linear attention with all keys' covariance undone the
global line. The ridge is learned, and begins at `ridge` for all tokens; q and k are normalised so that one lambda suits
all of them (`qk_norm=False` leaves this out).
Local Linear Attention: An Optimal Interpolation of Linear and Softmax Attention For Test-Time Regression, arXiv
2510.01450, 2025.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, split_heads
from formwright.mixers.cache import Cache, append_heads, empty_cache
from formwright.mixers.rotary import rotary, turned
from formwright.ops.local_linear import local_linear_attention, macs, solves
from formwright.parts import register


@register
class LocalLinearAttention(TokenMixer):
    """Local linear attention: (B, N, D) -> (B, N, D); time grows with N^2, K times as fast as attention's.

    Raises ValueError for widths that don't fit and a ridge that isn't positive."""

    card = Card(
        name="lla",
        summary="at every query a ridge regression of values on keys, weighted as in softmax attention; learned ridge",
        source="Local Linear Attention: An Optimal Interpolation of Linear and Softmax Attention For Test-Time "
        "Regression, arXiv 2510.01450, 2025",
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
        head_dim: int | None = None,
        position: Callable | None = None,
        qk_norm: bool = True,
        ridge: float = 1.0,
        bias: bool = False,
    ):
        """
        heads, head_dim  heads of width head_dim; dim / heads without it
        position         a rotary position
        qk_norm          RMS norm of queries and keys
        ridge            lambda at the start
        bias             of the four linear maps
        """
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("lla", dim, heads, head_dim)
        if ridge <= 0:
            raise ValueError(f"lla: ridge is {ridge}, but must be positive; a large one gives softmax attention")
        width = self.heads * self.head_dim
        self.query = nn.Linear(dim, width, bias=bias)
        self.key = nn.Linear(dim, width, bias=bias)
        self.value = nn.Linear(dim, width, bias=bias)
        self.out = nn.Linear(width, dim, bias=bias)
        self.ridge = nn.Linear(dim, self.heads)
        nn.init.zeros_(self.ridge.weight)
        nn.init.constant_(self.ridge.bias, math.log(ridge))
        self.query_norm = nn.RMSNorm(self.head_dim, eps=1e-6) if qk_norm else None
        self.key_norm = nn.RMSNorm(self.head_dim, eps=1e-6) if qk_norm else None
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
        across = layout if context is None else context_layout
        if (layout.offsets is None) != (across.offsets is None):
            self.refuse("packed tokens", "tokens and context must both be packed, or neither")
        causal = self.causal and context is None
        q = self._turned(self.query, self.query_norm, x, layout.positions(x.device))
        k, v = self._keys(x if context is None else context, across.positions(x.device))
        offsets = None if layout.offsets is None else (layout.offsets, across.offsets)
        lengths = layout.lengths, across.lengths
        if causal or lengths == (None, None):
            lengths = None  # padding comes after every token that counts
        o = local_linear_attention(
            q, k, v, self.ridge(x), causal=causal, offsets=offsets, lengths=lengths, backend=self.backend
        )
        return self.out(o.flatten(2))

    def _turned(self, linear: nn.Linear, norm: nn.Module | None, x: Tensor, positions: Tensor) -> Tensor:
        y = linear(x).unflatten(-1, (self.heads, self.head_dim))
        return turned(y if norm is None else norm(y), self.position, positions)

    def _keys(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        v = self.value(x).unflatten(-1, (self.heads, self.head_dim))
        return self._turned(self.key, self.key_norm, x, positions), v

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """Keys and values (B, H, capacity, K)."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        like = self.key.weight if like is None else like
        shape = batch, self.heads, self.head_dim
        return empty_cache(like, capacity, keys=shape, values=shape)

    def extend(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        count, end = state["count"], state["count"] + x.shape[1]
        positions = torch.arange(count, end, device=x.device)[:, None]
        q = self._turned(self.query, self.query_norm, x, positions)
        k, v, state = append_heads(state, *self._keys(x, positions))
        o = local_linear_attention(q, k, v, self.ridge(x), causal=True, backend=self.backend)
        return self.out(o.flatten(2)), state

    def cost(self, layout: Layout, batch: int = 1, context_layout: Layout | None = None) -> Cost:
        """Projections, and what the op computes for each sequence; with a context, of its tokens."""
        n = layout.tokens
        m = n if context_layout is None else context_layout.tokens
        width = self.heads * self.head_dim
        linear = batch * self.dim * (2 * (n + m) * width + n * self.heads)
        causal = self.causal and context_layout is None
        alone = context_layout is not None or layout.plain or (layout.lengths is not None and causal)
        sizes = [(n, m, batch)] if alone else [(part.tokens, part.tokens, 1) for _, _, part in layout.sequences()]
        heads = {"heads": self.heads, "key_dim": self.head_dim}
        products = sum(macs(a, b, **heads, causal=causal, batch=rows, backend=self.backend) for a, b, rows in sizes)
        systems = sum(solves(a, **heads, batch=rows) for a, _, rows in sizes)
        state = 2 * batch * n * width * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), linear + products, state, systems)
