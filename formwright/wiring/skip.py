"""skip(stack): a U-shape; the stack's output is joined with its input.

    y = W [x; stack(x)]

Ronneberger et al., U-Net, 1505.04597, 2015; with tokens: Bao et al., U-ViT, 2209.12152, 2022. A stack that goes down
and up again may give up to f - 1 tokens more along an axis than it got; they are cut off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, Wiring, parameter_count
from formwright.parts import register


@register
class Skip(Wiring):
    card = Card(
        name="skip",
        kind="wiring",
        summary="joins a stack's output with its input by one matrix (U-shape)",
        source="U-Net, 1505.04597, 2015; All are Worth Words: A ViT Backbone for Diffusion Models, 2209.12152, 2022",
    )

    def __init__(self, dim: int, stack: Wiring):
        super().__init__()
        self.stack = stack
        self.dim = self.dim_out = dim
        self.join = nn.Linear(dim + stack.dim_out, dim, bias=False)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        y, after = self.stack(x, layout, context, context_layout)
        if after.grid != layout.grid:
            rows = y.shape[0]
            if len(after.grid) != len(layout.grid) or any(a < b for a, b in zip(after.grid, layout.grid, strict=True)):
                raise ValueError(
                    f"skip: the stack turned the grid {layout.grid} into {after.grid}; upsample it by as much as it was"
                    " downsampled"
                )
            y = y.view(rows, *after.grid, -1)[(slice(None), *(slice(size) for size in layout.grid))]
            y = y.reshape(rows, layout.tokens, -1)
        return self.join(torch.cat([x, y], -1)), layout

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        like = self.join.weight if like is None else like
        return self.stack.empty(batch, capacity, like), like.new_zeros(batch, 0, self.stack.dim_out)

    def extend(
        self, x: Tensor, state: Any, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Any]:
        inside, early = state
        y, inside = self.stack.extend(x, inside, context, context_layout)
        # A group of tokens comes out of upsample at its first token; those not yet due wait here.
        y = torch.cat([early, y], 1)
        steps = x.shape[1]
        return self.join(torch.cat([x, y[:, :steps]], -1)), (inside, y[:, steps:])

    def inner(self, layout: Layout) -> list[tuple[str, nn.Module, Layout]]:
        return [("", self.stack, layout)]

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        inside = self.stack.cost(layout, batch)
        joined = Cost(macs=batch * layout.tokens * self.join.weight.numel())
        total = inside + joined
        return Cost(parameter_count(self), total.macs, total.state_bytes, total.other_flops)
