"""Gated DeltaNet: a memory that fades at a chosen rate and corrects what it holds under a key instead of adding to it.

    q, k, v = silu(short causal convolutions of linear maps of x);   q, k scaled to length 1
    beta_t = sigmoid(W_b x_t),   alpha_t = exp(-exp(A_log) softplus(W_a x_t + dt_bias))
    S_t = alpha_t S_{t-1} + beta_t k_t (v_t - alpha_t S_{t-1}^T k_t)^T,    o_t = S_t^T q_t / sqrt(K)
    y_t = W_o (rmsnorm(o_t) * silu(W_g x_t))                              the norm over each head, with a scale

With negative_eigenvalues beta reaches up to 2, so that a state may be reflected as well as erased.
Gated Delta Networks: Improving Mamba2 with Delta Rule, arXiv 2412.06464, 2024; negative eigenvalues: Unlocking
State-Tracking in Linear RNNs Through Negative Eigenvalues, arXiv 2411.12537, 2024.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, split_heads
from formwright.mixers.linear_attention import packed_lengths
from formwright.mixers.mamba2 import decay_parameters, step_and_decay
from formwright.ops import recurrence
from formwright.ops.convolution import short_convolution, short_flops
from formwright.ops.recurrence import linear_recurrence
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
        expansion: float = 2.0,
        short: int = 4,
        negative_eigenvalues: bool = False,
        eps: float = 1e-5,
    ):
        """head_dim is the width of a head's keys; its values are `expansion` times as wide. All keys together are 3/4
        of dim wide where that is left open, as in the paper, so that the mixer has about 6 dim^2 parameters."""
        super().__init__(dim, causal=causal)
        if head_dim is None:
            head_dim = None if heads is None else max(8, math.ceil(0.75 * dim / heads / 8) * 8)
        elif heads is None:
            heads = max(1, round(0.75 * dim / head_dim))
        self.heads, self.head_dim = split_heads("gated_deltanet", max(1, 3 * dim // 4), heads, head_dim)
        self.value_dim = round(self.head_dim * expansion)
        if self.value_dim < 1 or short < 1:
            raise ValueError(f"gated_deltanet: expansion={expansion} and short={short} leave no values or no taps")
        self.short, self.negative_eigenvalues = short, negative_eigenvalues
        self.keys, self.values = self.heads * self.head_dim, self.heads * self.value_dim
        self.convolved = 2 * self.keys + self.values
        self.inputs = nn.Linear(dim, self.convolved, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(self.convolved, short).uniform_(-(short**-0.5), short**-0.5))
        self.alpha = nn.Linear(dim, self.heads, bias=False)
        self.beta = nn.Linear(dim, self.heads, bias=False)
        self.a_log, self.dt_bias = decay_parameters(self.heads, 0.0, 16.0)
        self.gate = nn.Linear(dim, self.values, bias=False)
        self.norm = nn.RMSNorm(self.value_dim, eps=eps)
        self.out = nn.Linear(self.values, dim, bias=False)

    def _mix(
        self, x: Tensor, last: Tensor | None, state: Tensor | None, offsets: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        mixed, last = short_convolution(
            self.inputs(x), self.conv_weight, state=last, offsets=offsets, backend=self.backend
        )
        parts = F.silu(mixed).split([self.keys, self.keys, self.values], -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        q, k = (t * torch.rsqrt(t.square().sum(-1, keepdim=True) + 1e-6) for t in (q, k))
        beta = torch.sigmoid(self.beta(x)) * (2 if self.negative_eigenvalues else 1)
        _, log_decay = step_and_decay(self.alpha(x), self.a_log, self.dt_bias)
        o, state = linear_recurrence(
            q,
            k,
            v,
            log_decay=log_decay,
            beta=beta,
            scale=self.head_dim**-0.5,
            state=state,
            offsets=offsets,
            backend=self.backend,
        )
        return self.out(self.norm(o).flatten(2) * F.silu(self.gate(x))), (last, state)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        return self._mix(x, None, None, layout.offsets)[0]

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(the short convolutions' last inputs, S (B, H, K, V))."""
        like = self.inputs.weight if like is None else like
        last = like.new_zeros(batch, self.short - 1, self.convolved)
        return last, like.new_zeros(batch, self.heads, self.head_dim, self.value_dim)

    def extend(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self._mix(x, *state, None)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n = layout.tokens
        linear = batch * n * self.dim * (self.convolved + 2 * self.heads + 2 * self.values)
        shape = batch, n, self.heads, self.head_dim, self.value_dim
        products = recurrence.macs(*shape, log_decay="scalar", beta=True, lengths=packed_lengths(layout))
        state = batch * ((self.short - 1) * self.convolved + self.keys * self.value_dim) * element_size(self)
        return Cost(parameter_count(self), linear + products, state, short_flops(n, self.convolved, self.short, batch))
