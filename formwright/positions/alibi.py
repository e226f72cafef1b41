"""Attention with linear biases: each head's scores fall in proportion to distance.

    bias_hij = -slope_h |p_i - p_j|,   slope_h = 2^(-8 h / H), h = 1..H

For H no power of two: the slopes of the next lower power of two, then every other slope of twice that many. On several
axes the distance is Euclidean. Nothing is learned, and longer inputs than those trained on are the method's purpose.
Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation, 2108.12409, 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor

from formwright.contract import Card, Position
from formwright.parts import register


def slopes(heads: int) -> list[float]:
    """The slope of each head."""
    power = 2 ** (heads.bit_length() - 1)
    first = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    between = [2 ** (-8 * h / (2 * power)) for h in range(1, 2 * power + 1, 2)]
    return first + between[: heads - power]


@register
class Alibi(Position):
    card = Card(
        name="alibi",
        kind="position",
        summary="lowers scores in proportion to distance, each head by its own slope; made to extrapolate",
        source="Train Short, Test Long: Attention with Linear Biases, 2108.12409, 2021",
        symmetries=("shift",),
        extrapolates=True,
    )
    role = "bias"
    relative = True  # on one axis the bias depends on the distance alone

    def __init__(self, heads: int):
        super().__init__()
        self.heads = heads

    def bias(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Positions (..., N, A) of queries, (..., M, A) of keys -> (..., H, N, M)."""
        dtype = queries.dtype if queries.is_floating_point() else torch.float64
        difference = queries.to(dtype)[..., :, None, :] - keys.to(dtype)[..., None, :, :]
        distance = difference[..., 0].abs() if difference.shape[-1] == 1 else difference.square().sum(-1).sqrt()
        return (
            -distance.unsqueeze(-3)
            * torch.tensor(slopes(self.heads), dtype=dtype, device=queries.device)[:, None, None]
        )
