"""DeltaNet: a memory that writes under a key the difference between the value wanted there and the value held.

    q, k, v = silu(short causal convolutions of linear maps of x);   q, k scaled to length 1
    beta_t = sigmoid(W_b x_t)
    S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T,    o_t = S_t^T q_t / sqrt(K)
    y_t = W_o rmsnorm(o_t)                                          the norm over each head, with a scale

With negative_eigenvalues beta reaches up to 2, so that a state may be reflected as well as erased; with initial_state
S_0 is a parameter instead of 0.
Parallelizing Linear Transformers with the Delta Rule over Sequence Length, arXiv 2406.06484, 2024; negative
eigenvalues: Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues, arXiv 2411.12537, 2024.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, split_heads
from formwright.mixers.linear_attention import packed_lengths
from formwright.ops import recurrence
from formwright.ops.convolution import short_convolution, short_flops
from formwright.ops.recurrence import linear_recurrence
from formwright.parts import register


def unit_length(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x (..., K) / sqrt(|x|^2 + eps)."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def first_state(initial: Tensor | None, rows: int) -> Tensor | None:
    """A learned first state (H, K, V) for each of so many sequences, (rows, H, K, V); None where none is learned."""
    return None if initial is None else initial.expand(rows, -1, -1, -1)


def sequence_count(x: Tensor, layout: Layout) -> int:
    """How many sequences x (B, N, D) holds: its rows, or those packed in one."""
    return x.shape[0] if layout.offsets is None else layout.offsets.shape[0] - 1


@register
class DeltaNet(TokenMixer):
    """The delta rule with short convolutions and a norm: (B, N, D) -> (B, N, D), causal.

    Raises ValueError for widths that don't fit."""

    card = Card(
        name="deltanet",
        summary="a linear memory that corrects its values by the delta rule; short convolutions, normalised output",
        source="Parallelizing Linear Transformers with the Delta Rule over Sequence Length, arXiv 2406.06484, 2024",
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
        short: int = 4,
        negative_eigenvalues: bool = False,
        initial_state: bool = False,
        eps: float = 1e-5,
    ):
        """head_dim is the width of a head's keys; its values are `expansion` times as wide."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("deltanet", dim, heads, head_dim)
        self.value_dim = round(self.head_dim * expansion)
        if self.value_dim < 1 or short < 1:
            raise ValueError(f"deltanet: expansion={expansion} and short={short} leave no values or no taps")
        self.short, self.negative_eigenvalues = short, negative_eigenvalues
        self.keys, self.values = self.heads * self.head_dim, self.heads * self.value_dim
        self.convolved = 2 * self.keys + self.values
        self.inputs = nn.Linear(dim, self.convolved, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(self.convolved, short).uniform_(-(short**-0.5), short**-0.5))
        self.beta = nn.Linear(dim, self.heads, bias=False)
        self.norm = nn.RMSNorm(self.value_dim, eps=eps)
        self.out = nn.Linear(self.values, dim, bias=False)
        self.initial = nn.Parameter(torch.zeros(self.heads, self.head_dim, self.value_dim)) if initial_state else None

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
            beta=torch.sigmoid(self.beta(x)) * (2 if self.negative_eigenvalues else 1),
            scale=self.head_dim**-0.5,
            state=state,
            offsets=offsets,
            backend=self.backend,
        )
        return self.out(self.norm(o).flatten(2)), (last, state)

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
        n = layout.tokens
        linear = batch * n * self.dim * (self.convolved + self.heads + self.values)
        shape = batch, n, self.heads, self.head_dim, self.value_dim
        products = recurrence.macs(*shape, beta=True, lengths=packed_lengths(layout))
        state = batch * ((self.short - 1) * self.convolved + self.keys * self.value_dim) * element_size(self)
        return Cost(parameter_count(self), linear + products, state, short_flops(n, self.convolved, self.short, batch))
