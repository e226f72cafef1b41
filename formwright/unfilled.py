"""Models for their figures alone: weights that nobody draws take no memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Unfilled(TorchFunctionMode):
    """Leaves out the drawing of weights. (The meta device would do too, but loads a compiler for a second.)"""

    in_place = frozenset(
        {Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.exponential_, Tensor.log_normal_}
        # These come here by themselves: what they call inside would not.
        | {getattr(nn.init, f"{name}_") for name in ("normal", "uniform", "constant", "kaiming_uniform")}
    )
    made = frozenset({torch.randn, torch.rand})

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in self.in_place:
            return args[0] if args else kwargs["tensor"]
        if func in self.made:
            return torch.empty(*args, **{name: value for name, value in kwargs.items() if name != "generator"})
        return func(*args, **kwargs)
