"""Straight-through gradients: the value of a step, the gradient of something smooth beside it.

    forward  y = hard(x),      backward  dy/dx = dsoft/dx

Such a gradient is no derivative of forward: it is that of  y_0 + soft(x) - soft(x_0), where y_0 = hard(x_0). A part
that uses it has an attribute `held`, None in use. The law of gradients puts an empty dict there, computes forward and
backward at x_0, and gives the dict to copies whose inputs it moves: they compute the surrogate, so that backward is
held to it exactly.
Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation, arXiv 1308.3432, 2013.
"""

from __future__ import annotations

from torch import Tensor

Held = dict[str, tuple[Tensor, Tensor]]


def straight_through(hard: Tensor, soft: Tensor, held: Held | None = None, name: str = "") -> Tensor:
    """hard and soft of one shape -> the values of hard with the gradient of soft. With `held` the values of hard and
    soft at first sight are kept under `name`, and what is computed from then on is the surrogate about them."""
    if held is not None and name in held:
        first, beside = held[name]
        return first + (soft - beside)
    if held is not None:
        held[name] = hard.detach(), soft.detach()
    return hard.detach() + (soft - soft.detach())
