"""Lightning attention of TransNormerLLM: linear attention with learned rotations and one fixed decay a head.

    q, k = swish(W_q x), swish(W_k x),   v = W_v x,   u = W_u x
    r(q_t) = [q_t cos(theta t), q_t sin(theta t)]          LRPE: theta is learned, one a key channel, so that
                                                           r(q_t) . r(k_s) = sum_c q_tc k_sc cos(theta_c (t - s))
    S_t = lambda_h S_{t-1} + r(k_t) v_t^T,   o_t = S_t^T r(q_t)
    y_t = W_o (u_t * srmsnorm(o_t))                        SRMSNorm: all heads by one root mean square, without scale

theta begins at 10000^(-2 c/(H K)), c counting the channels of all heads. The paper has lambda_h = exp(-slope 8h/H), h
from 0, the slope falling with depth as 1 - layer/layers (slopes="linear"); its published code has lambda_h =
exp(-slope 2^(-8(h+1)/H)), the slopes of ALiBi (slopes="geometric"), which keep some of the past in every head. A mixer
does not know its layer, so slope is an option. The paper turns queries and keys in its first layer alone (lrpe). With
initial_state S_0 is a parameter instead of 0. Two-directional, every token reads all others of its sequence, which fade
with their distance, a grid in row-major order; with slope=0, as in TransNormer's own two-directional models, none does:

    o_t = sum_s lambda_h^|t-s| (r(q_t) . r(k_s)) v_s

MiniMax-01 turns nothing and has v = swish(W_v x) (silu_values) and sigmoid(u_t) in u_t's place (gate="sigmoid"); the
scale of its norm is part of our W_o.

Scaling TransNormer to 175 Billion Parameters (TransNormerLLM), arXiv 2307.14995, 2023; two-directional: The Devil in
Linear Transformer (TransNormer), arXiv 2210.10340, 2022; MiniMax-01: Scaling Foundation Models with Lightning
Attention, arXiv 2501.08313, 2025.
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

SLOPES = ("geometric", "linear")
GATES = ("linear", "sigmoid")


@register
class LightningAttention(TokenMixer):
    """Lightning attention: (B, N, D) -> (B, N, D), causal or two-directional.

    Raises ValueError for heads or slopes that don't fit."""

    card = Card(
        name="lightning",
        summary="linear attention with learned rotations of queries and keys, a fixed decay a head, gated simple norm",
        source="Scaling TransNormer to 175 Billion Parameters, arXiv 2307.14995, 2023",
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
        slopes: str = "geometric",
        slope: float = 1.0,
        lrpe: bool = True,
        silu_values: bool = False,
        gate: str = "linear",
        initial_state: bool = False,
        eps: float = 1e-6,
    ):
        """slope multiplies the decay rates of all heads; lrpe=False leaves queries and keys unturned;
        silu_values puts swish on values too; gate is "linear" or "sigmoid"."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("lightning", dim, heads, head_dim)
        if slopes not in SLOPES:
            raise ValueError(f"lightning: slopes is one of {', '.join(SLOPES)}, not {slopes!r}")
        if gate not in GATES:
            raise ValueError(f"lightning: gate is one of {', '.join(GATES)}, not {gate!r}")
        if slope < 0:
            raise ValueError(f"lightning: slope is {slope}, but a decay below 0 would grow; make it at least 0")
        self.slopes, self.slope, self.eps = slopes, slope, eps
        self.silu_values, self.sigmoid_gate = silu_values, gate == "sigmoid"
        self.inner = self.heads * self.head_dim
        self.query = nn.Linear(dim, self.inner, bias=False)
        self.key = nn.Linear(dim, self.inner, bias=False)
        self.value = nn.Linear(dim, self.inner, bias=False)
        self.gate = nn.Linear(dim, self.inner, bias=False)
        self.out = nn.Linear(self.inner, dim, bias=False)
        theta = 10000 ** (-2 / self.inner * torch.arange(self.inner)).view(self.heads, self.head_dim)
        self.theta = nn.Parameter(theta) if lrpe else None
        self.features = self.head_dim * (2 if lrpe else 1)
        self.initial = learned_state(self, initial_state, self.heads, self.features, self.head_dim)

    def log_decay(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """log lambda_h, (H,)."""
        h = torch.arange(self.heads, dtype=dtype, device=device)
        return -self.slope * (8 * h / self.heads if self.slopes == "linear" else 2 ** (-8 * (h + 1) / self.heads))

    def _turned(self, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """r(q), r(k) (B,N,H,2K) at the places `at` (N,), and v (B,N,H,V)."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.query, self.key, self.value))
        q, k, v = F.silu(q), F.silu(k), F.silu(v) if self.silu_values else v
        if self.theta is None:
            return q, k, v
        wide = torch.promote_types(x.dtype, torch.float32)
        angles = at.to(wide)[:, None, None] * self.theta.to(wide)
        cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)
        q, k = (torch.cat([t * cos, t * sin], -1) for t in (q, k))
        return q, k, v

    def _gated(self, x: Tensor, o: Tensor) -> Tensor:
        u = torch.sigmoid(self.gate(x)) if self.sigmoid_gate else self.gate(x)
        return self.out(u * F.rms_norm(o.flatten(2), (self.inner,), eps=self.eps))

    def _causal(self, x: Tensor, at: Tensor, state: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = self._turned(x, at)
        o, state = linear_recurrence(
            q,
            k,
            v,
            log_decay=self.log_decay(torch.promote_types(x.dtype, torch.float32), x.device).expand(q.shape[:3]),
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
        parts = *self._turned(x, at), self.log_decay(torch.promote_types(x.dtype, torch.float32), x.device)
        return self._gated(x, decayed_both_ways(*parts, layout, backend=self.backend))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> tuple[Tensor, int]:
        """(S (B, H, 2K, V), tokens seen)."""
        like = self.query.weight if like is None else like
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        return state_before(like, batch, self.heads, self.features, self.head_dim, initial=self.initial), 0

    def extend(self, x: Tensor, state: tuple[Tensor, int]) -> tuple[Tensor, tuple[Tensor, int]]:
        s, count = state
        y, s = self._causal(x, torch.arange(count, count + x.shape[1], device=x.device), s, None)
        return y, (s, count + x.shape[1])

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        shape = batch, layout.tokens, self.heads, self.features, self.head_dim
        products = recurrence.macs(*shape, log_decay="scalar", lengths=packed_lengths(layout))
        linear = 5 * batch * layout.tokens * self.dim * self.inner
        state = batch * self.inner * self.features * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), linear + products * (1 if self.causal else 2), state)
