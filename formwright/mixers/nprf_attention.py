"""Kernelised attention with relative positions, in time N log N (NPRF with RPE).

    q_i = W_q x_i / |W_q x_i|,  k_j = W_k x_j / |W_k x_j|,  v_j = W_v x_j               norms over each head
    phi(x) = exp(W x - |x|^2 / 2)                                 positive orthogonal random features of exp(q . k)
    y_i = W_o concat_h sum_j exp(b_{j-i}) (phi(q_i) . phi(k_j)) v_j / sum_j exp(b_{j-i}) phi(q_i) . phi(k_j)

b is learned, a bias for every head and distance up to `reach`; tokens farther apart share that of the farthest. It
estimates softmax attention of the scores q . k + b. Unit queries and keys keep the estimate's variance bounded, which
is what lets it train from scratch. The weights exp(b_{j-i}) form a Toeplitz matrix: see ops/toeplitz_attention.py.
W is drawn once, and saved with the parameters. Decoding keeps phi(k) and v.
Stable, Fast and Accurate: Kernelized Attention with Relative Positional Encoding, arXiv 2106.12566, 2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, per_sequence, split_heads
from formwright.mixers.cache import Cache, append_heads, empty_cache
from formwright.mixers.random_features import feature_count, log_features, orthogonal_rows
from formwright.ops import toeplitz_attention as toeplitz
from formwright.ops.toeplitz_attention import toeplitz_attention
from formwright.parts import register


@register
class NprfAttention(TokenMixer):
    """Kernelised attention with relative positions, causal or two-directional: (B, N, D) -> (B, N, D).

    Raises ValueError for heads, features and a reach that don't fit."""

    card = Card(
        name="nprf_attention",
        summary="random features of normalised queries and keys, weighted by learned relative positions through FFTs",
        source="Stable, Fast and Accurate: Kernelized Attention with Relative Positional Encoding, arXiv 2106.12566, "
        "2021",
        patterns=("self", "causal"),
        grid_ranks=(1,),
        time="N log N",
        state="N",
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        features: int = 32,
        reach: int = 512,
        bias: bool = False,
    ):
        """features is F, the number of random features; reach the farthest distance with a bias of its own; bias that
        of the four linear maps."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("nprf_attention", dim, heads, head_dim)
        self.features, self.reach = feature_count("nprf_attention", features, self.head_dim), reach
        if reach < 0:
            raise ValueError(f"nprf_attention: reach is {reach}, but must be at least 0")
        inner = self.heads * self.head_dim
        self.query = nn.Linear(dim, inner, bias=bias)
        self.key = nn.Linear(dim, inner, bias=bias)
        self.value = nn.Linear(dim, inner, bias=bias)
        self.out = nn.Linear(inner, dim, bias=bias)
        self.bias = nn.Parameter(torch.zeros(self.heads, reach + 1 if causal else 2 * reach + 1))
        self.register_buffer("rows", orthogonal_rows(self.features, self.head_dim))

    def weights(self, n: int, m: int) -> Tensor:
        """exp(b), (H, N+M-1), of the distances i-j from 1-N to M-1, in float32 at least; 0 for later tokens of a causal
        mixer."""
        distance = torch.arange(1 - n, m, device=self.bias.device)
        least = 0 if self.causal else -self.reach
        bias = self.bias.to(torch.promote_types(self.bias.dtype, torch.float32))
        weights = torch.exp(bias - bias.detach().amax(-1, keepdim=True))  # the maximum cancels
        weights = weights[:, distance.clamp(least, self.reach) - least]
        return weights * (distance >= 0) if self.causal else weights

    def _features(self, linear: nn.Linear, x: Tensor) -> Tensor:
        y = linear(x).unflatten(-1, (self.heads, self.head_dim))
        projected, size = log_features(F.normalize(y, dim=-1, eps=1e-6), self.rows)
        return torch.exp(projected - size)

    def _values(self, x: Tensor) -> Tensor:
        return self.value(x).unflatten(-1, (self.heads, self.head_dim))

    def _mix(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = self._features(self.query, x)
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        o = toeplitz_attention(q, k, v, self.weights(q.shape[1], k.shape[1]), backend=self.backend)
        return self.out((o[..., :-1] / o[..., -1:]).flatten(2).to(x.dtype))

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        k, valid = self._features(self.key, x), layout.valid(x.device)
        if valid is not None:
            k = k * valid[..., None, None]
        return self._mix(x, k, self._values(x))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """phi(k) (B,H,capacity,F) and values (B,H,capacity,V)."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        like, shape = self.key.weight if like is None else like, (batch, self.heads)
        return empty_cache(like, capacity, keys=(*shape, self.features), values=(*shape, self.head_dim))

    def extend(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        k, v, state = append_heads(state, self._features(self.key, x), self._values(x))
        return self._mix(x, k, v), state

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, inner = layout.tokens, self.heads * self.head_dim
        linear = batch * n * (4 * self.dim * inner + 2 * inner * self.features)
        sizes = {"heads": self.heads, "features": self.features, "value_dim": self.head_dim + 1}
        sizes |= {"backend": self.backend}
        parts = [(n, batch)] if layout.offsets is None else [(p.tokens, 1) for _, _, p in layout.sequences()]
        products, transforms = (
            sum(count(size, size, **sizes, batch=rows) for size, rows in parts)
            for count in (toeplitz.macs, toeplitz.flops)
        )
        state = batch * n * self.heads * (self.features + self.head_dim) * element_size(self)
        return Cost(parameter_count(self), linear + products, state if self.causal else 0, transforms)
