"""cross(mixer): the mixer's queries come from the stack's tokens, its keys and values from the source's output.

Vaswani et al., Attention Is All You Need, 1706.03762, 2017.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, Unsupported, Wiring
from formwright.parts import register
from formwright.wiring.stack import Plain


@register
class Cross(Wiring):
    card = Card(
        name="cross",
        kind="wiring",
        summary="a mixer that reads the source's output instead of its own tokens",
        source="Attention Is All You Need, 1706.03762, 2017",
    )
    stacks = ("mixer",)
    branch = True

    def __init__(self, dim: int, mixer: Wiring, *, causal: bool = False, source_length: int | None = None):
        super().__init__()
        if not isinstance(mixer, Plain) or not isinstance(mixer.part, TokenMixer):
            raise ValueError("cross: it takes one token mixer, for example cross(attention)")
        pattern = "causal_cross" if causal else "cross"
        card = mixer.part.card
        if pattern not in card.patterns:
            have = ", ".join(card.patterns) or "none"
            raise Unsupported(card.name, "cross", f"it has no {pattern} pattern; its patterns: {have}")
        self.dim = self.dim_out = dim
        self.source_length = source_length
        self.mixer = Plain(mixer.part, dim, cross=True)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        return self.mixer(x, layout, context, context_layout)

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        return ()

    def extend(
        self, x: Tensor, state: Any, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Any]:
        return self.mixer.extend(x, state, context, context_layout)

    def inner(self, layout: Layout) -> list[tuple[str, nn.Module, Layout]]:
        return [("cross", self.mixer, layout)]

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        """Of a source of `source_length` tokens, without it of one as long as the target. The state is what the mixer
        remembers of it; the source's output itself is the encoder-decoder's."""
        part = self.mixer.part
        takes_context = "context_layout" in inspect.signature(part.cost).parameters
        source = Layout((self.source_length,)) if self.source_length else layout
        whole = part.cost(layout, batch, source) if takes_context else part.cost(layout, batch)
        kept = part.remembered(source, batch) if hasattr(part, "remembered") else 0
        return replace(whole, state_bytes=kept)
