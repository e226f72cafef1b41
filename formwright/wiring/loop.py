"""loop(stack, times=n): the same weights n times, x <- stack(x) again and again.

Dehghani et al., Universal Transformers, 1807.03819, 2018.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from formwright.contract import Card, Layout, Wiring
from formwright.parts import register


@register
class Loop(Wiring):
    card = Card(
        name="loop",
        kind="wiring",
        summary="the same weights several times: depth without parameters",
        source="Universal Transformers, 1807.03819, 2018",
    )

    def __init__(self, dim: int, stack: Wiring, *, times: int = 2):
        super().__init__()
        if times < 1:
            raise ValueError(f"loop: times is {times}, but must be at least 1")
        if stack.dim_out != dim:
            raise ValueError(f"loop: the stack turns width {dim} into {stack.dim_out}, so it can't take its own output")
        self.stack, self.times = stack, times
        self.dim = self.dim_out = dim
        self.normed = stack.normed

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        for _ in range(self.times):
            x, layout = self.stack(x, layout, context, context_layout)
        return x, layout

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        return [self.stack.empty(batch, capacity, like) for _ in range(self.times)]

    def extend(
        self, x: Tensor, state: Any, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Any]:
        states = []
        for before in state:
            x, after = self.stack.extend(x, before, context, context_layout)
            states.append(after)
        return x, states

    def after(self, layout: Layout) -> Layout:
        for _ in range(self.times):
            layout = self.stack.after(layout)
        return layout

    def inner(self, layout: Layout) -> list[tuple[str, nn.Module, Layout]]:
        rows = []
        for turn in range(self.times):
            rows.append((f"turn {turn + 1}", self.stack, layout))
            layout = self.stack.after(layout)
        return rows
