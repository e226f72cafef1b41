"""sigma_reparam(stack): the linear maps of all parts inside are reparametrised, W^ = gamma / sigma(W) W.

The equations are in norms/sigma_reparam.py. Written around a whole stack or a part of it; plain(...) inside leaves
out norms, as the paper does for vision: sigma_reparam(plain(...)). Stabilizing Transformer Training by Preventing
Attention Entropy Collapse, 2303.06296, 2023.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from formwright.contract import Card, Layout, Wiring
from formwright.norms.sigma_reparam import reparametrise
from formwright.parts import register


@register
class SigmaReparam(Wiring):
    card = Card(
        name="sigma_reparam",
        kind="wiring",
        summary="divides each linear map inside by its largest singular value, times a learned scalar",
        source="Stabilizing Transformer Training by Preventing Attention Entropy Collapse, 2303.06296, 2023",
    )

    def __init__(self, dim: int, stack: Wiring):
        super().__init__()
        self.stack = reparametrise(stack)
        self.dim, self.dim_out = dim, stack.dim_out
        self.normed = stack.normed

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        return self.stack(x, layout, context, context_layout)

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        return self.stack.empty(batch, capacity, like)

    def extend(
        self, x: Tensor, state: Any, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Any]:
        return self.stack.extend(x, state, context, context_layout)

    def after(self, layout: Layout) -> Layout:
        return self.stack.after(layout)

    def inner(self, layout: Layout) -> list[tuple[str, nn.Module, Layout]]:
        return [("", self.stack, layout)]
