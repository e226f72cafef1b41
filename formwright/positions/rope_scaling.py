"""Rotary frequencies for inputs longer than those trained on: a pair's frequency theta_f = base^(-2f/d) becomes

    linear   theta_f / s                                      positions interpolated
    ntk      (base s^(d/(d-2)))^(-2f/d)                       the slowest pair interpolated, the fastest kept
    yarn     theta_f (1 - g_f) + g_f theta_f / s,   g_f = clamp((f - low) / (high - low), 0, 1)
             low, high: the pairs that turn `fast` and `slow` times in the trained length L, rounded outwards;
             queries and keys are multiplied by 0.1 ln s + 1 each
    llama3   theta_f (1 - g_f) + g_f theta_f / s,   g_f = clamp((fast - r_f) / (fast - slow), 0, 1),
             r_f = L theta_f / 2 pi, the turns in the trained length

s is the factor by which inputs grow. NTK scaling that follows the length of each input is left out: tokens decoded one
by one would be turned by other angles than in one piece.
Extending Context Window of Large Language Models via Positional Interpolation, 2306.15595, 2023; YaRN: Efficient
Context Window Extension of Large Language Models (with NTK-aware scaling), 2309.00071, 2023; llama3: The Llama 3 Herd
of Models, 2407.21783, 2024, as its published code has it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCALINGS = ("linear", "ntk", "yarn", "llama3")
FAST = {"yarn": 32.0, "llama3": 4.0}  # turns within the trained length beyond which a pair is left as it is


def frequencies(
    d: int,
    base: float,
    scaling: str | None,
    factor: float,
    trained: int,
    fast: float,
    slow: float,
    like: Tensor,
) -> tuple[Tensor, float]:
    """theta (d/2,) in `like`'s dtype and device, and what queries and keys are multiplied by."""
    f = torch.arange(0, d, 2, dtype=like.dtype, device=like.device) / d
    if scaling == "ntk":
        return (base * factor ** (d / (d - 2))) ** -f if d > 2 else base**-f / factor, 1.0
    theta = base**-f
    if scaling is None:
        return theta, 1.0
    if scaling == "linear":
        return theta / factor, 1.0
    if scaling == "yarn":
        low = max(math.floor(_pair(fast, d, base, trained)), 0)
        high = min(math.ceil(_pair(slow, d, base, trained)), d - 1)
        far = torch.arange(d // 2, dtype=like.dtype, device=like.device) - low
        g = (far / (high - low if high != low else 1e-3)).clamp(0, 1)
        return theta * (1 - g) + theta / factor * g, 0.1 * math.log(factor) + 1
    g = ((fast - trained * theta / (2 * math.pi)) / (fast - slow)).clamp(0, 1)
    return theta * (1 - g) + theta / factor * g, 1.0


def _pair(turns: float, d: int, base: float, trained: int) -> float:
    """The (broken) index of the pair that turns so many times within the trained length."""
    return d * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))
