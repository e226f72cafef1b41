"""share_positions(stack): the stack's mixers that were written with the same position share its weights.

T5 learns one table of relative biases for all layers of its encoder, and one for those of its decoder: Exploring the
Limits of Transfer Learning with a Unified Text-to-Text Transformer, 1910.10683, 2019.
"""

from __future__ import annotations

from typing import Any

from formwright.contract import Card, Position, TokenMixer, Wiring
from formwright.parts import register
from formwright.wiring import handed_on


@register
class SharePositions(Wiring):
    card = Card(
        name="share_positions",
        kind="wiring",
        summary="one set of weights for equal positions of all mixers inside",
        source="Exploring the Limits of Transfer Learning (T5), 1910.10683, 2019",
    )

    def __init__(self, dim: int, stack: Wiring):
        super().__init__()
        self.stack = stack
        self.dim, self.dim_out, self.normed = dim, stack.dim_out, stack.normed
        first: dict[Any, Position] = {}
        for mixer in stack.modules():
            position = getattr(mixer, "position", None)
            if isinstance(mixer, TokenMixer) and isinstance(position, Position) and list(position.parameters()):
                mixer.position = first.setdefault(_likeness(position), position)
        if not first:
            raise ValueError("share_positions: no mixer inside has a position with weights, such as position=t5_bias")

    forward, empty, extend = handed_on.forward, handed_on.empty, handed_on.extend
    after, inner = handed_on.after, handed_on.inner


def _likeness(position: Position) -> tuple[Any, ...]:
    """What two positions must agree in to be one: their part, its options, the shapes of their weights."""
    options = {k: v for k, v in vars(position).items() if not k.startswith("_") and k != "training"}
    shapes = {name: tuple(p.shape) for name, p in position.named_parameters()}
    return type(position), repr(sorted(options.items())), repr(shapes)
