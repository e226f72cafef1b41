"""Simplified linear attention: ReLU features, and a depthwise convolution of the values beside them.

    q = relu(W_q x),  k = relu(W_k x),  v = W_v x
    y_i = W_o (sum_j (q_i . k_j) v_j / (sum_j q_i . k_j + eps) + conv(v)_i)

The convolution is over the grid, with one filter for each channel of a head, shared by the heads; a sequence is a grid
of one row. Causal, j <= i, and the filter looks back along the sequence, an image's in row-major order. Time is linear
in N, the state does not grow. In the paper it goes with PRepBN for a norm; positional encodings of its windows are left
to the embedding.
SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch Normalization,
arXiv 2405.11582, 2024.
"""

from __future__ import annotations

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
from formwright.mixers.kernels import read_all, read_all_macs
from formwright.mixers.linear_attention import normalised, packed_lengths
from formwright.mixers.sequences import state_before
from formwright.ops import recurrence
from formwright.ops.convolution import short_convolution, short_flops
from formwright.parts import register

State = tuple[Tensor, Tensor]


@register
class SimplifiedLinearAttention(TokenMixer):
    """ReLU linear attention with a local convolution, causal or two-directional: (B, N, D) -> (B, N, D).

    Raises Unsupported for prefix tokens on an image, ValueError for an even kernel and heads that don't fit."""

    card = Card(
        name="simplified_linear_attention",
        summary="linear attention of ReLU features beside a depthwise convolution of the values",
        source="SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch "
        "Normalization, arXiv 2405.11582, 2024",
        patterns=("self", "causal"),
        grid_ranks=(1, 2),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        kernel: int = 5,
        bias: bool = True,
        eps: float = 1e-6,
    ):
        """kernel is the convolution's width, along each axis of an image; bias that of the four linear maps."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("simplified_linear_attention", dim, heads, head_dim)
        if kernel < 1 or (not causal and kernel % 2 == 0):
            raise ValueError(
                f"simplified_linear_attention: kernel is {kernel}, but must be odd, so that it has a centre; "
                f"take {kernel + 1}"
            )
        self.kernel, self.eps = kernel, eps
        inner = self.heads * self.head_dim
        self.query = nn.Linear(dim, inner, bias=bias)
        self.key = nn.Linear(dim, inner, bias=bias)
        self.value = nn.Linear(dim, inner, bias=bias)
        self.out = nn.Linear(inner, dim, bias=bias)
        shape = (kernel,) if causal else (kernel, kernel)
        self.conv = (nn.Conv1d if causal else nn.Conv2d)(self.head_dim, self.head_dim, shape, groups=self.head_dim)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if self.causal:
            return self._causal(x, (None, None), layout.offsets)[0]
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        q, k, v = self._parts(x)
        valid = layout.valid(x.device)
        o = read_all(q, k, v, eps=self.eps, valid=valid, backend=self.backend)
        v = v if valid is None else v * valid[..., None, None]
        return self.out((o + self._local(v, layout)).flatten(2))

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = F.relu(self.query(x)), F.relu(self.key(x)), self.value(x)
        return tuple(t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))

    def _grid(self, layout: Layout) -> tuple[int, int]:
        if len(layout.grid) == 1:
            return 1, layout.tokens
        if layout.prefix:
            self.refuse("prefix", "class tokens have no place in an image's convolution; set cls=False")
        return layout.grid

    def _local(self, v: Tensor, layout: Layout) -> Tensor:
        """v (B,N,H,V) convolved over the grid, each head by the same filters."""
        images = v.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, self._grid(layout))
        y = F.conv2d(images, self.conv.weight, self.conv.bias, padding="same", groups=self.head_dim)
        return y.flatten(2).unflatten(0, (-1, self.heads)).permute(0, 3, 1, 2)

    def _causal(self, x: Tensor, state: tuple, offsets: Tensor | None) -> tuple[Tensor, State]:
        q, k, v = self._parts(x)
        o, sums = normalised(q, k, v, self.eps, state=state[0], offsets=offsets, backend=self.backend)
        weight, bias = self.conv.weight.squeeze(1).repeat(self.heads, 1), self.conv.bias.repeat(self.heads)
        local, last = short_convolution(
            v.flatten(2), weight, bias, state=state[1], offsets=offsets, backend=self.backend
        )
        return self.out(o.flatten(2) + local), (sums, last)

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> State:
        """(sums of k [v, 1]^T (B,H,K,V+1), the last kernel-1 values (B,kernel-1,H V))."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        like = self.query.weight if like is None else like
        sums = state_before(like, batch, self.heads, self.head_dim, self.head_dim + 1)
        return sums, like.new_zeros(batch, self.kernel - 1, self.heads * self.head_dim)

    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self._causal(x, state, None)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, inner, width = layout.tokens, self.heads * self.head_dim, self.head_dim
        linear = batch * n * 4 * self.dim * inner
        if self.causal:
            products = recurrence.macs(batch, n, self.heads, width, width + 1, lengths=packed_lengths(layout))
            state = batch * inner * (width + 1 + self.kernel - 1) * element_size(self)
            local = short_flops(n, inner, self.kernel, batch)
            return Cost(parameter_count(self), linear + products, state, local)
        products = read_all_macs(n, n, heads=self.heads, features=width, value_dim=width, batch=batch)
        return Cost(parameter_count(self), linear + products + batch * n * inner * self.kernel**2)
