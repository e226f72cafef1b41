"""Random features of the exponential kernel: E[phi(q) . phi(k)] = exp(q . k), all of them positive.

    phi(x) = exp(W x - |x|^2 / 2) / sqrt(F),   rows w of W orthogonal in blocks of K, as long as normal vectors are

Rows that are orthogonal estimate the kernel with less variance than independent ones; positive features keep small
scores from being lost in differences of large ones.
Rethinking Attention with Performers, arXiv 2009.14794, 2020.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def orthogonal_rows(features: int, dim: int) -> Tensor:
    """W (F, K) from torch's generator: blocks of K orthogonal rows in random directions, with the lengths of normal
    vectors."""
    blocks = []
    for _ in range(math.ceil(features / dim)):
        directions, triangle = torch.linalg.qr(torch.randn(dim, dim))
        blocks.append((directions * triangle.diagonal().sign()).mT)  # without the signs some directions are likelier
    lengths = torch.randn(features, dim).norm(dim=1, keepdim=True)
    return lengths * torch.cat(blocks)[:features]


def feature_count(part: str, features: int | None, dim: int) -> int:
    """The number of features: that given, else K log K, of the order that a fixed error asks for.

    Raises ValueError for fewer than one."""
    count = max(1, round(dim * math.log(dim))) if features is None else features
    if count < 1:
        raise ValueError(f"{part}: features is {features}, but must be at least 1")
    return count


def log_features(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., K), W (F, K) -> W x (..., F) and |x|^2 / 2 (..., 1), in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    x = x.to(wide)
    return torch.nn.functional.linear(x, rows.to(wide)), x.square().sum(-1, keepdim=True) / 2
