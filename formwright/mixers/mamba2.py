"""Mamba-2: a state-space model whose decay is one number a head, computed as structured attention (SSD).

    [z, xBC, dt] = W_in u;     [x, B, C] = silu(short causal convolution of xBC);     dt = softplus(dt + b)
    S_t = exp(-exp(A_log) dt_t) S_{t-1} + B_t (dt_t x_t)^T,     y_t = S_t^T C_t + D x_t
    out = W_out rmsnorm(y * silu(z))                            the norm over each of `groups` groups

x has heads of head_dim; B and C have `groups` groups, shared by the heads of a group, of state_dim channels each. With
gated_norm=False the last line is W_out (y * silu(z)), as in Falcon-H1, arXiv 2507.22448, 2025; with norm_before_gate it
is W_out (rmsnorm(y) * silu(z)). With least_step dt is max(softplus(dt + b), least_step), as in Zamba2's code, arXiv
2411.15242, 2024, where it is 0.001; with initial_state S_0 is a parameter instead of 0. With negative_eigenvalues the
decay a = exp(-exp(A_log) dt_t) becomes 2 a - 1, in -1 .. 1, so that a state may change its sign with every token:
Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues, arXiv 2411.12537, 2024.
Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality,
arXiv 2405.21060, 2024.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, split_heads
from formwright.mixers.linear_attention import packed_lengths
from formwright.mixers.sequences import first_state, learned_state, state_before
from formwright.ops import recurrence
from formwright.ops.convolution import short_convolution, short_flops
from formwright.ops.recurrence import linear_recurrence
from formwright.parts import register


def decay_parameters(heads: int, low: float, high: float) -> tuple[nn.Parameter, nn.Parameter]:
    """(A_log, dt_bias), one a head: exp(A_log) is uniform in low..high, softplus(dt_bias) log-uniform in 0.001..0.1."""
    rate = torch.empty(heads).uniform_(low, high).clamp_(min=1e-4)
    step = torch.exp(torch.rand(heads) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp_(min=1e-4)
    return nn.Parameter(rate.log()), nn.Parameter(step + torch.log(-torch.expm1(-step)))


def step_and_decay(dt: Tensor, a_log: Tensor, dt_bias: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """dt (B,N,H) -> the step softplus(dt + dt_bias), `least` at least, and log_decay = -exp(A_log) step, in float32 at
    least."""
    wide = torch.promote_types(dt.dtype, torch.float32)
    step = F.softplus(dt.to(wide) + dt_bias.to(wide))
    step = step.clamp(min=least) if least else step
    return step, -a_log.to(wide).exp() * step


def signed_decay(log_decay: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """log_decay (B,N,H) of a -> that of |2 a - 1|, the product P_t of the signs of 2 a - 1 up to each token of its own
    sequence (B,N,H), and P over each whole sequence (rows or S, H).

    S_t = s_t |d_t| S_{t-1} + k_t v_t^T is P_t times the recurrence of |d_t| and P_t k_t, for P_t^2 = 1."""
    decay = 2 * log_decay.exp() - 1
    signs = torch.where(decay < 0, -1.0, 1.0).to(decay.dtype).cumprod(1)
    log_decay = decay.abs().clamp(min=1e-6).log()
    if offsets is None:
        return log_decay, signs, signs[:, -1]
    before = F.pad(signs[0], (0, 0, 1, 0), value=1.0)
    bounds = offsets.to(signs.device)
    steps = torch.arange(signs.shape[1], device=signs.device)
    begins = bounds[torch.bucketize(steps, bounds[1:], right=True)]
    return log_decay, signs * before[begins], before[bounds[1:]] * before[bounds[:-1]]


def to_heads(shared: Tensor, heads: int) -> Tensor:
    """(B, N, G, K) -> (B, N, H, K), each of the G shared by H / G neighbouring heads."""
    each = heads // shared.shape[2]
    if each == 1:
        return shared
    return shared[:, :, :, None].expand(-1, -1, -1, each, -1).flatten(2, 3)


@register
class Mamba2(TokenMixer):
    """The Mamba-2 mixer: (B, N, D) -> (B, N, D), causal.

    Raises ValueError for heads, groups or widths that don't fit."""

    card = Card(
        name="mamba2",
        summary="selective state spaces with one data-dependent decay a head, short convolution, gated norm",
        source="Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space "
        "Duality, arXiv 2405.21060, 2024",
        patterns=("causal",),
        symmetries=("shift",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        expansion: int = 2,
        heads: int | None = None,
        head_dim: int | None = None,
        state_dim: int = 128,
        groups: int = 1,
        short: int = 4,
        gated_norm: bool = True,
        norm_before_gate: bool = False,
        least_step: float = 0.0,
        bias: bool = False,
        negative_eigenvalues: bool = False,
        initial_state: bool = False,
        eps: float = 1e-5,
    ):
        """heads of head_dim make the inner width, about expansion * dim where they are left open; bias is that of
        the two linear maps, eps the norm's."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("mamba2", expansion * dim, heads, head_dim)
        if groups < 1 or self.heads % groups:
            raise ValueError(f"mamba2: groups={groups} must divide the {self.heads} heads")
        if state_dim < 1 or short < 1:
            raise ValueError(f"mamba2: state_dim={state_dim} and short={short} must be at least 1")
        if norm_before_gate and not gated_norm:
            raise ValueError("mamba2: norm_before_gate=True places a norm that gated_norm=False leaves out; drop one")
        if least_step < 0:
            raise ValueError(f"mamba2: least_step is {least_step}, but steps are never below 0; make it at least 0")
        self.norm_before_gate, self.least_step = norm_before_gate, least_step
        self.negative_eigenvalues = negative_eigenvalues
        self.state_dim, self.groups, self.short, self.eps = state_dim, groups, short, eps
        self.inner = self.heads * self.head_dim
        self.convolved = self.inner + 2 * groups * state_dim
        self.inputs = nn.Linear(dim, self.inner + self.convolved + self.heads, bias=bias)
        self.conv_weight = nn.Parameter(torch.empty(self.convolved, short).uniform_(-(short**-0.5), short**-0.5))
        self.conv_bias = nn.Parameter(torch.empty(self.convolved).uniform_(-(short**-0.5), short**-0.5))
        self.a_log, self.dt_bias = decay_parameters(self.heads, 1.0, 16.0)
        self.skip = nn.Parameter(torch.ones(self.heads))
        self.norm_weight = nn.Parameter(torch.ones(self.inner)) if gated_norm else None
        self.out = nn.Linear(self.inner, dim, bias=bias)
        self.initial = learned_state(self, initial_state, self.heads, state_dim, self.head_dim)

    def _mix(
        self, u: Tensor, last: Tensor | None, state: Tensor | None, offsets: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        z, mixed, dt = self.inputs(u).split([self.inner, self.convolved, self.heads], -1)
        mixed, last = short_convolution(
            mixed, self.conv_weight, self.conv_bias, state=last, offsets=offsets, backend=self.backend
        )
        shared = self.groups * self.state_dim
        x, b, c = F.silu(mixed).split([self.inner, shared, shared], -1)
        x = x.unflatten(-1, (self.heads, self.head_dim))
        b, c = (to_heads(t.unflatten(-1, (self.groups, -1)), self.heads) for t in (b, c))
        step, log_decay = step_and_decay(dt, self.a_log, self.dt_bias, self.least_step)
        signs = None
        if self.negative_eigenvalues:
            log_decay, signs, last_signs = signed_decay(log_decay, offsets)
            b, c = (t * signs[..., None].to(t.dtype) for t in (b, c))
        y, state = linear_recurrence(
            c,
            b,
            x * step[..., None].to(x.dtype),
            log_decay=log_decay,
            state=state,
            offsets=offsets,
            backend=self.backend,
        )
        if signs is not None:
            state = state * last_signs[..., None, None].to(state.dtype)
        y, gate = (y + self.skip[:, None] * x).flatten(2), F.silu(z)
        y = self._normed(y) * gate if self.norm_before_gate else self._normed(y * gate)
        return self.out(y), (last, state)

    def _normed(self, y: Tensor) -> Tensor:
        if self.norm_weight is None:
            return y
        y = F.rms_norm(y.unflatten(-1, (self.groups, -1)), (self.inner // self.groups,), eps=self.eps)
        return y.flatten(2) * self.norm_weight

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        return self._mix(x, None, first_state(self.initial, len(x), layout.offsets), layout.offsets)[0]

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(the short convolution's last inputs, S (B, H, state_dim, head_dim))."""
        like = self.inputs.weight if like is None else like
        last = like.new_zeros(batch, self.short - 1, self.convolved)
        return last, state_before(like, batch, self.heads, self.state_dim, self.head_dim, initial=self.initial)

    def extend(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self._mix(x, *state, None)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n = layout.tokens
        linear = batch * n * self.dim * (2 * self.inner + self.convolved + self.heads)
        products = recurrence.macs(
            batch, n, self.heads, self.state_dim, self.head_dim, log_decay="scalar", lengths=packed_lengths(layout)
        )
        state = batch * ((self.short - 1) * self.convolved + self.inner * self.state_dim) * element_size(self)
        return Cost(parameter_count(self), linear + products, state, short_flops(n, self.convolved, self.short, batch))
