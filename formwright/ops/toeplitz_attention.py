"""Kernelised attention whose scores are weighted by distance, in time N log N.

    o_i = sum_j c_{i-j} (q_i . k_j) v_j = sum_f q_if sum_j c_{i-j} (k_jf v_j)

Query i stands at place M-N+i, so that queries and keys end together. For each feature f and value channel the inner sum
is a product with a Toeplitz matrix: the matrix is put into a circulant one, and that is a product of Fourier
transforms. Features are taken a few at a time, and transformed again for the gradient, so that memory is linear in N.
Transforms round relative to the largest sum of a sequence: where a causal token's own sum is much smaller, as with few
features at its beginning, float32 shows later tokens in it at about 1e-5.
Stable, Fast and Accurate: Kernelized Attention with Relative Positional Encoding, arXiv 2106.12566, 2021.

Backends: "reference" makes all scores; "dense" does too, a weight for each pair read off a strip; "fft" is the form
above; "auto" takes "dense" for few queries, where that is faster.

B batch, N queries, M keys, H heads, F features, V value width, L = N+M-1 distances.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from formwright.ops.convolution import fft_size

BACKENDS = ("auto", "reference", "dense", "fft")
FEW = 64  # queries
TILE = 2**20  # numbers transformed at once


def toeplitz_attention(q: Tensor, k: Tensor, v: Tensor, weights: Tensor, *, backend: str = "auto") -> Tensor:
    """q (B,N,H,F), k (B,M,H,F), v (B,M,H,V), weights (H,N+M-1) -> o (B,N,H,V), in float32 at least.

    weights hold c_d of the distances d = i-j from 1-N to M-1; zeros for d < 0 make it causal. Nothing is normalised: a
    column of ones among the values adds the scores up.

    Raises ValueError for shapes that don't fit and unknown backends."""
    _check(q, k, v, weights, backend)
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v, weights = (t.to(wide) for t in (q, k, v, weights))
    if backend == "reference":
        n, m = q.shape[1], k.shape[1]
        distance = torch.arange(m - n, m, device=q.device)[:, None] - torch.arange(m, device=q.device)
        scores = torch.einsum("bnhf,bmhf->bhnm", q, k) * weights[:, distance + n - 1]
        return torch.einsum("bhnm,bmhv->bnhv", scores, v)
    parts = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if _chosen(q.shape[1], backend) == "dense":
        scores = parts[0] @ parts[1].mT * weights.flip(-1).unfold(-1, k.shape[1], 1).flip(-2)
        return (scores @ parts[2]).transpose(1, 2)
    parts = tuple(t.mT.contiguous() for t in parts)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*parts, weights)):
        o = _Fft.apply(*parts, weights)
    else:
        o = _forward(*parts, weights)
    return o.permute(0, 3, 1, 2)


def explain(n: int, backend: str = "auto") -> str:
    """What toeplitz_attention computes for n queries and why."""
    chosen = _chosen(n, backend)
    if backend != "auto":
        return f"{chosen}: it was asked for"
    if chosen == "dense":
        return f"dense: for {n} queries all scores cost less than the transforms of all features times values"
    return f"fft: more than {FEW} queries, in time N log N and memory linear in N"


def macs(n: int, m: int, *, heads: int, features: int, value_dim: int, batch: int = 1, backend: str = "auto") -> int:
    """Multiply-adds of one forward's matrix products; transforms are in `flops`."""
    if _chosen(n, backend) == "fft":
        return 0
    return batch * heads * n * m * (features + value_dim)


def flops(n: int, m: int, *, heads: int, features: int, value_dim: int, batch: int = 1, backend: str = "auto") -> int:
    """Floating-point operations of the transforms and of what goes in and out of them: 5/2 S log2 S for each real
    transform of S points, six for each complex product, two for each product of features and values."""
    if _chosen(n, backend) != "fft":
        return batch * heads * n * m
    size = fft_size(n + m - 1)
    channels = batch * heads * features * value_dim
    transforms = 2 * channels + heads
    return int(transforms * 2.5 * size * math.log2(size)) + channels * (3 * size + m + 2 * n)


def _chosen(n: int, backend: str) -> str:
    if backend == "auto":
        return "dense" if n <= FEW else "fft"
    return backend


def _blocks(q: Tensor, v: Tensor, size: int) -> Iterator[tuple[tuple, tuple]]:
    """(row, head, features, 1) and (row, head, 1, values) of the blocks that are transformed at once."""
    batch, heads, features, _ = q.shape
    width = v.shape[2]
    channels = max(1, TILE // size)
    few, wide = max(1, channels // width), min(width, channels)
    for row, head in itertools.product(range(batch), range(heads)):
        for f, d in itertools.product(range(0, features, few), range(0, width, wide)):
            yield (row, head, slice(f, f + few), None), (row, head, None, slice(d, d + wide))


def _spectrum(weights: Tensor, m: int, size: int) -> Tensor:
    """The transform of the circulant's first column: c_d stands at place d - (M-N), counted round the circle."""
    padded = torch.nn.functional.pad(weights, (0, size - weights.shape[-1]))
    return torch.fft.rfft(padded.roll(1 - m, -1))


def _forward(q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> Tensor:
    """q (B,H,F,N), k (B,H,F,M), v (B,H,V,M) -> o (B,H,V,N)."""
    n, m = q.shape[3], k.shape[3]
    size = fft_size(n + m - 1)
    spectrum = _spectrum(weights, m, size)
    o = torch.zeros(*v.shape[:3], n, dtype=q.dtype, device=q.device)
    for some, part in _blocks(q, v, size):
        y = torch.fft.rfft(k[some] * v[part], size).mul_(spectrum[some[1]])
        y = torch.fft.irfft(y, size)[..., :n]
        o[part] += y.mul_(q[some]).sum(0, keepdim=True)
    return o


class _Fft(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, weights):
        ctx.save_for_backward(q, k, v, weights)
        return _forward(q, k, v, weights)

    @staticmethod
    def backward(ctx, do):
        q, k, v, weights = ctx.saved_tensors
        n, m = q.shape[3], k.shape[3]
        size = fft_size(n + m - 1)
        spectrum = _spectrum(weights, m, size)
        dq, dk, dv, dspectrum = (torch.zeros_like(t) for t in (q, k, v, spectrum))
        for some, part in _blocks(q, v, size):
            here = spectrum[some[1]]
            u = torch.fft.rfft(k[some] * v[part], size)
            y = torch.fft.irfft(u * here, size)[..., :n]
            dq[some] += y.mul_(do[part]).sum(1, keepdim=True)
            dy = torch.fft.rfft(q[some] * do[part], size)
            dspectrum[some[1]] += u.conj_physical_().mul_(dy).sum((0, 1))
            du = torch.fft.irfft(dy.mul_(here.conj()), size)[..., :m]
            dv[part] += (du * k[some]).sum(0, keepdim=True)
            dk[some] += du.mul_(v[part]).sum(1, keepdim=True)
        dweights = torch.fft.irfft(dspectrum, size).roll(m - 1, -1)[:, : weights.shape[-1]]
        return dq, dk, dv, dweights


def _check(q: Tensor, k: Tensor, v: Tensor, weights: Tensor, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"toeplitz_attention: backend is one of {', '.join(BACKENDS)}, not {backend!r}")
    fits = q.ndim == k.ndim == v.ndim == 4 and q.shape[0] == k.shape[0] and q.shape[2:] == k.shape[2:]
    if not fits or k.shape[:3] != v.shape[:3]:
        raise ValueError(
            "toeplitz_attention takes q (B,N,H,F), k (B,M,H,F) and v (B,M,H,V), but got "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    wanted = q.shape[2], q.shape[1] + k.shape[1] - 1
    if tuple(weights.shape) != wanted:
        raise ValueError(f"toeplitz_attention: weights must be (H, N+M-1) = {wanted}, but are {tuple(weights.shape)}")
