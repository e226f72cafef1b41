"""Mamba: a state-space model for each channel whose step, input and read-out the token chooses (S6).

    [x, z] = W_in u;     x = silu(short causal convolution of x);     [d, B, C] = W_x x;     dt = softplus(W_dt d + b)
    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,     y_t = h_t C_t + D x_t,     A = -exp(A_log)
    out = W_out (y * silu(z))

h holds state_dim numbers for each of expansion * dim channels; B and C are shared by all channels; d has rank dt_rank.
With initial_state the first h is learned instead of zero.
Mamba: Linear-Time Sequence Modeling with Selective State Spaces, arXiv 2312.00752, 2023; initial states: Lina-Speech:
Gated Linear Attention and Initial-State Tuning for Multi-Sample Prompting Text-To-Speech Synthesis,
arXiv 2410.23320, 2024.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count
from formwright.mixers.sequences import first_state
from formwright.ops import selective_scan as scan
from formwright.ops.convolution import short_convolution, short_flops
from formwright.ops.selective_scan import selective_scan
from formwright.parts import register


@register
class Mamba(TokenMixer):
    """The Mamba mixer: (B, N, D) -> (B, N, D), causal. Raises ValueError for widths below 1."""

    card = Card(
        name="mamba",
        summary="selective state spaces: each channel has a small state whose decay and input depend on the token",
        source="Mamba: Linear-Time Sequence Modeling with Selective State Spaces, arXiv 2312.00752, 2023",
        patterns=("causal",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        expansion: int = 2,
        state_dim: int = 16,
        dt_rank: int | None = None,
        short: int = 4,
        initial_state: bool = False,
    ):
        """dt_rank is dim / 16, rounded up, where it is left open."""
        super().__init__(dim, causal=causal)
        dt_rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        if min(expansion, state_dim, dt_rank, short) < 1:
            raise ValueError(
                f"mamba: expansion={expansion}, state_dim={state_dim}, dt_rank={dt_rank} and short={short} must be at "
                "least 1"
            )
        self.inner, self.state_dim, self.dt_rank, self.short = expansion * dim, state_dim, dt_rank, short
        self.inputs = nn.Linear(dim, 2 * self.inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(self.inner, short).uniform_(-(short**-0.5), short**-0.5))
        self.conv_bias = nn.Parameter(torch.empty(self.inner).uniform_(-(short**-0.5), short**-0.5))
        self.select = nn.Linear(self.inner, dt_rank + 2 * state_dim, bias=False)
        self.dt = nn.Linear(dt_rank, self.inner)
        nn.init.uniform_(self.dt.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        step = torch.exp(torch.empty(self.inner).uniform_(math.log(0.001), math.log(0.1))).clamp_(min=1e-4)
        with torch.no_grad():
            self.dt.bias.copy_(step + torch.log(-torch.expm1(-step)))
        self.a_log = nn.Parameter(torch.arange(1, state_dim + 1).float().log().repeat(self.inner, 1))
        self.skip = nn.Parameter(torch.ones(self.inner))
        self.out = nn.Linear(self.inner, dim, bias=False)
        self.initial = nn.Parameter(torch.zeros(self.inner, state_dim)) if initial_state else None

    def _mix(
        self, u: Tensor, last: Tensor | None, state: Tensor | None, offsets: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x, z = self.inputs(u).chunk(2, -1)
        x, last = short_convolution(
            x, self.conv_weight, self.conv_bias, state=last, offsets=offsets, backend=self.backend
        )
        x = F.silu(x)
        d, b, c = self.select(x).split([self.dt_rank, self.state_dim, self.state_dim], -1)
        wide = torch.promote_types(x.dtype, torch.float32)
        # The bias outside the product: softplus sees its small steps before they are rounded.
        step = F.softplus(F.linear(d, self.dt.weight).to(wide) + self.dt.bias.to(wide))
        y, state = selective_scan(
            x, step, -self.a_log.to(wide).exp(), b, c, state=state, offsets=offsets, backend=self.backend
        )
        return self.out(torch.addcmul(y, self.skip, x) * F.silu(z)), (last, state)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        return self._mix(x, None, first_state(self.initial, len(x), layout.offsets), layout.offsets)[0]

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(the short convolution's last inputs, h (B, inner, state_dim))."""
        like = self.inputs.weight if like is None else like
        state = like.new_zeros(batch, self.inner, self.state_dim)
        if self.initial is not None:
            state = state + self.initial.to(like)
        return like.new_zeros(batch, self.short - 1, self.inner), state

    def extend(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self._mix(x, *state, None)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        shape = batch, layout.tokens, self.inner, self.state_dim
        each = self.inner * (3 * self.dim + self.dt_rank + 2 * self.state_dim) + self.dt_rank * self.inner
        macs = batch * layout.tokens * each + scan.macs(*shape)
        state = batch * self.inner * (self.short - 1 + self.state_dim) * element_size(self)
        other = short_flops(layout.tokens, self.inner, self.short, batch) + scan.flops(*shape)
        return Cost(parameter_count(self), macs, state, other)
