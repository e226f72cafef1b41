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

from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, split_heads
from formwright.mixers import delta_rule
from formwright.mixers.delta_rule import State, corrected, taps, value_width
from formwright.mixers.sequences import learned_state
from formwright.parts import register


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
        self.value_dim = value_width(self, expansion, short)
        self.short, self.negative_eigenvalues = short, negative_eigenvalues
        self.keys, self.values = self.heads * self.head_dim, self.heads * self.value_dim
        self.convolved = 2 * self.keys + self.values
        self.inputs = nn.Linear(dim, self.convolved, bias=False)
        self.conv_weight = taps(self.convolved, short)
        self.beta = nn.Linear(dim, self.heads, bias=False)
        self.norm = nn.RMSNorm(self.value_dim, eps=eps)
        self.out = nn.Linear(self.values, dim, bias=False)
        self.initial = learned_state(self, initial_state, self.heads, self.head_dim, self.value_dim)

    forward, empty, extend = delta_rule.forward, delta_rule.empty, delta_rule.extend

    def mix(self, x: Tensor, before: State, offsets: Tensor | None) -> tuple[Tensor, State]:
        o, state = corrected(self, x, None, before, offsets)
        return self.out(self.norm(o).flatten(2)), state

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return delta_rule.cost(self, layout, batch, self.dim * self.values, None)
