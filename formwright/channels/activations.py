"""The functions between two linear maps, by name.

Gaussian Error Linear Units (GELUs), arXiv 1606.08415, 2016; GPT-2 and Gemma take the tanh form, an approximation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def activation_of(part: str, name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name. Raises ValueError, naming the part and all of them, for another name."""
    if name not in ACTIVATIONS:
        raise ValueError(f"{part}: activation is one of {', '.join(ACTIVATIONS)}, not {name!r}")
    return ACTIVATIONS[name]
