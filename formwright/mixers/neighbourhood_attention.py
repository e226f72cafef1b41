"""Neighbourhood attention: every token attends to its nearest neighbours on the grid.

    y_i = W_o concat_h sum_j softmax_j(q_hi . k_hj / sqrt(K) + b_h(j - i)) v_hj,   j in the neighbourhood of i

The neighbourhood of i holds, along each axis, the k nearest tokens of i's residue modulo the dilation. At borders it
moves inwards, so that every token has exactly k^d neighbours: unlike a sliding window or a convolution, it never reads
fewer. A causal one holds i's place and the k - 1 before it along each axis. Where an axis has fewer than k tokens of
a residue, it holds them all.

Neighborhood Attention Transformer, 2204.07143, 2022; dilation: Dilated Neighborhood Attention Transformer, 2209.15001,
2022; causal and N-D: Faster Neighborhood Attention, 2403.04690, 2024. Work and memory are linear in N (ops.grid_tiles).
"""

from __future__ import annotations

from dataclasses import replace

import torch
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
from formwright.mixers.cache import Cache, append_ring, empty_cache
from formwright.mixers.grids import Sizes, by_axis, no_prefix, of_rank, pieces, whole_bias
from formwright.ops.attention import attention
from formwright.ops.grid_tiles import Tiles, macs, neighbourhoods, over_grid, relative_bias, tiled_attention
from formwright.ops.masks import Causal, Dilated, Window
from formwright.ops.masks_grid import Neighbourhood
from formwright.parts import register

QUERIES = {1: 32, 2: 6, 3: 4}  # a tile's least extent, by the number of axes


@register
class NeighbourhoodAttention(TokenMixer):
    card = Card(
        name="neighbourhood_attention",
        summary="each token attends to its k nearest along every axis, with dilation; borders keep all k",
        source="Neighborhood Attention Transformer, 2204.07143, 2022",
        patterns=("self", "causal"),
        grid_ranks=(1, 2, 3),
        time="N",
        state="1",
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        kernel: Sizes = 7,
        dilation: Sizes = 1,
        relative_bias: bool = False,
        bias: bool = False,
    ):
        """
        heads, head_dim  heads of width head_dim; dim / heads without it
        kernel           neighbours along every axis, the token itself among them, or a tuple by axis
        dilation         steps between them, or a tuple by axis
        relative_bias    a learned bias of each relative place; it needs `kernel` as a tuple, with as many axes as the
                         grid, or more: missing ones stand in front and have length 1
        bias             of the linear maps

        extend reads its tokens as a sequence. Raises ValueError or Unsupported for what doesn't fit."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("neighbourhood_attention", dim, heads, head_dim)
        self.kernel, self.dilation = kernel, dilation
        most = 3 if isinstance(kernel, int) else len(kernel)
        if not 1 <= most <= 3:
            self.refuse(f"kernel={kernel}", "grids have 1 to 3 axes")
        by_axis(self, "kernel", kernel, most), by_axis(self, "dilation", dilation, most)
        if most < 3:
            self.card = replace(self.card, grid_ranks=tuple(range(1, most + 1)))
        self.query, self.key, self.value = (nn.Linear(dim, self.heads * self.head_dim, bias=bias) for _ in range(3))
        self.out = nn.Linear(self.heads * self.head_dim, dim, bias=bias)
        self.table = None
        if relative_bias:
            if isinstance(kernel, int):
                self.refuse(
                    "relative_bias", f"its table has an axis for each of the grid's; write kernel=({kernel}, ...)"
                )
            extents = [k if causal else 2 * k - 1 for k in kernel]
            self.table = nn.Parameter(0.02 * torch.randn(self.heads, *extents))

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """x (B, N, D) -> (B, N, D)."""
        no_prefix(self, layout)
        if layout.offsets is not None or (layout.lengths is not None and not self.causal):
            return per_sequence(self, x, layout)
        tiles = self._tiles(layout, x.device)
        bias = None if self.table is None else relative_bias(self.table, tiles, self._centre)
        return self._out(tiled_attention(*self._heads(x), tiles, bias=bias))

    def reference(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """The definition: scores of all pairs, those outside of neighbourhoods hidden."""
        grid, kernel, dilation = self._sizes(layout)
        mask = Neighbourhood(grid, kernel, dilation, self.causal)
        bias = None if self.table is None else whole_bias(self.table, grid, self._centre, dilation)
        return self._out(attention(*self._heads(x), mask=mask, bias=bias, backend="reference"))

    def _sizes(self, layout: Layout) -> tuple[tuple[int, ...], ...]:
        """(grid, kernel, dilation), by axis; as many axes as the table of biases has."""
        rank = len(layout.grid) if self.table is None else self.table.ndim - 1
        sizes = ((name, getattr(self, name)) for name in ("kernel", "dilation"))
        return of_rank(layout.grid, rank), *(by_axis(self, name, value, rank) for name, value in sizes)

    def _tiles(self, layout: Layout, device: torch.device | None = None) -> Tiles:
        least = QUERIES[len(layout.grid)]
        return over_grid(
            [
                neighbourhoods(n, kernel, dilation, self.causal, max(least, min(kernel, 64)), device)
                for n, kernel, dilation in zip(*self._sizes(layout), strict=True)
            ]
        )

    @property
    def _centre(self) -> tuple[int, ...]:
        """Where a token itself stands in the table of biases."""
        return tuple(kernel - 1 for kernel in self.kernel)

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, N, H, K) of queries, keys and values."""
        return tuple(part(x).unflatten(-1, (self.heads, self.head_dim)) for part in (self.query, self.key, self.value))

    def _out(self, o: Tensor) -> Tensor:
        return self.out(o.flatten(2))

    @property
    def _window(self) -> int:
        """How far a causal token of a sequence looks back, itself counted, and in which steps."""
        (kernel,), (dilation,) = by_axis(self, "kernel", self.kernel, 1), by_axis(self, "dilation", self.dilation, 1)
        return (kernel - 1) * dilation + 1, dilation

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """A ring of keys and values (B, H, R, K) that reaches as far back as the neighbourhood."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        shape = batch, self.heads, self.head_dim
        room = min(capacity or 0, self._window[0])
        return empty_cache(self.key.weight if like is None else like, room, keys=shape, values=shape)

    def extend(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        """x (B, T, D), further tokens of a sequence -> outputs (B, T, D) and the state after them."""
        t, (window, dilation) = x.shape[1], self._window
        q, k, v = self._heads(x)
        seen, state = append_ring(state, window, keys=k.transpose(1, 2), values=v.transpose(1, 2))
        k, v = (seen[name].transpose(1, 2) for name in ("keys", "values"))
        if t == 1:  # all of its residue that is left
            k, v = (each[:, (each.shape[1] - 1) % dilation :: dilation] for each in (k, v))
            bias = None if self.table is None else self._row()[:, None, -k.shape[1] :]
            return self._out(attention(q, k, v, bias=bias, backend=self.backend)), state
        bias = None
        if self.table is not None:
            place = torch.arange(k.shape[1], device=x.device)
            steps = torch.div(place[None, :] - place[-t:, None], dilation, rounding_mode="floor")
            row = self._row()
            bias = row[:, (steps + row.shape[1] - 1).clamp(0, row.shape[1] - 1)]
        mask = Causal() & Window(window)
        mask = mask if dilation == 1 else mask & Dilated(dilation)
        return self._out(attention(q, k, v, mask=mask, bias=bias, backend=self.backend)), state

    def _row(self) -> Tensor:
        """(H, k) biases along a sequence, the farthest first."""
        return self.table[(slice(None), *self._centre[:-1])]

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        """Projections, and all pairs of the tiles."""
        width = self.heads * self.head_dim
        linear = 4 * batch * layout.tokens * self.dim * width
        how = {"heads": self.heads, "key_dim": self.head_dim}
        products = sum(macs(self._tiles(part), batch=rows, **how) for part, rows in pieces(layout, batch, self.causal))
        kept = min(layout.tokens, self._window[0]) if self.causal else 0
        return Cost(parameter_count(self), linear + products, 2 * batch * kept * width * element_size(self))
