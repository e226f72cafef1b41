"""The mLSTM of xLSTM 7B: the cell of mlstm.py in the model's own width, where a transformer has its attention.

    q, k, v = W_q x, W_k x, W_v x;   [i_t, f_t] = cap(W_g x_t + b), one of each a head,   cap(z) = c tanh(z / c)
    C_t = sigmoid(f_t) C_{t-1} + exp(i_t) k_t v_t^T,   n_t = sigmoid(f_t) n_{t-1} + exp(i_t) k_t
    h_t = C_t^T q'_t / max(|n_t . q'_t|, 1),   q' = q / sqrt(K)
    y_t = W_o (layernorm(h_t) * scale * sigmoid(W_z x_t))                     the norm over each head

Beside the first paper's block (`mlstm`) there is no projection up, no short convolution and no skip past the memory;
queries and keys are half as wide as values, and gates are capped, at c = 15. They begin the same for all tokens, with
i = -10, before the cap, against spikes of the gradient early in training. The paper scales W_o's beginning by
depth, which a mixer does not know; here it begins as small as the other maps. With initial_state C_0 and n_0 are
parameters instead of 0.
xLSTM 7B: A Recurrent LLM for Fast and Efficient Inference, arXiv 2503.13427, 2025.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, split_heads
from formwright.mixers.linear_attention import packed_lengths
from formwright.mixers.mlstm import mlstm_cell
from formwright.mixers.sequences import first_state, learned_state, state_before
from formwright.ops import recurrence
from formwright.parts import register


@register
class XLSTM7B(TokenMixer):
    """The mLSTM as xLSTM 7B has it: (B, N, D) -> (B, N, D), causal. Raises ValueError for widths that don't fit."""

    card = Card(
        name="xlstm_7b",
        summary="a matrix memory with exponential input gates, soft-capped, and a normaliser; gated norm",
        source="xLSTM 7B: A Recurrent LLM for Fast and Efficient Inference, arXiv 2503.13427, 2025",
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
        soft_cap: float = 15.0,
        initial_state: bool = False,
        eps: float = 1e-6,
    ):
        """head_dim is the width of a head's keys; its values are `expansion` times as wide. All keys together are half
        of dim wide, in four heads, where that is left open. eps is the norm's and the cell's."""
        super().__init__(dim, causal=causal)
        if heads is None and head_dim is None:
            heads = 4
        if head_dim is None:
            head_dim = max(8, math.ceil(dim / max(heads, 1) / 16) * 8)
        elif heads is None:
            heads = max(1, round(dim / 2 / head_dim))
        self.heads, self.head_dim = split_heads("xlstm_7b", dim, heads, head_dim)
        self.value_dim = round(self.head_dim * expansion)
        if self.value_dim < 1 or soft_cap <= 0:
            raise ValueError(
                f"xlstm_7b: expansion={expansion} must leave a value channel, soft_cap={soft_cap} be above 0"
            )
        self.soft_cap, self.eps = soft_cap, eps
        self.keys, self.values = self.heads * self.head_dim, self.heads * self.value_dim
        self.inputs = nn.Linear(dim, 2 * self.keys + 2 * self.values, bias=False)
        self.gates = nn.Linear(dim, 2 * self.heads)
        self.norm_weight = nn.Parameter(torch.ones(self.values))
        self.out = nn.Linear(self.values, dim, bias=False)
        for weight in (self.inputs.weight, self.out.weight):
            nn.init.normal_(weight, std=math.sqrt(2 / (5 * dim)))
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias[: self.heads] = -10
            self.gates.bias[self.heads :] = torch.linspace(3, 6, self.heads)
        self.initial = learned_state(self, initial_state, self.heads, self.head_dim, self.value_dim + 1)

    def _mix(
        self, x: Tensor, memory: Tensor | None, m: Tensor | None, offsets: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v, z = self.inputs(x).split([self.keys, self.keys, self.values, self.values], -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))
        gates = self.soft_cap * torch.tanh(self.gates(x) / self.soft_cap)
        h, memory, m = mlstm_cell(q, k, v, gates, memory, m, offsets=offsets, eps=self.eps, backend=self.backend)
        h = F.layer_norm(h, (self.value_dim,), eps=self.eps).flatten(2) * self.norm_weight
        return self.out(h * torch.sigmoid(z)), (memory, m)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        return self._mix(x, first_state(self.initial, len(x), layout.offsets), None, layout.offsets)[0]

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """([C, n] (B, H, K, V+1), m (B, H))."""
        like = self.inputs.weight if like is None else like
        memory = state_before(like, batch, self.heads, self.head_dim, self.value_dim + 1, initial=self.initial)
        return memory, like.new_zeros(batch, self.heads)

    def extend(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self._mix(x, *state, None)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        shape = batch, layout.tokens, self.heads, self.head_dim, self.value_dim + 1
        products = recurrence.macs(*shape, log_decay="scalar", lengths=packed_lengths(layout))
        linear = batch * layout.tokens * self.dim * (2 * self.keys + 3 * self.values + 2 * self.heads)
        state = batch * self.heads * (self.head_dim * (self.value_dim + 1) + 1) * element_size(self)
        return Cost(parameter_count(self), linear + products, state)
