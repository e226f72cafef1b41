"""Performer: softmax attention estimated by positive orthogonal random features, in time linear in N (FAVOR+).

    q = W_q x / K^(1/4),  k = W_k x / K^(1/4)                                 so that exp(q . k) is softmax's score
    phi(q_i) = exp(W q_i - |q_i|^2 / 2 - max_f (W q_i)_f) + eps
    phi_i(k_j) = exp(W k_j - |k_j|^2 / 2 - m_i) + eps,    m_i = the maximum of W k_j over f and the keys j that i reads
    y_i = sum_j (phi(q_i) . phi_i(k_j)) v_j / sum_j phi(q_i) . phi_i(k_j)

W is drawn once, and saved with the parameters; `redraw` draws another. The maxima cancel but for eps. A causal token's
maximum is that of the keys up to it, so that its output is what the two-directional form gives for the tokens so far:

    S_i = exp(m_{i-1} - m_i) S_{i-1} + exp(W k_i - |k_i|^2 / 2 - m_i) [v_i, 1]^T,    s_i = s_{i-1} + [v_i, 1]
    [numerator, denominator] = S_i^T phi(q_i) + eps s_i sum_f phi(q_i)_f

Rethinking Attention with Performers, arXiv 2009.14794, 2020.
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
from formwright.mixers.kernels import read_all, read_all_macs
from formwright.mixers.random_features import feature_count, log_features, orthogonal_rows
from formwright.ops import recurrence
from formwright.ops.recurrence import linear_recurrence
from formwright.parts import register

State = tuple[Tensor, Tensor, Tensor]


@register
class Performer(TokenMixer):
    """Attention by random features, causal, two-directional or across: (B, N, D) -> (B, N, D).

    Raises Unsupported for packed tokens with a context, ValueError for heads and features that don't fit."""

    card = Card(
        name="performer",
        summary="softmax attention estimated by positive orthogonal random features; time linear, state fixed",
        source="Rethinking Attention with Performers, arXiv 2009.14794, 2020",
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
        features: int | None = None,
        bias: bool = False,
        eps: float = 1e-4,
    ):
        """features is F, the number of random features, K log K where it is left open; bias of the four linear maps."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("performer", dim, heads, head_dim)
        self.features, self.eps = feature_count("performer", features, self.head_dim), eps
        if eps <= 0:
            raise ValueError(f"performer: eps is {eps}, but must be positive, or denominators can vanish")
        inner = self.heads * self.head_dim
        self.query = nn.Linear(dim, inner, bias=bias)
        self.key = nn.Linear(dim, inner, bias=bias)
        self.value = nn.Linear(dim, inner, bias=bias)
        self.out = nn.Linear(inner, dim, bias=bias)
        self.register_buffer("rows", orthogonal_rows(self.features, self.head_dim))

    @torch.no_grad()
    def redraw(self) -> None:
        """Draw W anew from torch's generator, the same for all heads, between steps of training if at all."""
        self.rows.copy_(orthogonal_rows(self.features, self.head_dim))

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """x (B, N, D), context (B, M, D) -> (B, N, D). With a context every token reads all of it and no other token of
        x, so that the causal cross pattern is the same."""
        if context is not None:
            if layout.offsets is not None or (context_layout is not None and context_layout.offsets is not None):
                self.refuse("packed tokens with a context", "pad them, or run each sequence with its own context")
            return self._whole(x, context, None if context_layout is None else context_layout.valid(x.device))
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        if self.causal:
            return self._causal(x, self.empty(len(x), like=x))[0]
        return self._whole(x, x, layout.valid(x.device))

    def _maps(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi(q) (B,N,H,F), W k - |k|^2 / 2 (B,M,H,F) and W k, values with a column of ones (B,M,H,V+1)."""
        q, k, v = self.query(x), self.key(context), self.value(context)
        q, k, v = (t.unflatten(-1, (self.heads, self.head_dim)) for t in (q, k, v))
        scale = self.head_dim**-0.25
        q, size = log_features(q * scale, self.rows)
        q = torch.exp(q - size - q.amax(-1, keepdim=True)) + self.eps
        return q, k * scale, v.to(q.dtype)

    def _whole(self, x: Tensor, context: Tensor, valid: Tensor | None) -> Tensor:
        q, k, v = self._maps(x, context)
        k, size = log_features(k, self.rows)
        seen = k if valid is None else k.masked_fill(~valid[..., None, None], float("-inf"))
        k = torch.exp(k - size - seen.amax((1, 3), keepdim=True)) + self.eps
        return self._out(read_all(q, k, v, valid=valid, backend=self.backend), x)

    def _out(self, o: Tensor, x: Tensor) -> Tensor:
        return self.out(o.flatten(2).to(x.dtype))

    def _causal(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        sums, peak, total = state
        q, k, v = self._maps(x, x)
        k, size = log_features(k, self.rows)
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        # Rounded as the state is, so that pieces of any length see the same maxima.
        tops = k.amax(-1).to(peak.dtype).to(k.dtype)
        peaks = torch.cat([peak[:, None].to(k.dtype), tops], 1).cummax(1)[0]
        before, peaks = peaks[:, :-1], peaks[:, 1:]
        fade = (before - peaks).masked_fill(before.isinf(), 0)  # nothing is in the state yet
        k = torch.exp(k - size - peaks[..., None])
        o, sums = linear_recurrence(q, k, v, log_decay=fade, state=sums, backend=self.backend)
        totals = total[:, None] + v.cumsum(1)
        o = o + self.eps * totals * q.sum(-1, keepdim=True)
        state = sums, peaks[:, -1].to(peak.dtype), totals[:, -1].to(total.dtype)
        return self._out(o[..., :-1] / o[..., -1:], x), state

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> State:
        """(sums of exp(W k - |k|^2 / 2 - m) [v, 1]^T (B,H,F,V+1), the maximum m (B,H), sums of [v, 1] (B,H,V+1))."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        like = self.query.weight if like is None else like
        shape = batch, self.heads
        sums = like.new_zeros(*shape, self.features, self.head_dim + 1)
        return sums, like.new_full(shape, float("-inf")), like.new_zeros(*shape, self.head_dim + 1)

    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self._causal(x, state)

    def cost(self, layout: Layout, batch: int = 1, context_layout: Layout | None = None) -> Cost:
        """A context is read whole, as two-directional tokens are."""
        n, inner = layout.tokens, self.heads * self.head_dim
        m = n if context_layout is None else context_layout.tokens
        linear = batch * (n + m) * (2 * self.dim * inner + inner * self.features)
        sizes = {"heads": self.heads, "features": self.features, "value_dim": self.head_dim}
        parts = [(n, batch)] if layout.offsets is None else [(p.tokens, 1) for _, _, p in layout.sequences()]
        shape = self.heads, self.features, self.head_dim + 1
        if context_layout is not None:
            products = read_all_macs(n, m, **sizes, batch=batch)
        elif self.causal:
            products = sum(recurrence.macs(rows, size, *shape, log_decay="scalar") for size, rows in parts)
        else:
            products = sum(read_all_macs(size, size, **sizes, batch=rows) for size, rows in parts)
        state = batch * self.heads * ((self.features + 1) * (self.head_dim + 1) + 1) * element_size(self)
        return Cost(parameter_count(self), linear + products, state if self.causal else 0)
