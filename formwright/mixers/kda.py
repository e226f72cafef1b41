"""Kimi Delta Attention: the delta rule with a decay of its own for every key channel.

    q, k, v = silu(short causal convolutions of linear maps of x);   q, k scaled to length 1
    beta_t = sigmoid(W_b x_t),   g_t = -exp(A_log) softplus(W_f2 W_f1 x_t + dt_bias)         A_log one a head
    S'_t = diag(exp(g_t)) S_{t-1},   S_t = S'_t + beta_t k_t (v_t - S'_t^T k_t)^T,   o_t = S_t^T q_t / sqrt(K)
    y_t = W_o (rmsnorm(o_t) * sigmoid(W_g2 W_g1 x_t + b_g))                the norm over each head, with a scale

W_f2 W_f1 and W_g2 W_g1 are of low rank, head_dim where it is left open; gate_rank="full" makes each one matrix, as in
Ling 3.0. With lower_bound, which is -5 in GLM-5.3-Flash and Ling 3.0, no decay is below exp(lower_bound):

    g_t = lower_bound sigmoid(exp(A_log) (W_f2 W_f1 x_t + dt_bias))

With initial_state S_0 is a parameter instead of 0.
Kimi Linear: An Expressive, Efficient Attention Architecture, arXiv 2510.26692, 2025.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, split_heads
from formwright.mixers import delta_rule
from formwright.mixers.delta_rule import State, corrected, taps, value_width
from formwright.mixers.mamba2 import decay_parameters
from formwright.mixers.sequences import learned_state
from formwright.parts import register


@register
class KimiDeltaAttention(TokenMixer):
    """Kimi Delta Attention: (B, N, D) -> (B, N, D), causal. Raises ValueError for widths that don't fit."""

    card = Card(
        name="kda",
        summary="the delta rule with a data-dependent decay for every key channel; short convolutions, gated norm",
        source="Kimi Linear: An Expressive, Efficient Attention Architecture, arXiv 2510.26692, 2025",
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
        expansion: float = 1.0,
        gate_rank: int | str | None = None,
        lower_bound: float | None = None,
        short: int = 4,
        negative_eigenvalues: bool = False,
        initial_state: bool = False,
        eps: float = 1e-5,
    ):
        """head_dim is the width of a head's keys; its values are `expansion` times as wide. gate_rank is the rank of
        the maps to decays and to output gates, head_dim where it is left open, or "full". lower_bound, below 0, is that
        of log decays."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("kda", dim, heads, head_dim)
        self.value_dim = value_width(self, expansion, short)
        self.gate_rank = self.head_dim if gate_rank is None else gate_rank
        if self.gate_rank != "full" and (isinstance(self.gate_rank, str) or self.gate_rank < 1):
            raise ValueError(f"kda: gate_rank is {gate_rank!r}, but must be at least 1, or 'full'")
        if lower_bound is not None and lower_bound >= 0:
            raise ValueError(
                f"kda: lower_bound is {lower_bound}, but log decays are below 0; -5 is usual, log(a) for decays above a"
            )
        self.short, self.lower_bound, self.negative_eigenvalues = short, lower_bound, negative_eigenvalues
        self.keys, self.values = self.heads * self.head_dim, self.heads * self.value_dim
        self.convolved = 2 * self.keys + self.values
        self.inputs = nn.Linear(dim, self.convolved, bias=False)
        self.conv_weight = taps(self.convolved, short)
        self.forget = self._gate_map(self.keys, bias=False)
        # The bound takes the place of fast rates.
        rates = (1.0, 16.0) if lower_bound is None else (1.0, 1.0)
        self.a_log = decay_parameters(self.heads, *rates)[0]
        self.dt_bias = decay_parameters(self.keys, 1.0, 16.0)[1]
        self.beta = nn.Linear(dim, self.heads, bias=False)
        self.gate = self._gate_map(self.values, bias=True)
        self.norm = nn.RMSNorm(self.value_dim, eps=eps)
        self.out = nn.Linear(self.values, dim, bias=False)
        self.initial = learned_state(self, initial_state, self.heads, self.head_dim, self.value_dim)

    def _gate_map(self, width: int, bias: bool) -> nn.Module:
        if self.gate_rank == "full":
            return nn.Linear(self.dim, width, bias=bias)
        return nn.Sequential(
            nn.Linear(self.dim, self.gate_rank, bias=False), nn.Linear(self.gate_rank, width, bias=bias)
        )

    def _log_decay(self, x: Tensor) -> Tensor:
        """(B,N,H,K), in float32 at least."""
        f = self.forget(x)
        wide = torch.promote_types(f.dtype, torch.float32)
        f = (f.to(wide) + self.dt_bias.to(wide)).unflatten(-1, (self.heads, -1))
        rate = self.a_log.to(wide).exp()[:, None]
        return -rate * F.softplus(f) if self.lower_bound is None else self.lower_bound * torch.sigmoid(rate * f)

    forward, empty, extend = delta_rule.forward, delta_rule.empty, delta_rule.extend

    def mix(self, x: Tensor, before: State, offsets: Tensor | None) -> tuple[Tensor, State]:
        o, state = corrected(self, x, self._log_decay(x), before, offsets)
        return self.out(self.norm(o).flatten(2) * torch.sigmoid(self.gate(x))), state

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        gates = sum(
            weight.numel() for weight in (*self.forget.parameters(), *self.gate.parameters()) if weight.ndim > 1
        )
        return delta_rule.cost(self, layout, batch, self.dim * self.values + gates, "diagonal")
