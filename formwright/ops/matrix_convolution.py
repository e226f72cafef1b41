"""Causal convolution along tokens whose taps are full matrices over the channels.

    y_t = sum_{s<=t} x_s W_{t-s}                                           x_s (D,), W_l (D, E) for each lag l

By FFT it takes one product (B, D) x (D, E) for each frequency, so that time grows with N log N. bfloat16 and float16
are computed in float32.

B batch, N tokens, L lags, D and E channels before and after.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from formwright.ops.convolution import fft_size

BACKENDS = ("auto", "reference", "fft")


def matrix_convolution(x: Tensor, taps: Tensor, *, backend: str = "auto") -> Tensor:
    """x (B, N, D), taps (L, D, E) -> (B, N, E); lags from L on count as zero.

    Raises ValueError for shapes that don't fit."""
    if backend not in BACKENDS:
        raise ValueError(f"matrix_convolution: backend is one of {', '.join(BACKENDS)}, not {backend!r}")
    if x.ndim != 3 or taps.ndim != 3 or x.shape[2] != taps.shape[1]:
        raise ValueError(
            f"matrix_convolution takes x (B, N, D) and taps (L, D, E), but got {tuple(x.shape)}, {tuple(taps.shape)}"
        )
    n = x.shape[1]
    taps = taps[:n]
    if backend == "reference":
        parts = [
            torch.cat([x.new_zeros(len(x), lag, taps.shape[2]), x[:, : n - lag] @ tap], 1)
            for lag, tap in enumerate(taps)
        ]
        return torch.stack(parts).sum(0)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    size = fft_size(n + len(taps) - 1)
    signal = torch.fft.rfft(x.to(wide), size, dim=1).transpose(0, 1)
    y = torch.fft.irfft((signal @ torch.fft.rfft(taps.to(wide), size, dim=0)).transpose(0, 1), size, dim=1)
    return y[:, :n].to(x.dtype)


def last_output(history: Tensor, taps: Tensor) -> Tensor:
    """The last token's output: history (B, N, D), all its tokens, taps (L, D, E) -> (B, 1, E), as one product."""
    reach = min(history.shape[1], len(taps))
    return (history[:, -reach:].flip(1).flatten(1) @ taps[:reach].flatten(0, 1))[:, None]


def macs(n: int, lags: int, dim: int, dim_out: int, batch: int = 1) -> int:
    """Multiply-adds of the products in one forward by FFT, each complex one counted as one."""
    return batch * (fft_size(n + min(n, lags) - 1) // 2 + 1) * dim * dim_out


def flops(n: int, lags: int, dim: int, dim_out: int, batch: int = 1) -> int:
    """Floating-point operations of the transforms, 5/2 S log2 S for a real one of S points, for Cost.other_flops."""
    size = fft_size(n + min(n, lags) - 1)
    return int((batch * (dim + dim_out) + dim * dim_out) * 2.5 * size * math.log2(size))
