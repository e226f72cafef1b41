"""nested(inner >> fold >> outer): fine tokens inside coarse ones, as in Transformer in Transformer.

    nested(12*(attention(heads=4) + mlp) >> fold(4, width=384) >> 12*(attention(heads=6) + mlp))

Tokens of the grid are cut into blocks of size x size, one outer token for each, a class token before them:

    y_g = x_g + e_inner,   z = [cls; fold(y_1) ... fold(y_G)] + e_outer,   fold(y_g) = norm(W norm(vec y_g) + b)
    for each stage l:   y_g = inner_l(y_g),   z_g = z_g + fold_l(y_g),   z = outer_l(z)

A stage is one of n copies, or one part of a sum or chain without n. inner_l sees the tokens of one block alone,
outer_l all outer tokens. Without nested() the same chain is a pyramid: all inner stages, one fold, all outer stages.
fold_l has weights of its own, without b. Blocks read all of their tokens, so both stand in two-directional stacks
alone.
Transformer in Transformer, 2103.00112, 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, Norm, Unsupported, Wiring, parameter_count, part_cost
from formwright.norms.rmsnorm import RMSNorm
from formwright.parts import register
from formwright.wiring.grid import blocks
from formwright.wiring.stack import Stack


class _Map(nn.Module):
    """norm(W norm(v) + b): vectors of all tokens of a block to one outer token."""

    def __init__(self, size: int, width: int, norm: Callable[[int], Norm], bias: bool):
        super().__init__()
        self.norm = norm(size)
        self.project = nn.Linear(size, width, bias=bias)
        self.norm_after = norm(width)

    def forward(self, v: Tensor) -> Tensor:
        return self.norm_after(self.project(self.norm(v)))


@register
class Fold(Wiring):
    card = Card(
        name="fold",
        kind="wiring",
        summary="makes one outer token of each block of the grid, with a class token and learned places",
        source="Transformer in Transformer, 2103.00112, 2021",
    )
    stacks = ()

    def __init__(
        self,
        dim: int,
        *,
        size: int = 4,
        width: int | None = None,
        cls: bool = True,
        norm: Callable[[int], Norm] = RMSNorm,
        causal: bool = False,
        length: int = 1024,
        rank: int | None = None,
    ):
        """
        size    of a block along every axis
        width   of outer tokens, size^axes D without it
        cls     a class token before them

        Raises ValueError or Unsupported for what doesn't fit."""
        super().__init__()
        if causal:
            raise Unsupported("fold", "causal=True", "a block reads all of its tokens; write downsample")
        if size < 1:
            raise ValueError(f"fold: size={size} must be at least 1")
        self.dim, self.size, self.rank, self.make_norm = dim, size, rank or 1, norm
        self.inside = size**self.rank
        self.dim_out = width or self.inside * dim
        self.count = max(1, length // self.inside)
        self.map = self.another(bias=True)
        self.cls = nn.Parameter(torch.randn(self.dim_out) * 0.02) if cls else None
        self.places = nn.Parameter(torch.randn(self.count + cls, self.dim_out) * 0.02)

    def another(self, bias: bool = False) -> _Map:
        """One more map of blocks to outer tokens, with weights of its own."""
        return _Map(self.inside * self.dim, self.dim_out, self.make_norm, bias)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        return self.begin(self.cut(x, layout)), self.after(layout)

    def cut(self, x: Tensor, layout: Layout) -> Tensor:
        """x (B, N, D) -> (B, G, size^axes D), the tokens of each of G blocks."""
        if not layout.plain or layout.coords is not None or layout.prefix:
            raise Unsupported("fold", "padded, packed, irregular or prefix tokens", "its blocks need a full grid")
        if len(layout.grid) != self.rank:
            raise Unsupported("fold", f"a grid of {len(layout.grid)} axes", f"it was built for {self.rank}")
        if any(n % self.size for n in layout.grid) or math.prod(layout.grid) != self.count * self.inside:
            raise ValueError(
                f"fold: blocks of size={self.size} and places for {self.count} of them don't fit the grid {layout.grid}"
            )
        return blocks(x, layout.grid, self.size)

    def begin(self, v: Tensor) -> Tensor:
        """Blocks (B, G, size^axes D) -> outer tokens with their places and the class token."""
        z = self.map(v)
        if self.cls is not None:
            z = torch.cat([self.cls.to(z.dtype).expand(len(z), 1, -1), z], 1)
        return z + self.places

    def after(self, layout: Layout) -> Layout:
        return Layout(tuple(-(-n // self.size) for n in layout.grid), prefix=0 if self.cls is None else 1)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(parameter_count(self), batch * math.prod(layout.grid) * self.dim * self.dim_out)


@register
class Nested(Wiring):
    card = Card(
        name="nested",
        kind="wiring",
        summary="inner tokens within each outer token, mixed by stacks of their own and folded into it stage by stage",
        source="Transformer in Transformer, 2103.00112, 2021",
    )

    @classmethod
    def inside(cls, stack: str, flow: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        if flow.get("causal"):
            raise Unsupported("nested", "causal=True", "inner tokens see all of their block")
        return flow

    def __init__(self, dim: int, stack: Wiring):
        """Raises ValueError unless the stack is inner >> fold >> outer with as many stages on either side."""
        super().__init__()
        stages = list(stack.stages) if isinstance(stack, Stack) else []
        folds = [i for i, stage in enumerate(stages) if isinstance(stage, Fold)]
        if len(folds) != 1 or not 0 < folds[0] < len(stages) - 1:
            raise ValueError("nested: write nested(n*(inner) >> fold >> n*(outer)), with one fold")
        self.fold = stages[folds[0]]
        self.inner_stages, self.outer_stages = (
            nn.ModuleList(side[0].stages if len(side) == 1 and isinstance(side[0], Stack) else side)
            for side in (stages[: folds[0]], stages[folds[0] + 1 :])
        )
        if len(self.inner_stages) != len(self.outer_stages):
            raise ValueError(
                f"nested: {len(self.inner_stages)} inner stages and {len(self.outer_stages)} outer ones; write as many"
            )
        if any(stage.dim_out != stage.dim for stage in (*self.inner_stages, *self.outer_stages)):
            raise ValueError("nested: inner and outer stages must keep their widths")
        self.dim, self.dim_out, self.normed = dim, self.fold.dim_out, self.outer_stages[-1].normed
        self.places = nn.Parameter(torch.randn(self.fold.inside, dim) * 0.02)
        self.folds = nn.ModuleList(self.fold.another() for _ in self.outer_stages)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        block, outside = self._block, self.after(layout)
        v = self.fold.cut(x, layout)
        rows, count = len(x), v.shape[1]
        y = v.reshape(rows * count, self.fold.inside, self.dim) + self.places
        z = self.fold.begin(y.view(rows, count, -1))
        for inner, fold, outer in zip(self.inner_stages, self.folds, self.outer_stages, strict=True):
            y, _ = inner(y, block)
            added = fold(y.reshape(rows, count, -1))
            z = torch.cat([z[:, : outside.prefix], z[:, outside.prefix :] + added], 1)
            z, _ = outer(z, outside)
        return z, outside

    @property
    def _block(self) -> Layout:
        """Where the inner tokens of a block stand."""
        return Layout((self.fold.size,) * self.fold.rank)

    def after(self, layout: Layout) -> Layout:
        return self.fold.after(layout)

    def inner(self, layout: Layout) -> list[tuple[str, nn.Module, Layout]]:
        outside = self.after(layout)
        rows = [("fold", self.fold, layout)]
        for inside, outer in zip(self.inner_stages, self.outer_stages, strict=True):
            rows += [("inner, each block", inside, self._block), ("outer", outer, outside)]
        return rows

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        fold, outside = self.fold.cost(layout, batch), self.after(layout)
        total = Cost(macs=fold.macs * (1 + len(self.folds)))
        for stage in self.inner_stages:
            total = total + part_cost(stage, self._block, batch * math.prod(outside.grid))
        for stage in self.outer_stages:
            total = total + part_cost(stage, outside, batch)
        return Cost(parameter_count(self), total.macs, 0, total.other_flops)
