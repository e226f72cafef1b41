"""Kimi Delta Attention: the delta rule with a decay of its own for every key channel.

    q, k, v = silu(short causal convolutions of linear maps of x);   q, k scaled to length 1
    beta_t = sigmoid(W_b x_t),   g_t = -exp(A_log) softplus(W_f2 W_f1 x_t + dt_bias)         A_log one a head
    S'_t = diag(exp(g_t)) S_{t-1},   S_t = S'_t + beta_t k_t (v_t - S'_t^T k_t)^T,   o_t = S_t^T q_t / sqrt(K)
    y_t = W_o (rmsnorm(o_t) * sigmoid(W_g2 W_g1 x_t + b_g))                the norm over each head, with a scale

W_f2 W_f1 and W_g2 W_g1 are of low rank, head_dim where it is left open. With initial_state S_0 is a parameter instead
of 0.
Kimi Linear: An Expressive, Efficient Attention Architecture, arXiv 2510.26692, 2025.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, split_heads
from formwright.mixers.deltanet import first_state, sequence_count, unit_length
from formwright.mixers.linear_attention import packed_lengths
from formwright.mixers.mamba2 import decay_parameters
from formwright.ops import recurrence
from formwright.ops.convolution import short_convolution, short_flops
from formwright.ops.recurrence import linear_recurrence
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
        gate_rank: int | None = None,
        short: int = 4,
        negative_eigenvalues: bool = False,
        initial_state: bool = False,
        eps: float = 1e-5,
    ):
        """head_dim is the width of a head's keys; its values are `expansion` times as wide. gate_rank is the rank of
        the maps to decays and to output gates, head_dim where it is left open."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("kda", dim, heads, head_dim)
        self.value_dim = round(self.head_dim * expansion)
        self.gate_rank = self.head_dim if gate_rank is None else gate_rank
        if self.value_dim < 1 or short < 1 or self.gate_rank < 1:
            raise ValueError(
                f"kda: expansion={expansion}, short={short} and gate_rank={gate_rank} must leave at least one value "
                f"channel, one tap and one rank"
            )
        self.short, self.negative_eigenvalues = short, negative_eigenvalues
        self.keys, self.values = self.heads * self.head_dim, self.heads * self.value_dim
        self.convolved = 2 * self.keys + self.values
        self.inputs = nn.Linear(dim, self.convolved, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(self.convolved, short).uniform_(-(short**-0.5), short**-0.5))
        rank = self.gate_rank
        self.forget = nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, self.keys, bias=False))
        self.a_log = decay_parameters(self.heads, 1.0, 16.0)[0]
        self.dt_bias = decay_parameters(self.keys, 1.0, 16.0)[1]
        self.beta = nn.Linear(dim, self.heads, bias=False)
        self.gate = nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, self.values))
        self.norm = nn.RMSNorm(self.value_dim, eps=eps)
        self.out = nn.Linear(self.values, dim, bias=False)
        self.initial = nn.Parameter(torch.zeros(self.heads, self.head_dim, self.value_dim)) if initial_state else None

    def _log_decay(self, x: Tensor) -> Tensor:
        """(B,N,H,K), in float32 at least."""
        f = self.forget(x)
        wide = torch.promote_types(f.dtype, torch.float32)
        step = F.softplus(f.to(wide) + self.dt_bias.to(wide)).unflatten(-1, (self.heads, -1))
        return -self.a_log.to(wide).exp()[:, None] * step

    def _mix(
        self, x: Tensor, last: Tensor | None, state: Tensor | None, offsets: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        mixed, last = short_convolution(
            self.inputs(x), self.conv_weight, state=last, offsets=offsets, backend=self.backend
        )
        parts = F.silu(mixed).split([self.keys, self.keys, self.values], -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        o, state = linear_recurrence(
            unit_length(q),
            unit_length(k),
            v,
            log_decay=self._log_decay(x),
            beta=torch.sigmoid(self.beta(x)) * (2 if self.negative_eigenvalues else 1),
            scale=self.head_dim**-0.5,
            state=state,
            offsets=offsets,
            backend=self.backend,
        )
        return self.out(self.norm(o).flatten(2) * torch.sigmoid(self.gate(x))), (last, state)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        return self._mix(x, None, first_state(self.initial, sequence_count(x, layout)), layout.offsets)[0]

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(the short convolutions' last inputs, S (B, H, K, V))."""
        like = self.inputs.weight if like is None else like
        last = like.new_zeros(batch, self.short - 1, self.convolved)
        if self.initial is not None:
            return last, first_state(self.initial, batch).to(like).clone()
        return last, like.new_zeros(batch, self.heads, self.head_dim, self.value_dim)

    def extend(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self._mix(x, *state, None)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, rank = layout.tokens, self.gate_rank
        wide = self.dim * (self.convolved + self.heads + self.values + 2 * rank)
        linear = batch * n * (wide + rank * (self.keys + self.values))
        shape = batch, n, self.heads, self.head_dim, self.value_dim
        products = recurrence.macs(*shape, log_decay="diagonal", beta=True, lengths=packed_lengths(layout))
        state = batch * ((self.short - 1) * self.convolved + self.keys * self.value_dim) * element_size(self)
        return Cost(parameter_count(self), linear + products, state, short_flops(n, self.convolved, self.short, batch))
