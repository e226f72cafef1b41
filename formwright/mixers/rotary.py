"""Rotary positions as an option of mixers that make queries and keys."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from formwright.contract import Position, TokenMixer
from formwright.parts import card_of, class_of


def rotary(mixer: TokenMixer, position: Callable | None, width: int) -> Position | None:
    """The rotary position given to a mixer, made for queries and keys of this width; None where none is given.

    Raises Unsupported in the mixer's name for any other part."""
    if position is None:
        return None
    cls = class_of(position)
    if getattr(cls, "role", None) != "rotate" or getattr(cls, "contextual", False):
        mixer.refuse(f"position={card_of(position).name}", "it takes those that turn queries and keys by their places")
    return position(dim=width)


def turned(x: Tensor, position: Position | None, places: Tensor) -> Tensor:
    """x (B, N, H, K) turned by its places (N, A) or (B, N, A); as it is where there is no position."""
    return x if position is None else position.rotate(x, places)
