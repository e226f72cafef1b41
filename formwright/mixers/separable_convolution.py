"""Separable convolution: channels widened, each convolved over the grid by itself, narrowed again.

    h = a(x W_1),   a(u) = s ReLU(u)^2 + b        s and b one learned number each (StarReLU)
    y = conv(h) W_2                               one kernel of `size` places along every axis for each channel

The inverted bottleneck of MobileNetV2 (1801.04381, 2018), the token mixer of ConvFormer and of the first two stages of
CAFormer: MetaFormer Baselines for Vision, 2210.13452, 2022. Causal (one axis): the kernel reads the token itself and
those before it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright.channels.star_relu import Activation
from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count
from formwright.mixers.grids import no_prefix
from formwright.parts import register
from formwright.positions.grid_convolution import CONVOLUTIONS, grid_convolution, grid_macs


@register
class SeparableConvolution(TokenMixer):
    """(B, N, D) -> (B, N, D) through expansion * D channels, on grids of `rank` axes.

    Raises ValueError for a kernel without a middle, Unsupported for grids it wasn't built for."""

    card = Card(
        name="separable_convolution",
        summary="channels widened, convolved one by one over the grid, and narrowed again, with StarReLU",
        source="MetaFormer Baselines for Vision, 2210.13452, 2022",
        patterns=("self", "causal"),
        time="N",
        state="1",
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        expansion: float = 2.0,
        size: int = 7,
        bias: bool = False,
        rank: int | None = None,
    ):
        super().__init__(dim, causal=causal)
        self.rank = rank or 1
        if size < 1 or (size % 2 == 0 and not causal):
            raise ValueError(f"separable_convolution: size={size} has no middle; make it odd")
        if self.rank not in CONVOLUTIONS or (causal and self.rank > 1):
            self.refuse(f"a grid of {self.rank} axes", "its kernel has up to three, and one where it is causal")
        self.hidden, self.size = max(1, round(expansion * dim)), size
        self.inner = nn.Linear(dim, self.hidden, bias=bias)
        self.activation = Activation()
        bound = size ** (-self.rank / 2)
        self.kernel = nn.Parameter(torch.empty(self.hidden, *(size,) * self.rank).uniform_(-bound, bound))
        self.shift = nn.Parameter(torch.zeros(self.hidden)) if bias else None
        self.out = nn.Linear(self.hidden, dim, bias=bias)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        no_prefix(self, layout)
        if len(layout.grid) != self.rank:
            self.refuse(f"a grid of {len(layout.grid)} axes", f"it was built for rank={self.rank}")
        h = self.activation(self.inner(x))
        return self.out(grid_convolution(h, layout, self.kernel, self.shift, causal=self.causal))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Tensor:
        """The last size - 1 tokens in the hidden channels (B, size - 1, hidden), zeros at first."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        like = self.kernel if like is None else like
        return like.new_zeros(batch, self.size - 1, self.hidden)

    def extend(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.cat([state, self.activation(self.inner(x))], 1)
        y = grid_convolution(seen, Layout((seen.shape[1],)), self.kernel, self.shift, causal=True)
        return self.out(y[:, self.size - 1 :]), seen[:, seen.shape[1] - self.size + 1 :].clone()

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        works = 2 * batch * layout.tokens * self.dim * self.hidden + grid_macs(layout, self.kernel, batch)
        kept = batch * (self.size - 1) * self.hidden * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), works, kept)
