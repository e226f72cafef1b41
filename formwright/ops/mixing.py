"""Mixing tokens by a matrix over them, dense or structured, that does not depend on the input.

    dense      y^h = M^h x^h                       M^h (N, N) for each head, lower-triangular where causal
    random     M = softmax(R)                      R random and frozen; causal: over the tokens so far
    pooling    y_t = mean of x around t, minus x_t
    fourier    y = Re(F_N x F_D)                   the discrete Fourier transforms over tokens and channels

JustDense: Just using Dense instead of Sequence Mixer for Time Series analysis, arXiv 2508.09153, 2025;
MetaFormer Baselines for Vision, arXiv 2210.13452, 2022; MetaFormer Is Actually What You Need for Vision,
arXiv 2111.11418, 2021; FNet: Mixing Tokens with Fourier Transforms, arXiv 2105.03824, 2021.

Every op has backend="reference": sums written out. bfloat16 and float16 are pooled and Fourier-transformed in float32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BACKENDS = ("auto", "reference", "torch")
HALF = (torch.bfloat16, torch.float16)


def dense(x: Tensor, matrix: Tensor, *, causal: bool = False, backend: str = "auto") -> Tensor:
    """Multiply the tokens by a matrix for each head: x (B, M, D), matrix (N, M) or (H, N, M) -> (B, N, D).

    H divides D; head h mixes its own D/H channels. causal=True uses the matrix up to its diagonal, which for N < M
    ends at the last column: row i sees columns up to M-N+i, so the last N rows of a longer matrix continue it.

    Raises ValueError for shapes that don't fit.
    """
    _check_backend("dense", backend)
    matrix = matrix if matrix.ndim == 3 else matrix[None]
    (heads, rows, columns), (batch, tokens, dim) = matrix.shape, x.shape
    if columns != tokens or dim % heads:
        raise ValueError(
            f"dense takes x (B, M, D) and matrix (H, N, M), H a divisor of D, but got {tuple(x.shape)} and "
            f"{tuple(matrix.shape)}"
        )
    if causal:
        matrix = matrix.tril(columns - rows)
    if backend == "reference":
        split = x.reshape(batch, tokens, heads, dim // heads)
        out = [(matrix[:, t].T[..., None] * split).sum(1) for t in range(rows)]
        return torch.stack(out, 1).reshape(batch, rows, dim)
    split = x.reshape(batch, tokens, heads, dim // heads).permute(2, 1, 0, 3).reshape(heads, tokens, -1)
    y = torch.bmm(matrix.to(x.dtype), split).reshape(heads, rows, batch, dim // heads)
    return y.permute(2, 1, 0, 3).reshape(batch, rows, dim)


def dense_macs(rows: int, columns: int, dim: int, batch: int = 1) -> int:
    """Multiply-adds of `dense`: a triangular matrix is multiplied as a full one."""
    return batch * rows * columns * dim


def random_matrix(logits: Tensor, *, causal: bool = False) -> Tensor:
    """logits (N, M) -> rows (N, M) that sum to one: softmax over all columns, or, causal, over those up to the
    diagonal that ends at the last column."""
    if causal:
        seen = torch.ones_like(logits, dtype=torch.bool).tril(logits.shape[1] - logits.shape[0])
        logits = logits.masked_fill(~seen, -math.inf)
    return logits.softmax(-1)


def pooling(
    x: Tensor, window: int, *, causal: bool = False, valid: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Average over the `window` tokens around each one along every grid axis, minus the token: x (B, *grid, D).

    Places outside the grid, and those where `valid` (B, *grid) is False, don't count in the mean. causal=True
    averages the last `window` tokens, the token itself among them, along each axis. half precision sums in float32.

    Raises ValueError for a centred window that is even.
    """
    _check_backend("pooling", backend)
    if window < 1 or (not causal and window % 2 == 0):
        raise ValueError(f"pooling: a window is odd, so that it has a centre, but is {window}")
    before = window - 1 if causal else window // 2
    after = window - 1 - before
    dtype, ones = x.dtype, x.new_ones(1, *x.shape[1:-1], 1)
    if valid is not None:
        ones = valid[..., None].to(x.dtype)
    wide = x.float() if dtype in HALF else x
    total, count = wide * ones.to(wide.dtype), ones.to(wide.dtype)
    pool = _pool_reference if backend == "reference" else _pool_sums
    mean = pool(total, before, after) / pool(count, before, after).clamp(min=1)
    return (mean - wide).to(dtype)


def _pool_sums(x: Tensor, before: int, after: int) -> Tensor:
    for axis in range(1, x.ndim - 1):
        n = x.shape[axis]
        padded = F.pad(x, (0, 0) * (x.ndim - 1 - axis) + (before, after))
        x = sum(padded.narrow(axis, j, n) for j in range(before + after + 1))
    return x


def _pool_reference(x: Tensor, before: int, after: int) -> Tensor:
    grid = x.shape[1:-1]
    sums = []
    for place in itertools.product(*(range(n) for n in grid)):
        near = tuple(slice(max(i - before, 0), i + after + 1) for i in place)
        sums.append(x[:, *near].flatten(1, -2).sum(1))
    return torch.stack(sums, 1).reshape(x.shape)


def fourier(x: Tensor, *, backend: str = "auto") -> Tensor:
    """The real part of the Fourier transform over tokens and channels: x (B, N, D) -> (B, N, D)."""
    _check_backend("fourier", backend)
    wide = x.float() if x.dtype in HALF else x
    if backend == "reference":
        tokens, channels = (_phases(n, wide) for n in x.shape[1:])
        angles = tokens[:, None, :, None] + channels[None, :, None, :]
        return torch.einsum("nmst,bst->bnm", angles.cos(), wide).to(x.dtype)
    return torch.fft.fft2(wide).real.to(x.dtype)


def _phases(n: int, like: Tensor) -> Tensor:
    steps = torch.arange(n, device=like.device)
    return ((steps[:, None] * steps) % n).to(like.dtype) * (-2 * math.pi / n)


def fourier_flops(tokens: int, dim: int, batch: int = 1) -> int:
    """Floating-point operations of `fourier`, for Cost.other_flops: 5 S log2 S for a complex transform of S points."""
    points = tokens * dim
    return int(5 * batch * points * math.log2(points)) if points > 1 else 0


def pooling_flops(grid: Sequence[int], dim: int, window: int, batch: int = 1) -> int:
    """Element-wise operations of `pooling`, for Cost.other_flops: sums along each axis, a quotient, a difference."""
    return batch * math.prod(grid) * dim * (len(grid) * window + 2)


def append(buffer: Tensor, count: int, new: Tensor) -> Tensor:
    """The buffer (B, room, D), whose first `count` places are taken, with new (B, T, D) after them; a larger one where
    the room ends. Without gradients the buffer itself is written, so that decoding copies nothing."""
    end = count + new.shape[1]
    if end > buffer.shape[1]:
        spare = max(end, 2 * count) - end
        return torch.cat([buffer[:, :count], new, new.new_zeros(len(new), spare, new.shape[2])], 1)
    if torch.is_grad_enabled():
        return torch.cat([buffer[:, :count], new, buffer[:, end:]], 1)
    buffer[:, count:end] = new
    return buffer


def explain(op: str, backend: str = "auto") -> str:
    """A sentence on how an op of this file computes."""
    _check_backend(op, backend)
    how = {
        "dense": "one batched matrix product, a head a batch",
        "pooling": "shifted sums along one axis after another",
        "fourier": "an FFT over tokens and channels",
    }
    if op not in how:
        raise ValueError(f"there is no mixing op {op!r}; ops are {', '.join(how)}")
    return "reference: sums written out, as asked" if backend == "reference" else f"torch: {how[op]}"


def _check_backend(op: str, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend is one of {', '.join(BACKENDS)}, not {backend!r}")
