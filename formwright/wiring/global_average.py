"""global_average: the mean of all tokens, the one token left.

    y = mean_t x_t          class tokens and padding left out

So that what follows works on the mean, as global_average >> layernorm >> classify does. It reads all tokens and
stands in two-directional stacks alone.
Network In Network, 1312.4400, 2013.
"""

from __future__ import annotations

from torch import Tensor

from formwright.contract import Card, Cost, Layout, Unsupported, Wiring
from formwright.heads.readout import read_out
from formwright.parts import register


@register
class GlobalAverage(Wiring):
    card = Card(
        name="global_average",
        kind="wiring",
        summary="the mean of all tokens as the one token left, for what comes after",
        source="Network In Network, 1312.4400, 2013",
    )
    stacks = ()

    def __init__(self, dim: int, *, causal: bool = False):
        """Raises Unsupported in causal stacks."""
        super().__init__()
        if causal:
            raise Unsupported("global_average", "causal=True", "its mean reads tokens that come after")
        self.dim = self.dim_out = dim

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        if layout.offsets is not None:
            raise Unsupported("global_average", "packed sequences", "each gives a row of its own; pad them instead")
        return read_out(x, layout, "mean", False, "global_average")[:, None], self.after(layout)

    def after(self, layout: Layout) -> Layout:
        return Layout((1,) * len(layout.grid))

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost()
