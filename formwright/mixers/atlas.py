"""ATLAS: a memory trained while it reads, on the last few tokens at once, with momentum.

    q, k, v = silu(short causal convolutions of linear maps of x);   q, k scaled to length 1
    alpha_t = exp(-exp(A_log) softplus(W_a x_t + dt_bias)),   gamma_t, theta_t = sigmoid(W x_t + b)
    eta_t = (1 - theta_t) sigmoid(W_e x_t + b_e) / (c block)
    S_t = theta_t S_{t-1} + eta_t sum_{t-c < i <= t} gamma_i phi(k_i) (v_i - M^T phi(k_i))^T,  M that before t's block
    M_t = alpha_t M_{t-1} + S_t,    o_t = M_t^T phi(q_t)
    y_t = W_o (rmsnorm(o_t) * silu(W_g x_t))                              the norm over each head, with a scale

phi are all monomials up to `degree`, weighted by learned w_n so that phi(x) . phi(y) is the mean of the (x . y)^n,
weighted by w_n^2, which are 1/n! at first. block=1 takes every gradient at the memory just before its token; with more,
so many tokens take theirs at one memory, as the paper trains in parallel. Steps are bounded so that a block of equal
tokens makes no more than one whole step, without which memories may overflow. momentum=False is the paper's OmegaNet.
With muon > 0 the step is taken on S_t made nearly orthogonal by so many steps of Newton-Schulz, M_t = alpha_t M_{t-1} +
eta_t NewtonSchulz(S_t), eta_t = sigmoid(W_e x_t + b_e): the paper's full Atlas, with 5, and many times the work. With
initial_state M_0 is a parameter instead of 0. The memory is a matrix for each head, the paper's linear memory; its best
models have a network of two layers there.
ATLAS: Learning to Optimally Memorize the Context at Test Time, arXiv 2505.23735, 2025.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
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
from formwright.mixers.mamba2 import decay_parameters
from formwright.ops import omega
from formwright.ops.convolution import short_convolution, short_flops
from formwright.ops.omega import OmegaState, omega_rule
from formwright.parts import register

State = tuple[Tensor, OmegaState]


@register
class Atlas(TokenMixer):
    """The Omega rule with polynomial features and momentum: (B, N, D) -> (B, N, D), causal.

    Raises ValueError for widths and counts that don't fit."""

    card = Card(
        name="atlas",
        summary="a memory trained at test time on a sliding window of tokens, with polynomial features and momentum",
        source="ATLAS: Learning to Optimally Memorize the Context at Test Time, arXiv 2505.23735, 2025",
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
        feature_dim: int = 16,
        degree: int = 2,
        window: int = 4,
        momentum: bool = True,
        muon: int = 0,
        block: int | None = None,
        short: int = 4,
        initial_state: bool = False,
        eps: float = 1e-5,
    ):
        """head_dim is the width of a head's values, feature_dim that of its keys before the monomials are taken, of
        which there are binomial(feature_dim + degree, degree). window is c. block is 1 where it is left open, with
        muon 16."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("atlas", dim, heads, head_dim)
        self.block = (16 if muon else 1) if block is None else block
        for name, value in (
            ("feature_dim", feature_dim),
            ("degree", degree),
            ("window", window),
            ("block", self.block),
            ("short", short),
        ):
            if value < 1:
                raise ValueError(f"atlas: {name} is {value}, but must be at least 1")
        if muon < 0:
            raise ValueError(f"atlas: muon is {muon}; it counts steps of Newton-Schulz, 0 for none")
        self.feature_dim, self.degree, self.window, self.muon = feature_dim, degree, window, muon
        self.momentum, self.short = momentum, short
        self.keys, self.values = self.heads * feature_dim, self.heads * self.head_dim
        self.convolved = 2 * self.keys + self.values
        self.inputs = nn.Linear(dim, self.convolved, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(self.convolved, short).uniform_(-(short**-0.5), short**-0.5))
        self.alpha = nn.Linear(dim, self.heads, bias=False)
        self.a_log, self.dt_bias = decay_parameters(self.heads, 0.0, 16.0)
        # Sigmoids of: the step, how much of a token is learned (most of it at first), what momentum keeps.
        self.rates = nn.Linear(dim, (2 + momentum) * self.heads)
        with torch.no_grad():
            self.rates.bias.copy_(torch.tensor([0.0, 2.0, 0.0][: 2 + momentum]).repeat_interleave(self.heads))
        series = torch.tensor([1 / math.factorial(n) for n in range(degree + 1)]).sqrt()
        self.monomials = nn.Parameter(series.repeat(self.heads, 1))
        self.gate = nn.Linear(dim, self.values, bias=False)
        self.norm = nn.RMSNorm(self.head_dim, eps=eps)
        self.out = nn.Linear(self.values, dim, bias=False)
        shape = self.heads, omega.features(feature_dim, degree), self.head_dim
        self.initial = nn.Parameter(torch.zeros(shape)) if initial_state else None

    def _mix(self, x: Tensor, last: Tensor | None, state: OmegaState) -> tuple[Tensor, State]:
        mixed, last = short_convolution(self.inputs(x), self.conv_weight, state=last, backend=self.backend)
        parts = F.silu(mixed).split([self.keys, self.keys, self.values], -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        q, k = (t * torch.rsqrt(t.square().sum(-1, keepdim=True) + 1e-6) for t in (q, k))
        wide = torch.promote_types(x.dtype, torch.float32)
        # softplus(x) = -logsigmoid(-x)
        log_alpha = self.a_log.to(wide).exp() * F.logsigmoid(-self.alpha(x).to(wide) - self.dt_bias.to(wide))
        rates = self.rates(x).to(wide).split(self.heads, -1)
        eta = torch.sigmoid(rates[0])
        if not self.muon:
            # 1 - theta of momentum is the sigmoid of the negative.
            eta = eta * (torch.sigmoid(-rates[2]) if self.momentum else 1) / (self.window * self.block)
        weights = self.monomials
        o, state = omega_rule(
            q,
            k,
            v,
            weights=weights * torch.rsqrt(weights.square().sum(-1, keepdim=True) + 1e-6),
            log_alpha=log_alpha,
            eta=eta,
            gamma=torch.sigmoid(rates[1]),
            log_theta=F.logsigmoid(rates[2]) if self.momentum else None,
            window=self.window,
            block=self.block,
            muon=self.muon,
            state=state,
            backend=self.backend,
        )
        return self.out(self.norm(o).flatten(2) * F.silu(self.gate(x))), (last, state)

    def _first(self, batch: int, like: Tensor) -> OmegaState:
        shape = batch, self.heads, self.feature_dim, self.head_dim
        rule = {"degree": self.degree, "momentum": self.momentum, "window": self.window, "block": self.block}
        return omega.first_state(like, *shape, **rule, memory=self.initial)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        return self._mix(x, None, self._first(x.shape[0], x))[0]

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> State:
        """(the short convolutions' last inputs, the rule's memory, momentum and window: see ops.omega.OmegaState)."""
        like = self.inputs.weight if like is None else like
        return like.new_zeros(batch, self.short - 1, self.convolved), self._first(batch, like)

    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self._mix(x, *state)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, heads, value = layout.tokens, self.heads, self.head_dim
        gates = (3 + self.momentum) * heads
        macs = batch * n * self.dim * (self.convolved + gates + 2 * self.values)
        rule = {"window": self.window, "block": self.block, "muon": self.muon}
        other = short_flops(n, self.convolved, self.short, batch)
        for length in [n] if layout.offsets is None else layout.offsets.diff().tolist():
            if length:
                macs += omega.macs(
                    batch, length, heads, self.feature_dim, value, degree=self.degree, momentum=self.momentum, **rule
                )
                other += omega.flops(batch, length, heads, value, **rule)
        memories = 1 + self.momentum + (self.block > 1)
        kept = memories * omega.features(self.feature_dim, self.degree) * value
        kept += (self.window - 1) * (self.feature_dim + value + 1)
        state = batch * (heads * kept + (self.short - 1) * self.convolved) * element_size(self)
        return Cost(parameter_count(self), macs, state, other)
