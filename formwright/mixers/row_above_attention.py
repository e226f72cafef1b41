"""Attention of the row above: each row of an image attends to all of itself, and the row below it reads what came out.

    z_rc = concat_h sum_c' softmax_c'(q_h,rc . k_h,rc' / sqrt(K)) v_h,rc',      y_rc = W_o z_(r-1)c,   z_(-1)c = 0

No token reads its own row, so that nothing depends on what is later row by row, and yet nothing is masked within a row.
This is the shifted, unmasked row attention of the Axial Transformer's outer decoder; masked attention along columns
and within the row itself is axial_attention(causal). Decoding is semi-parallel: when a row is complete, all of its
outputs are computed at once, and single tokens only take theirs.

Axial Attention in Multidimensional Transformers, 1912.12180, 2019. Work grows with N times the row's length.
"""

from __future__ import annotations

from typing import Any

import torch
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
from formwright.mixers.grids import no_prefix, pieces
from formwright.ops.attention import attention, macs
from formwright.parts import register


@register
class RowAboveAttention(TokenMixer):
    card = Card(
        name="row_above_attention",
        summary="each row of an image attends to all of itself, and the row below reads it; decodes row by row",
        source="Axial Attention in Multidimensional Transformers, 1912.12180, 2019",
        patterns=("causal",),
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
        row: int | None = None,
        bias: bool = False,
    ):
        """
        heads, head_dim  heads of width head_dim; dim / heads without it
        row              tokens of a row; without it that of the grid, and 32 where tokens are a sequence, as in extend
        bias             of the linear maps

        Raises ValueError or Unsupported for what doesn't fit."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("row_above_attention", dim, heads, head_dim)
        if row is not None and row < 1:
            self.refuse(f"row={row}", "a row holds at least one token")
        self.row = row
        width = self.heads * self.head_dim
        self.query, self.key, self.value = (nn.Linear(dim, width, bias=bias) for _ in range(3))
        self.out = nn.Linear(width, dim, bias=bias)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """x (B, N, D) -> (B, N, D)."""
        no_prefix(self, layout)
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        row, n = self._row(layout), layout.tokens
        whole = max(0, n - 1) // row * row  # the last row is read by nobody
        above = self._rows(*(each[:, :whole] for each in self._heads(x)), row)
        return self.out(F.pad(above, (0, 0, row, 0))[:, :n])

    def reference(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """The definition, token by token."""
        q, k, v = self._heads(x)
        row, out = self._row(layout), torch.zeros_like(q)
        for i in range(row, layout.tokens):
            start = (i // row - 1) * row
            scores = torch.einsum("bhk,bjhk->bhj", q[:, i - row], k[:, start : start + row]) / self.head_dim**0.5
            out[:, i] = torch.einsum("bhj,bjhk->bhk", scores.softmax(-1), v[:, start : start + row])
        return self.out(out.flatten(2))

    def _row(self, layout: Layout | None = None) -> int:
        """Tokens of a row."""
        if layout is None or len(layout.grid) == 1:
            return 32 if self.row is None else self.row
        if self.row not in (None, layout.grid[-1]):
            self.refuse(f"row={self.row}", f"the grid {layout.grid} has rows of {layout.grid[-1]}")
        return layout.grid[-1]

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, N, H, K) of queries, keys and values."""
        return tuple(part(x).unflatten(-1, (self.heads, self.head_dim)) for part in (self.query, self.key, self.value))

    def _rows(self, q: Tensor, k: Tensor, v: Tensor, row: int) -> Tensor:
        """Attention within each of several whole rows: (B, R row, H, K) -> (B, R row, H K)."""
        rows = q.shape[1] // row
        if not rows:
            return q.flatten(2)
        lines = (each.unflatten(1, (rows, row)).flatten(0, 1) for each in (q, k, v))
        return attention(*lines, backend=self.backend).unflatten(0, (-1, rows)).flatten(1, 2).flatten(2)

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> dict[str, Any]:
        """What the row above gives (B, row, H K), and the tokens of the row that is not complete."""
        like = self.key.weight if like is None else like
        begun = {name: like.new_zeros(batch, 0, self.heads, self.head_dim) for name in ("queries", "keys", "values")}
        return begun | {"above": like.new_zeros(batch, self._row(), self.heads * self.head_dim)}

    def extend(self, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """x (B, T, D), further tokens row by row -> outputs (B, T, D) and the state after them."""
        row, begun = self._row(), state["keys"].shape[1]
        names = "queries", "keys", "values"
        parts = [torch.cat([state[name], new], 1) for name, new in zip(names, self._heads(x), strict=True)]
        whole = parts[0].shape[1] // row * row
        above = state["above"]
        if whole:
            above = torch.cat([above, self._rows(*(part[:, :whole] for part in parts), row)], 1)
        out = self.out(above[:, begun : begun + x.shape[1]])
        left = {name: part[:, whole:].clone() for name, part in zip(names, parts, strict=True)}
        return out, left | {"above": above[:, whole:].clone() if whole else above}

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        """Projections, and all pairs of each row but the last."""
        width, row = self.heads * self.head_dim, self._row(layout)
        total = 4 * batch * layout.tokens * self.dim * width
        for part, rows in pieces(layout, batch, True):
            count = max(0, part.tokens - 1) // row
            if count:
                how = {"heads": self.heads, "key_dim": self.head_dim, "backend": self.backend}
                total += macs(row, row, batch=rows * count, **how)
        kept = self._row() + 3 * (layout.tokens % self._row())
        return Cost(parameter_count(self), total, batch * kept * width * element_size(self))
