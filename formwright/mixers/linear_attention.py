"""Linear attention: scores are products of positive features, so that their sums can be taken first.

    y_i = sum_j (phi(q_i) . phi(k_j)) v_j / (sum_j phi(q_i) . phi(k_j) + eps)
    causal, j <= i:  S_i = S_{i-1} + phi(k_i) [v_i, 1]^T,   [numerator, denominator] = S_i^T phi(q_i)

phi(x) = elu(x) + 1, or another map of feature_maps.py, two of which are learned: one map for queries, one for keys.
Time is linear in N, the state does not grow. With a context every token reads all of it. With initial_state S_0, the
denominators' column included, is a parameter instead of 0.
Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention, arXiv 2006.16236, 2020.
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
from formwright.mixers.feature_maps import FeatureMap
from formwright.mixers.sequences import first_state, learned_state, state_before
from formwright.ops import recurrence
from formwright.ops.recurrence import linear_recurrence
from formwright.parts import register


def normalised(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eps: float,
    *,
    state: Tensor | None = None,
    offsets: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Causal linear attention of features q, k (B,N,H,K), values v (B,N,H,V), divided by the sum of its scores ->
    (B,N,H,V) and the state (B,H,K,V+1): a column of ones beside the values adds the scores up."""
    v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    o, state = linear_recurrence(q, k, v, state=state, offsets=offsets, backend=backend)
    return o[..., :-1] / (o[..., -1:] + eps), state


def packed_lengths(layout: Layout) -> list[int] | None:
    """The lengths of packed sequences; None where nothing is packed."""
    return None if layout.offsets is None else layout.offsets.diff().tolist()


@register
class LinearAttention(TokenMixer):
    """Linear attention, causal, two-directional or across: (B, N, D) -> (B, N, D).

    Raises Unsupported for a packed context, ValueError for heads that don't fit and unknown features."""

    card = Card(
        name="linear_attention",
        summary="attention by products of features, fixed or learned; sums first: time is linear and the state fixed",
        source="Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention, arXiv 2006.16236, 2020",
        patterns=("self", "causal", "cross", "causal_cross"),
        symmetries=("permutation",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        features: str = "elu",
        feature_dim: int | None = None,
        bias: bool = True,
        initial_state: bool = False,
        eps: float = 1e-6,
    ):
        """features is "elu", "relu", "hedgehog" or "t2r"; feature_dim is R of the learned ones, head_dim where it is
        left open."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("linear_attention", dim, heads, head_dim)
        self.eps = eps
        maps = [FeatureMap(features, self.heads, self.head_dim, rank=feature_dim, bias=bias) for _ in range(2)]
        self.query_features, self.key_features = maps
        self.features = maps[0].width
        inner = self.heads * self.head_dim
        self.query = nn.Linear(dim, inner, bias=bias)
        self.key = nn.Linear(dim, inner, bias=bias)
        self.value = nn.Linear(dim, inner, bias=bias)
        self.out = nn.Linear(inner, dim, bias=bias)
        self.initial = learned_state(self, initial_state, self.heads, self.features, self.head_dim + 1)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if context is not None:
            packed = layout.offsets is not None or (context_layout is not None and context_layout.offsets is not None)
            if packed:
                self.refuse("packed tokens with a context", "pad them, or run each sequence with its own context")
            if self.initial is not None:
                self.refuse("initial_state=True with a context", "a context is read whole, from no state")
            return self._whole(
                *self._maps(x, context), None if context_layout is None else context_layout.valid(x.device)
            )
        if self.causal:
            return self._causal(x, first_state(self.initial, len(x), layout.offsets), layout.offsets)[0]
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        return self._whole(*self._maps(x, x), layout.valid(x.device))

    def _maps(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.query(x), self.key(context), self.value(context)
        return tuple(t.unflatten(-1, (self.heads, self.head_dim)) for t in (q, k, v))

    def _causal(self, x: Tensor, state: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = self._maps(x, x)
        q, k = self.query_features(q), self.key_features(k)
        o, state = normalised(q, k, v, self.eps, state=state, offsets=offsets, backend=self.backend)
        return self.out(o.flatten(2)), state

    def _whole(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
        """Every token reads all (valid) keys."""
        shape = q.shape[0], self.heads
        q, k, v = (t.transpose(1, 2).contiguous() for t in (q, k, v))
        q, k = self.query_features(q, heads=1), self.key_features(k, heads=1)
        q, k, v = (t.flatten(0, 1) for t in (q, k, v))
        if valid is not None:
            k = k * valid.repeat_interleave(self.heads, 0)[..., None]
        if self.backend == "reference":
            scores = q @ k.mT
            o = scores @ v / (scores.sum(-1, keepdim=True) + self.eps)
        else:
            o = torch.bmm(q, torch.bmm(k.mT, torch.cat([v, torch.ones_like(v[..., :1])], -1)))
            o = o[..., :-1] / (o[..., -1:] + self.eps)
        return self.out(o.unflatten(0, shape).transpose(1, 2).flatten(2))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Tensor:
        """The sums of phi(k) [v, 1]^T: (B, H, F, V+1)."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        like = self.query.weight if like is None else like
        return state_before(like, batch, self.heads, self.features, self.head_dim + 1, initial=self.initial)

    def extend(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self._causal(x, state, None)

    def cost(self, layout: Layout, batch: int = 1, context_layout: Layout | None = None) -> Cost:
        """A context is read whole, as two-directional tokens are."""
        n, sums = layout.tokens, self.heads * self.features * (self.head_dim + 1)
        m = n if context_layout is None else context_layout.tokens
        linear = batch * (n + m) * (2 * self.dim * self.heads * self.head_dim + self.key_features.macs)
        if self.causal and context_layout is None:
            shape = batch, n, self.heads, self.features, self.head_dim + 1
            products = recurrence.macs(*shape, lengths=packed_lengths(layout))
        else:
            products = batch * (n + m) * sums
        state = batch * sums * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), linear + products, state)
