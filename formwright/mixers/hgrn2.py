"""HGRN2: a gated linear RNN whose state is expanded to a matrix a head by outer products instead of parameters.

    f_t = b + (1 - b) sigmoid(W_f x_t),    q_t = silu(W_q x_t),    v_t = W_v x_t
    S_t = diag(f_t) S_{t-1} + (1 - f_t) v_t^T,    o_t = S_t^T q_t
    y_t = W_o rmsnorm(o_t)                                         the norm over all heads together, with a scale

What is not forgotten is written: the keys are 1 - f. The lower bound b of the forget gate is learned for each channel
and begins at `lower_bound`; the paper lets it rise from layer to layer, beginning with 0, where it isn't learned. With
initial_state the first S is learned instead of zero (Lina-Speech, arXiv 2410.23320, 2024).
HGRN2: Gated Linear RNNs with State Expansion, arXiv 2404.07904, 2024.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, split_heads
from formwright.mixers.linear_attention import packed_lengths
from formwright.mixers.sequences import first_state
from formwright.ops import recurrence
from formwright.ops.recurrence import linear_recurrence
from formwright.parts import register


@register
class HGRN2(TokenMixer):
    """The HGRN2 mixer: (B, N, D) -> (B, N, D), causal.

    Raises ValueError for heads that don't fit and a lower bound outside [0, 1)."""

    card = Card(
        name="hgrn2",
        summary="a gated linear RNN with a matrix state: forget gates with a lower bound, keys are what is forgotten",
        source="HGRN2: Gated Linear RNNs with State Expansion, arXiv 2404.07904, 2024",
        patterns=("causal",),
        symmetries=("shift",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        lower_bound: float = 0.0,
        initial_state: bool = False,
        eps: float = 1e-5,
    ):
        """head_dim is the paper's expansion ratio, 128 or less where it and the heads are left open."""
        super().__init__(dim, causal=causal)
        if heads is None and head_dim is None:
            heads = max(1, round(dim / 128))
            head_dim = max(8, math.ceil(dim / heads / 8) * 8)
        self.heads, self.head_dim = split_heads("hgrn2", dim, heads, head_dim)
        if not 0 <= lower_bound < 1:
            raise ValueError(f"hgrn2: lower_bound={lower_bound} must be at least 0 and below 1")
        self.inner = self.heads * self.head_dim
        self.query = nn.Linear(dim, self.inner, bias=False)
        self.forget = nn.Linear(dim, self.inner, bias=False)
        self.value = nn.Linear(dim, self.inner, bias=False)
        bound = math.log(lower_bound / (1 - lower_bound)) if lower_bound else 0.0
        self.bound = nn.Parameter(torch.full((self.inner,), bound)) if lower_bound else None
        self.norm = nn.RMSNorm(self.inner, eps=eps)
        self.out = nn.Linear(self.inner, dim, bias=False)
        self.initial = nn.Parameter(torch.zeros(self.heads, self.head_dim, self.head_dim)) if initial_state else None

    def _mix(self, x: Tensor, state: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
        f = self.forget(x)
        f = f.to(torch.promote_types(f.dtype, torch.float32))
        log_decay, key = F.logsigmoid(f), torch.sigmoid(-f)
        if self.bound is not None:
            bound = self.bound.to(f.dtype)
            log_decay = torch.logaddexp(F.logsigmoid(bound), F.logsigmoid(-bound) + log_decay)
            key = torch.sigmoid(-bound) * key
        q, k, v, log_decay = (
            t.unflatten(-1, (self.heads, -1))
            for t in (F.silu(self.query(x)), key.to(x.dtype), self.value(x), log_decay)
        )
        o, state = linear_recurrence(q, k, v, log_decay=log_decay, state=state, offsets=offsets, backend=self.backend)
        return self.out(self.norm(o.flatten(2))), state

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        return self._mix(x, first_state(self.initial, len(x), layout.offsets), layout.offsets)[0]

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Tensor:
        """S (B, H, K, V)."""
        like = self.query.weight if like is None else like
        state = like.new_zeros(batch, self.heads, self.head_dim, self.head_dim)
        return state if self.initial is None else state + self.initial.to(like)

    def extend(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self._mix(x, state, None)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, width = layout.tokens, self.head_dim
        products = recurrence.macs(
            batch, n, self.heads, width, width, log_decay="diagonal", lengths=packed_lengths(layout)
        )
        state = batch * self.inner * width * element_size(self)
        return Cost(parameter_count(self), 4 * batch * n * self.dim * self.inner + products, state)
