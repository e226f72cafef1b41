"""Shifted-window attention: the grid is cut into windows, and tokens attend within their own; the next layer's windows
are shifted by half of one, so that neighbours on two sides of a border meet there.

    y_i = W_o concat_h sum_j softmax_j(q_hi . k_hj / sqrt(K) + b_h(j - i)) v_hj,   j in the window of i

The window of i is numbered floor((i - shift) / window) along each axis; b is learned, one number for each head and
relative place. Windows are gathered cyclically, as the paper does: the cut ones at opposite borders share a tile, in
which they don't see one another. Where the grid is no multiple of the window, nobody sees the padding. An axis no
longer than the window is one window, without shift. Shift 0 in one layer and window // 2 in the next make Swin.

Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, 2103.14030, 2021; three axes: Video Swin
Transformer, 2106.13230, 2021. Work and memory are linear in N (ops.grid_tiles).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, parameter_count, per_sequence, split_heads
from formwright.mixers.grids import Sizes, by_axis, no_prefix, of_rank, pieces, whole_bias
from formwright.ops.attention import attention
from formwright.ops.grid_tiles import Tiles, in_slots, macs, over_grid, relative_bias, tiled_attention, windows
from formwright.ops.masks_grid import GridWindows
from formwright.parts import register


@register
class ShiftedWindowAttention(TokenMixer):
    card = Card(
        name="shifted_window_attention",
        summary="attention within the windows of a grid, shifted from layer to layer, with a bias by relative place",
        source="Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, 2103.14030, 2021",
        patterns=("self",),
        grid_ranks=(1, 2),
        time="N",
        state="0",
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        window: Sizes = 7,
        shift: Sizes | None = None,
        bias: bool = True,
    ):
        """
        heads, head_dim  heads of width head_dim; dim / heads without it
        window           tokens along each axis of a window; a number stands for two axes. A grid of fewer axes gets
                         axes of length 1 in front
        shift            places by which windows are moved, half a window without it
        bias             of the linear maps

        Raises ValueError or Unsupported for what doesn't fit."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("shifted_window_attention", dim, heads, head_dim)
        rank = 2 if isinstance(window, int) else len(window)
        self.window = by_axis(self, "window", window, rank)
        self.shift = by_axis(self, "shift", [w // 2 for w in self.window] if shift is None else shift, rank, 0)
        if any(s >= w > 1 for s, w in zip(self.shift, self.window, strict=True)):
            self.refuse(f"shift={shift}", f"it must be less than the window {self.window} along every axis")
        if rank != 2:
            self.card = replace(self.card, grid_ranks=tuple(range(1, rank + 1)))
        width = self.heads * self.head_dim
        self.query_key_value = nn.Linear(dim, 3 * width, bias=bias)
        self.out = nn.Linear(width, dim, bias=bias)
        self.table = nn.Parameter(0.02 * torch.randn(self.heads, *(2 * w - 1 for w in self.window)))

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """x (B, N, D) -> (B, N, D)."""
        no_prefix(self, layout)
        if not layout.plain:
            return per_sequence(self, x, layout)
        tiles = self._tiles(layout, x.device)
        bias = relative_bias(self.table, tiles, self._centre)
        moved = tiles.reorders
        x = in_slots(x, tiles) if moved else x
        return self.out(tiled_attention(*self._heads(x), tiles, bias=bias, moved=moved).flatten(2))

    def reference(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """The definition: scores of all pairs, those of two windows hidden."""
        grid = of_rank(layout.grid, len(self.window))
        sizes = [(n, 0) if n <= w else (w, s) for n, w, s in zip(grid, self.window, self.shift, strict=True)]
        mask = GridWindows(grid, *map(tuple, zip(*sizes, strict=True)))
        bias = whole_bias(self.table, grid, self._centre)
        return self.out(attention(*self._heads(x), mask=mask, bias=bias, backend="reference").flatten(2))

    def _tiles(self, layout: Layout, device: torch.device | None = None) -> Tiles:
        sizes = zip(of_rank(layout.grid, len(self.window)), self.window, self.shift, strict=True)
        return over_grid([windows(n, w, s if n > w else 0, device) for n, w, s in sizes])

    @property
    def _centre(self) -> tuple[int, ...]:
        """Where a token itself stands in the table of biases."""
        return tuple(w - 1 for w in self.window)

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, N, H, K) of queries, keys and values."""
        return self.query_key_value(x).unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        """Projections, and all pairs of the windows, padding included."""
        linear = 4 * batch * layout.tokens * self.dim * self.heads * self.head_dim
        how = {"heads": self.heads, "key_dim": self.head_dim}
        products = sum(macs(self._tiles(part), batch=rows, **how) for part, rows in pieces(layout, batch, False))
        return Cost(parameter_count(self), linear + products)
