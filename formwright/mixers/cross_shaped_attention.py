"""Cross-shaped window attention: half of the heads attend within horizontal stripes of the image, half within vertical
ones, so that a token sees a cross; a depthwise convolution of the values within each stripe tells places apart (LePE).

    y_i = W_o concat_h (sum_j softmax_j(q_hi . k_hj / sqrt(K)) v_hj + conv_h(v)_i),   j in the stripe of i

A horizontal stripe is `stripe` rows of the grid in full length, a vertical one as many columns; conv_h is 3 x 3 and
sees zeros outside of the stripe. Stripes as wide as the image are plain attention, the paper's last stage. A sequence
is an image of one row: half of the heads read all of it, half read windows.

CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows, 2107.00652, 2021. Work grows with
N times (height + width) times the stripe; memory is linear in N (ops.grid_tiles).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, parameter_count, per_sequence, split_heads
from formwright.mixers.grids import no_prefix, of_rank, pieces
from formwright.ops.attention import attention
from formwright.ops.grid_tiles import Tiles, macs, over_grid, tiled_attention, windows
from formwright.ops.masks_grid import GridWindows
from formwright.parts import register

TAPS = 3


@register
class CrossShapedAttention(TokenMixer):
    card = Card(
        name="cross_shaped_attention",
        summary="half of the heads attend in horizontal stripes, half in vertical, with a convolution of the values",
        source="CSWin Transformer: A General Vision Transformer Backbone, 2107.00652, 2021",
        patterns=("self",),
        grid_ranks=(1, 2),
        time="N^2",
        state="0",
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        stripe: int = 7,
        bias: bool = True,
    ):
        """
        heads, head_dim  an even number of heads of width head_dim; dim / heads without it
        stripe           rows of a horizontal stripe, columns of a vertical one
        bias             of queries, keys and values; the other maps have one

        Raises ValueError or Unsupported for what doesn't fit."""
        super().__init__(dim, causal=causal)
        if heads is None and head_dim is None:
            heads = 2 * max(1, round(dim / 128))
        self.heads, self.head_dim = split_heads("cross_shaped_attention", dim, heads, head_dim)
        if self.heads % 2:
            self.refuse(f"heads={self.heads}", "half of them are horizontal, half vertical: their number is even")
        if stripe < 1:
            self.refuse(f"stripe={stripe}", "a stripe holds at least one row")
        self.stripe = stripe
        width = self.heads * self.head_dim
        self.query_key_value = nn.Linear(dim, 3 * width, bias=bias)
        self.place = nn.Conv2d(width, width, TAPS, padding=TAPS // 2, groups=width)
        self.out = nn.Linear(width, dim)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """x (B, N, D) -> (B, N, D)."""
        no_prefix(self, layout)
        if not layout.plain:
            return per_sequence(self, x, layout)
        grid, out = of_rank(layout.grid, 2), []
        for half, (q, k, v) in enumerate(self._halves(x)):
            o = tiled_attention(q, k, v, self._tiles(grid, half, x.device))
            out.append(o.flatten(2) + self._placed(v.flatten(2), grid, half))
        return self.out(torch.cat(out, -1))

    def reference(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """The definition: scores of all pairs, those of two stripes hidden; the convolution tap by tap."""
        grid, out = of_rank(layout.grid, 2), []
        for half, (q, k, v) in enumerate(self._halves(x)):
            o = attention(q, k, v, mask=GridWindows(grid, self._sizes(grid, half), (0, 0)), backend="reference")
            out.append(o.flatten(2) + self._placed_slowly(v.flatten(2), grid, half))
        return self.out(torch.cat(out, -1))

    def _halves(self, x: Tensor) -> list[tuple[Tensor, ...]]:
        """(B, N, H/2, K) of queries, keys and values of the horizontal heads, and of the vertical."""
        parts = self.query_key_value(x).unflatten(-1, (3, 2, self.heads // 2, self.head_dim))
        return [parts[:, :, :, half].unbind(2) for half in range(2)]

    def _sizes(self, grid: tuple[int, int], half: int) -> tuple[int, int]:
        """Height and width of a stripe."""
        height, width = grid
        return (min(self.stripe, height), width) if half == 0 else (height, min(self.stripe, width))

    def _tiles(self, grid: tuple[int, int], half: int, device: torch.device | None = None) -> Tiles:
        return over_grid([windows(*each, 0, device) for each in zip(grid, self._sizes(grid, half), strict=True)])

    def _taps(self, half: int) -> tuple[Tensor, Tensor]:
        """The convolution's weights and biases for a half's channels."""
        return self.place.weight.chunk(2)[half], self.place.bias.chunk(2)[half]

    def _placed(self, v: Tensor, grid: tuple[int, int], half: int) -> Tensor:
        """The values (B, N, C) convolved within each stripe."""
        b, c = v.shape[0], v.shape[2]
        (height, width), (rows, columns) = grid, self._sizes(grid, half)
        down, across = -(-height // rows), -(-width // columns)
        v = F.pad(v.unflatten(1, grid), (0, 0, 0, across * columns - width, 0, down * rows - height))
        v = v.view(b, down, rows, across, columns, c).permute(0, 1, 3, 5, 2, 4).flatten(0, 2)
        weight, bias = self._taps(half)
        v = F.conv2d(v, weight, bias, padding=TAPS // 2, groups=c)
        v = v.view(b, down, across, c, rows, columns).permute(0, 1, 4, 2, 5, 3)
        return v.reshape(b, down * rows, across * columns, c)[:, :height, :width].flatten(1, 2)

    def _placed_slowly(self, v: Tensor, grid: tuple[int, int], half: int) -> Tensor:
        weight, out = (each.unsqueeze(-1) for each in self._taps(half))
        stripes = [
            torch.arange(n, device=v.device) // size for n, size in zip(grid, self._sizes(grid, half), strict=True)
        ]
        v, out = v.unflatten(1, grid), out.flatten().to(v.dtype)
        for down in range(TAPS):
            for across in range(TAPS):
                moved, own = v, v.new_ones(grid)
                for axis, step in enumerate((down - TAPS // 2, across - TAPS // 2)):
                    place = torch.arange(grid[axis], device=v.device) + step
                    near = place.clamp(0, grid[axis] - 1)
                    same = (place == near) & (stripes[axis][near] == stripes[axis])
                    moved = moved.index_select(1 + axis, near)
                    own = own * (same[:, None] if axis == 0 else same)
                out = out + weight[:, 0, down, across, 0] * moved * own[..., None]
        return out.flatten(1, 2)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        """Projections, all pairs of the stripes, and the convolution, padding included."""
        width = self.heads * self.head_dim
        total = 4 * batch * layout.tokens * self.dim * width
        for part, rows in pieces(layout, batch, False):
            grid = of_rank(part.grid, 2)
            for half in range(2):
                total += macs(self._tiles(grid, half), heads=self.heads // 2, key_dim=self.head_dim, batch=rows)
                padded = math.prod(-(-n // size) * size for n, size in zip(grid, self._sizes(grid, half), strict=True))
                total += rows * padded * width // 2 * TAPS**2
        return Cost(parameter_count(self), total)
