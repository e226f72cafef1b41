"""A depthwise convolution over the grid of a layout: what lepe and conditional_position add."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from formwright.contract import Layout

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def grid_convolution(x: Tensor, layout: Layout, weight: Tensor, bias: Tensor | None, *, causal: bool = False) -> Tensor:
    """Tokens x (B, N, D), weight (D, *sizes) of odd sizes, one for each axis of the grid, bias (D,) -> (B, N, D).

    Beyond the grid and at padding stand zeros. Prefix tokens have no place in the grid: they give zeros and are not
    read. causal (one axis alone) reads the token itself and those before it. Packed sequences are computed one by
    one."""
    if layout.offsets is not None:
        parts = [grid_convolution(x[:, at], one, weight, bias, causal=causal) for _, at, one in layout.sequences()]
        return torch.cat(parts, 1)
    valid = layout.valid(x.device)
    if valid is not None:
        x = torch.where(valid[..., None], x, 0)
    sizes = weight.shape[1:]
    y = x[:, layout.prefix :].transpose(1, 2).unflatten(2, layout.grid)
    ends = [(size - 1, 0) if causal else (size // 2, size // 2) for size in reversed(sizes)]
    y = F.pad(y, [n for pair in ends for n in pair])
    kernel, shift = weight.unsqueeze(1).to(y.dtype), None if bias is None else bias.to(y.dtype)
    y = CONVOLUTIONS[len(sizes)](y, kernel, shift, groups=len(weight)).flatten(2).transpose(1, 2)
    return F.pad(y, (0, 0, layout.prefix, 0))


def grid_macs(layout: Layout, weight: Tensor, batch: int) -> int:
    """Multiply-adds of grid_convolution."""
    return batch * math.prod(layout.grid) * weight.numel()
