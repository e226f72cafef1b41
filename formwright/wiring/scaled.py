"""Residual styles with a learned scale of every channel.

    layer_scale      x + s * f(norm(x)),  s small at first     Touvron et al., Going Deeper with Image Transformers
                                                               (CaiT), 2103.17239, 2021
    residual_scale   s * x + f(norm(x)),  s = 1 at first       Shleifer et al., NormFormer, 2110.09456, 2021

layer_scale keeps deep stacks near the identity when training begins; residual_scale lets them forget the stream.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from formwright.contract import Card, Norm, ResidualStyle
from formwright.norms.rmsnorm import RMSNorm
from formwright.parts import register


@register
class LayerScale(ResidualStyle):
    card = Card(
        name="layer_scale",
        kind="wiring",
        summary="x + s f(norm(x)): a learned scale for each channel of a branch, small at first",
        source="Going Deeper with Image Transformers, 2103.17239, 2021",
    )

    def __init__(self, dim: int, *, norm: Callable[[int], Norm] = RMSNorm, init: float = 1e-5):
        super().__init__(dim)
        self.make_norm = norm
        self.norm = norm(dim)
        self.scale = nn.Parameter(torch.full((dim,), float(init)))

    def before(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.scale * y

    def inner(self) -> list[tuple[str, nn.Module]]:
        return [("norm", self.norm)]


@register
class ResidualScale(ResidualStyle):
    card = Card(
        name="residual_scale",
        kind="wiring",
        summary="s x + f(norm(x)): a learned scale for each channel of the stream",
        source="NormFormer: Improved Transformer Pretraining with Extra Normalization, 2110.09456, 2021",
    )

    def __init__(self, dim: int, *, norm: Callable[[int], Norm] = RMSNorm, init: float = 1.0):
        super().__init__(dim)
        self.make_norm = norm
        self.norm = norm(dim)
        self.scale = nn.Parameter(torch.full((dim,), float(init)))

    def before(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        return self.scale * x + y

    def inner(self) -> list[tuple[str, nn.Module]]:
        return [("norm", self.norm)]
