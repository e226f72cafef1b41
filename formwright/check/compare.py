"""Comparing outputs: how far apart, and where first.

NaN and infinity are the business of the laws of shapes and gradients; elsewhere a place that isn't finite in what is
compared with says nothing and is left out, so that one NaN doesn't break every law.
"""

from __future__ import annotations

import torch
from torch import Tensor


def deviation(found: Tensor, expected: Tensor) -> Tensor:
    """|found - expected| of every element relative to the largest finite |expected|; 0 where expected isn't finite,
    infinity where found alone isn't."""
    found, expected = found.double(), expected.double()
    known = expected.isfinite()
    scale = expected[known].abs().max() if known.any() else expected.new_ones(())
    gap = (found - expected).abs() / scale.clamp_min(1e-30)
    gap = torch.where(found.isfinite(), gap, torch.inf)
    return torch.where(known, gap, 0.0)


def token_deviation(found: Tensor, expected: Tensor) -> Tensor:
    """The largest deviation of every token: (B, N, D) -> (N,)."""
    return deviation(found, expected).amax((0, 2))


def worst(found: Tensor, expected: Tensor) -> float:
    """The largest deviation of all."""
    return float(deviation(found, expected).max()) if expected.numel() else 0.0


def first_beyond(values: Tensor, tolerance: float) -> int | None:
    """The first index whose value is beyond the tolerance."""
    beyond = (values > tolerance).nonzero()
    return int(beyond[0]) if len(beyond) else None


def amount(value: float) -> str:
    """A deviation in words: '3e-02', or 'beyond all bounds' for NaN and infinity."""
    return "to NaN or infinity" if value == float("inf") else f"by {value:.0e}"
