"""Gated linear attention: every key channel forgets at a rate the token itself chooses.

    a_t = sigmoid(W_2 W_1 x_t + b)^(1/16)                       W_2 W_1 of rank 16
    S_t = diag(a_t) S_{t-1} + k_t v_t^T,    o_t = S_t^T q_t / sqrt(K)
    y_t = W_o (swish(W_g x_t) * rmsnorm(o_t))                   the norm over each head, with a scale

Keys are half as wide as values. With initial_state S_0 is a parameter instead of 0.
Gated Linear Attention Transformers with Hardware-Efficient Training, arXiv 2312.06635, 2023.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, split_heads
from formwright.mixers.linear_attention import packed_lengths
from formwright.mixers.sequences import first_state, learned_state, state_before
from formwright.ops import recurrence
from formwright.ops.recurrence import linear_recurrence
from formwright.parts import register


@register
class GLA(TokenMixer):
    """Gated linear attention: (B, N, D) -> (B, N, D), causal. Raises ValueError for heads or widths that don't fit."""

    card = Card(
        name="gla",
        summary="linear attention with a data-dependent decay for every key channel; gated output",
        source="Gated Linear Attention Transformers with Hardware-Efficient Training, arXiv 2312.06635, 2023",
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
        key_expansion: float = 0.5,
        gate_rank: int = 16,
        gate_temperature: float = 16.0,
        initial_state: bool = False,
        eps: float = 1e-5,
    ):
        """head_dim is the width of a head's values; its keys are key_expansion times as wide."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("gla", dim, heads, head_dim)
        self.key_dim = int(self.head_dim * key_expansion)
        if self.key_dim < 1 or gate_rank < 1 or gate_temperature <= 0:
            raise ValueError(
                f"gla: key_expansion={key_expansion}, gate_rank={gate_rank} and gate_temperature={gate_temperature} "
                f"must leave at least one key channel, one rank and a temperature above 0"
            )
        self.gate_rank, self.gate_temperature = gate_rank, gate_temperature
        inner, wide = self.heads * self.key_dim, self.heads * self.head_dim
        self.query = nn.Linear(dim, inner, bias=False)
        self.key = nn.Linear(dim, inner, bias=False)
        self.value = nn.Linear(dim, wide, bias=False)
        self.forget = nn.Sequential(nn.Linear(dim, gate_rank, bias=False), nn.Linear(gate_rank, inner))
        self.gate = nn.Linear(dim, wide, bias=False)
        self.norm = nn.RMSNorm(self.head_dim, eps=eps)
        self.out = nn.Linear(wide, dim, bias=False)
        for layer in (self.query, self.key, self.value, *self.forget, self.gate, self.out):
            nn.init.xavier_uniform_(layer.weight, gain=2**-2.5)
        self.initial = learned_state(self, initial_state, self.heads, self.key_dim, self.head_dim)

    def _mix(self, x: Tensor, state: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v, f = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.query, self.key, self.value, self.forget))
        log_decay = F.logsigmoid(f.to(torch.promote_types(f.dtype, torch.float32))) / self.gate_temperature
        o, state = linear_recurrence(
            q,
            k,
            v,
            log_decay=log_decay,
            scale=self.key_dim**-0.5,
            state=state,
            offsets=offsets,
            backend=self.backend,
        )
        return self.out(self.norm(o).flatten(2) * F.silu(self.gate(x))), state

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        return self._mix(x, first_state(self.initial, len(x), layout.offsets), layout.offsets)[0]

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Tensor:
        """S (B, H, K, V)."""
        like = self.query.weight if like is None else like
        return state_before(like, batch, self.heads, self.key_dim, self.head_dim, initial=self.initial)

    def extend(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self._mix(x, state, None)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, key, value = layout.tokens, self.key_dim, self.head_dim
        linear = batch * n * (self.dim * self.heads * (2 * key + 3 * value))
        linear += batch * n * self.gate_rank * (self.dim + self.heads * key)
        products = recurrence.macs(
            batch, n, self.heads, key, value, log_decay="diagonal", lengths=packed_lengths(layout)
        )
        return Cost(parameter_count(self), linear + products, batch * self.heads * key * value * element_size(self))
