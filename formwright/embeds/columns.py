"""Feature tokeniser for tables: every column of a row is a token, behind a class token.

    numeric      x_j = u_j w_j + b_j
    categorical  x_j = E_j[u_j] + b_j           E_j a table for each column

Revisiting Deep Learning Models for Tabular Data, arXiv 2106.11959, 2021 (FT-Transformer).
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Embed, Layout, Unsupported, parameter_count
from formwright.parts import register


@register
class Columns(Embed):
    """Rows (B, F) of numbers, first the numeric columns, then whole-number codes of the categorical ones ->
    (B, 1 + F, D), the class token first.

    numeric is their number (or a tuple of it alone), categories the number of codes of each further column. Raises
    ValueError for rows of another width and for codes outside their column's."""

    card = Card(
        name="columns",
        kind="embed",
        summary="each column of a table's row a token, behind a class token",
        source="Revisiting Deep Learning Models for Tabular Data, arXiv 2106.11959, 2021",
    )
    rank = 1

    def __init__(self, dim: int, *, numeric: int | tuple[int, ...], categories: tuple[int, ...] = (), cls: bool = True):
        super().__init__()
        self.dim = dim
        self.numeric = numeric if isinstance(numeric, int) else sum(numeric)
        self.categories = tuple(categories)
        features = self.numeric + len(self.categories)
        if features < 1:
            raise ValueError("columns: a table without columns has nothing to embed; give numeric or categories")
        self.length = features + cls
        bound = dim**-0.5
        self.bias = nn.Parameter(torch.empty(features, dim).uniform_(-bound, bound))
        self.weight = nn.Parameter(torch.empty(self.numeric, dim).uniform_(-bound, bound)) if self.numeric else None
        rows = sum(self.categories)
        self.table = nn.Parameter(torch.empty(rows, dim).uniform_(-bound, bound)) if rows else None
        starts = list(itertools.accumulate(self.categories, initial=0))[:-1]
        self.register_buffer("starts", torch.tensor(starts, dtype=torch.long), persistent=False)
        self.cls = nn.Parameter(torch.empty(dim).uniform_(-bound, bound)) if cls else None

    def forward(self, inputs: Tensor, layout: Layout | None = None) -> tuple[Tensor, Layout]:
        if layout is not None and not layout.plain:
            raise Unsupported("columns", "lengths and offsets", "rows of a table all have the same columns")
        layout = self.layout(tuple(inputs.shape[1:]))
        parts = []
        if self.weight is not None:
            parts.append(inputs[:, : self.numeric, None].to(self.weight.dtype) * self.weight)
        if self.table is not None:
            codes = inputs[:, self.numeric :].round().long()
            self._check_codes(codes)
            parts.append(F.embedding(codes + self.starts, self.table))
        x = torch.cat(parts, 1) + self.bias
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), 1, -1), x], 1)
        return x, layout

    def layout(self, inputs: tuple[int, ...]) -> Layout:
        features = self.numeric + len(self.categories)
        if inputs != (features,):
            raise ValueError(f"columns: a row has {features} columns, but the input is {inputs}")
        return Layout((features,), prefix=0 if self.cls is None else 1)

    def _check_codes(self, codes: Tensor) -> None:
        if torch.compiler.is_compiling() or codes.device.type != "cpu" or not len(codes):
            return
        low, high = codes.amin(0).tolist(), codes.amax(0).tolist()
        for column, (least, most, count) in enumerate(zip(low, high, self.categories, strict=True)):
            if least < 0 or most >= count:
                raise ValueError(
                    f"columns: categorical column {column} holds codes {least} to {most}, but has {count} categories"
                )

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=parameter_count(self))
