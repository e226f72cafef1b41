"""Axial attention: on a grid every token attends along the lines through it, one axis at a time.

    y_i = W_o sum_a concat_h sum_j softmax_j(q_hi . k_hj / sqrt(K)) v_hj,   j on the line of i along axis a

With `axis` there is one a alone, and layers in turn make the paper's encoder: axial_attention(axis=0) +
axial_attention(axis=1). On a sequence it is plain attention. A causal one attends to what comes no later on each line,
so that nothing depends on tokens that are later row by row; extend then costs one line of each axis for a token, not
the whole image.

Axial Attention in Multidimensional Transformers, 1912.12180, 2019. Work grows with N times the sum of extents.
"""

from __future__ import annotations

import math

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
from formwright.mixers.cache import Cache, append_heads, empty_cache
from formwright.mixers.grids import no_prefix, pieces
from formwright.ops.attention import attention, macs
from formwright.ops.masks import Causal
from formwright.ops.masks_grid import Along
from formwright.parts import register


@register
class AxialAttention(TokenMixer):
    card = Card(
        name="axial_attention",
        summary="attention along the lines of a grid, one axis or the sum of all; causal row by row",
        source="Axial Attention in Multidimensional Transformers, 1912.12180, 2019",
        patterns=("self", "causal"),
        grid_ranks=(1, 2, 3),
        time="N^2",
        state="N",
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        axis: int | None = None,
        extents: tuple[int, ...] = (),
        bias: bool = False,
    ):
        """
        heads, head_dim  heads of width head_dim; dim / heads without it
        axis             the axis of the grid to attend along, negative ones from its end; the sum of all without it
        extents          sizes of all axes but the first of the grid whose tokens extend gets, row by row; a sequence
                         without them
        bias             of the linear maps

        Raises ValueError or Unsupported for what doesn't fit."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("axial_attention", dim, heads, head_dim)
        self.axis, self.extents = axis, (extents,) if isinstance(extents, int) else tuple(extents)
        if any(n < 1 for n in self.extents):
            self.refuse(f"extents={extents}", "every axis has at least one token")
        width = self.heads * self.head_dim
        self.query, self.key, self.value = (nn.Linear(dim, width, bias=bias) for _ in range(3))
        self.out = nn.Linear(width, dim, bias=bias)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """x (B, N, D) -> (B, N, D)."""
        no_prefix(self, layout)
        if layout.offsets is not None or (layout.lengths is not None and not self.causal):
            return per_sequence(self, x, layout)
        return self.out(self._along_axes(*self._heads(x), layout.grid).flatten(2))

    def reference(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """The definition: for each axis the scores of all pairs, those off the line hidden."""
        q, k, v = self._heads(x)
        masks = [Along(layout.grid, axis) for axis in self._axes(len(layout.grid))]
        masks = [Causal() & mask if self.causal else mask for mask in masks]
        return self.out(sum(attention(q, k, v, mask=mask, backend="reference") for mask in masks).flatten(2))

    def _axes(self, rank: int) -> list[int]:
        """The axes of a grid to attend along."""
        if self.axis is None:
            return list(range(rank))
        if not -rank <= self.axis < rank:
            self.refuse(f"axis={self.axis}", f"the grid has {rank} axes")
        return [self.axis % rank]

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, N, H, K) of queries, keys and values."""
        return tuple(part(x).unflatten(-1, (self.heads, self.head_dim)) for part in (self.query, self.key, self.value))

    def _along_axes(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Attention of (B, N, H, K) along each axis, every line by itself, summed."""
        total = None
        for axis in self._axes(len(grid)):
            before, extent, after = math.prod(grid[:axis]), grid[axis], math.prod(grid[axis + 1 :])
            lines = (x.unflatten(1, (before, extent, after)).transpose(2, 3).flatten(0, 2) for x in (q, k, v))
            o = attention(*lines, mask=Causal() if self.causal else None, backend=self.backend)
            o = o.unflatten(0, (-1, before, after)).transpose(2, 3).flatten(1, 3)
            total = o if total is None else total + o
        return total

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """Keys and values (B, H, capacity, K)."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        shape = batch, self.heads, self.head_dim
        return empty_cache(self.key.weight if like is None else like, capacity, keys=shape, values=shape)

    def extend(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        """x (B, T, D), further tokens of the grid row by row -> outputs (B, T, D) and the state after them."""
        count, t, row = state["count"], x.shape[1], math.prod(self.extents)
        q, k, v = self._heads(x)
        k, v, state = append_heads(state, k, v)
        if count == 0 and t % row == 0:  # whole rows from the first on
            return self.out(self._along_axes(q, k, v, (t // row, *self.extents)).flatten(2)), state
        grid, total = (-(-(count + t) // row), *self.extents), 0
        for axis in self._axes(len(grid)):
            if t == 1:
                step = math.prod(grid[axis + 1 :])
                start = count - count // step % grid[axis] * step
                o = attention(q, k[:, start::step], v[:, start::step], backend=self.backend)
            else:
                mask = Causal() if len(grid) == 1 else Causal() & Along(grid, axis)
                o = attention(q, k, v, mask=mask, backend=self.backend)
            total = total + o
        return self.out(total.flatten(2)), state

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        """Projections, and all pairs of every line."""
        width = self.heads * self.head_dim
        total = 4 * batch * layout.tokens * self.dim * width
        for part, rows in pieces(layout, batch, self.causal):
            for axis in self._axes(len(part.grid)):
                extent = part.grid[axis]
                how = {"heads": self.heads, "key_dim": self.head_dim, "mask": Causal() if self.causal else None}
                total += macs(extent, extent, batch=rows * part.tokens // max(1, extent), backend=self.backend, **how)
        state = 2 * batch * layout.tokens * width * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), total, state)
