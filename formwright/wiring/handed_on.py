"""What a wiring around one stack hands on to it as it is. The functions are methods of such wirings."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from formwright.contract import Layout, Wiring


def forward(
    wiring: Wiring, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
) -> tuple[Tensor, Layout]:
    """The stack's outputs and their layout."""
    return wiring.stack(x, layout, context, context_layout)


def empty(wiring: Wiring, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
    """The stack's state before the first token."""
    return wiring.stack.empty(batch, capacity, like)


def extend(
    wiring: Wiring, x: Tensor, state: Any, context: Tensor | None = None, context_layout: Layout | None = None
) -> tuple[Tensor, Any]:
    """The stack's outputs for further tokens, and its state after them."""
    return wiring.stack.extend(x, state, context, context_layout)


def after(wiring: Wiring, layout: Layout) -> Layout:
    """The layout that the stack leaves."""
    return wiring.stack.after(layout)


def inner(wiring: Wiring, layout: Layout) -> list[tuple[str, nn.Module, Layout]]:
    """The stack, on the layout it gets."""
    return [("", wiring.stack, layout)]
