"""Gated DeltaNet: a memory that fades at a chosen rate and corrects what it holds under a key instead of adding to it.

    q, k, v = silu(short causal convolutions of linear maps of x);   q, k scaled to length 1
    beta_t = sigmoid(W_b x_t),   alpha_t = exp(-exp(A_log) softplus(W_a x_t + dt_bias))
    S_t = alpha_t S_{t-1} + beta_t k_t (v_t - alpha_t S_{t-1}^T k_t)^T,    o_t = S_t^T q_t / sqrt(K)
    y_t = W_o (rmsnorm(o_t) * silu(W_g x_t))                              the norm over each head, with a scale

With key_heads there are fewer heads of q and k than of v, each shared by neighbours, as in Qwen3-Next: 16 beside 32.
With negative_eigenvalues beta reaches up to 2, so that a state may be reflected as well as erased; with initial_state
S_0 is a parameter instead of 0.
Gated Delta Networks: Improving Mamba2 with Delta Rule, arXiv 2412.06464, 2024; negative eigenvalues: Unlocking
State-Tracking in Linear RNNs Through Negative Eigenvalues, arXiv 2411.12537, 2024.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, split_heads
from formwright.mixers import delta_rule
from formwright.mixers.delta_rule import State, corrected, taps, value_width
from formwright.mixers.mamba2 import decay_parameters, step_and_decay
from formwright.mixers.sequences import learned_state
from formwright.parts import register


@register
class GatedDeltaNet(TokenMixer):
    """The gated delta rule with short convolutions and a gated norm: (B, N, D) -> (B, N, D), causal.

    Raises ValueError for widths that don't fit."""

    card = Card(
        name="gated_deltanet",
        summary="a fading memory that corrects its values by the delta rule; short convolutions, gated output",
        source="Gated Delta Networks: Improving Mamba2 with Delta Rule, arXiv 2412.06464, 2024",
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
        key_heads: int | None = None,
        expansion: float = 2.0,
        short: int = 4,
        negative_eigenvalues: bool = False,
        initial_state: bool = False,
        eps: float = 1e-5,
    ):
        """head_dim is the width of a head's keys; its values are `expansion` times as wide. All keys together are 3/4
        of dim wide where that is left open, as in the paper, so that the mixer has about 6 dim^2 parameters. key_heads
        divides the heads, all of them without it."""
        super().__init__(dim, causal=causal)
        if head_dim is None:
            head_dim = None if heads is None else max(8, math.ceil(0.75 * dim / heads / 8) * 8)
        elif heads is None:
            heads = max(1, round(0.75 * dim / head_dim))
        self.heads, self.head_dim = split_heads("gated_deltanet", max(1, 3 * dim // 4), heads, head_dim)
        key_heads = self.heads if key_heads is None else key_heads
        if key_heads < 1 or self.heads % key_heads:
            raise ValueError(f"gated_deltanet: key_heads={key_heads} must divide the {self.heads} heads")
        self.value_dim = value_width(self, expansion, short)
        self.short, self.negative_eigenvalues = short, negative_eigenvalues
        self.keys, self.values = key_heads * self.head_dim, self.heads * self.value_dim
        self.convolved = 2 * self.keys + self.values
        self.inputs = nn.Linear(dim, self.convolved, bias=False)
        self.conv_weight = taps(self.convolved, short)
        self.alpha = nn.Linear(dim, self.heads, bias=False)
        self.beta = nn.Linear(dim, self.heads, bias=False)
        self.a_log, self.dt_bias = decay_parameters(self.heads, 0.0, 16.0)
        self.gate = nn.Linear(dim, self.values, bias=False)
        self.norm = nn.RMSNorm(self.value_dim, eps=eps)
        self.out = nn.Linear(self.values, dim, bias=False)
        self.initial = learned_state(self, initial_state, self.heads, self.head_dim, self.value_dim)

    forward, empty, extend = delta_rule.forward, delta_rule.empty, delta_rule.extend

    def mix(self, x: Tensor, before: State, offsets: Tensor | None) -> tuple[Tensor, State]:
        _, log_decay = step_and_decay(self.alpha(x), self.a_log, self.dt_bias)
        o, state = corrected(self, x, log_decay, before, offsets)
        return self.out(self.norm(o).flatten(2) * F.silu(self.gate(x))), state

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return delta_rule.cost(self, layout, batch, self.dim * (self.heads + 2 * self.values), "scalar")
