"""Local patch interaction: two depthwise convolutions over the grid with a GELU and a batch norm between them.

    y = conv_2(norm(GELU(conv_1(x))))             one kernel of size^axes for each channel

What lets neighbouring tokens meet in XCiT, whose attention mixes channels.
XCiT: Cross-Covariance Image Transformers, 2106.09681, 2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, parameter_count
from formwright.mixers.grids import no_prefix
from formwright.norms.batchnorm import BatchNorm
from formwright.parts import register
from formwright.positions.grid_convolution import CONVOLUTIONS, grid_convolution, grid_macs


@register
class LocalPatchInteraction(TokenMixer):
    """(B, N, D) -> (B, N, D) on grids of `rank` axes. Its norm takes statistics over a training batch.

    Raises ValueError for a kernel without a middle, Unsupported for grids it wasn't built for."""

    card = Card(
        name="local_patch_interaction",
        summary="two depthwise convolutions over the grid with a GELU and a batch norm between them",
        source="XCiT: Cross-Covariance Image Transformers, 2106.09681, 2021",
        patterns=("self",),
        time="N",
        state="0",
    )
    batched = True

    def __init__(self, dim: int, *, causal: bool = False, size: int = 3, rank: int | None = None):
        super().__init__(dim, causal=causal)
        self.rank = rank or 1
        if size < 1 or size % 2 == 0:
            raise ValueError(f"local_patch_interaction: size={size} has no middle; make it odd")
        if self.rank not in CONVOLUTIONS:
            self.refuse(f"a grid of {self.rank} axes", "its kernel has up to three")
        shape, bound = (dim, *(size,) * self.rank), size ** (-self.rank / 2)
        self.first = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.first_bias = nn.Parameter(torch.zeros(dim))
        self.second = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.second_bias = nn.Parameter(torch.zeros(dim))
        self.norm = BatchNorm(dim)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        no_prefix(self, layout)
        if len(layout.grid) != self.rank:
            self.refuse(f"a grid of {len(layout.grid)} axes", f"it was built for rank={self.rank}")
        h = F.gelu(grid_convolution(x, layout, self.first, self.first_bias))
        valid = layout.valid(x.device) if self.training else None
        if valid is None:
            h = self.norm(h)
        else:  # padding has no part in the statistics
            h = torch.zeros_like(h).masked_scatter(valid[..., None], self.norm(h[valid]))
        return grid_convolution(h, layout, self.second, self.second_bias)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(parameter_count(self), 2 * grid_macs(layout, self.first, batch))
