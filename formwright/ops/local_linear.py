"""Local linear attention: at every query a ridge regression of values on keys, its weights those of attention.

    (b_i, W_i) = argmin sum_j w_ij |v_j - b - W (k_j - q_i)|^2 + lambda_i |W|^2,   w_ij = exp(scale q_i . k_j)
    o_i = b_i

Local Linear Attention: An Optimal Interpolation of Linear and Softmax Attention For Test-Time Regression, arXiv
2510.01450, 2025. lambda -> infinity gives softmax attention; scale = 0 a global ridge regression with an intercept. The
paper solves (sum_j w_ij d_j d_j^T + lambda I) rho = sum_j w_ij d_j, d_j = k_j - q_i, and divides by omega - mu . rho,
which loses digits where mu . rho nears omega. The same intercept about the weighted mean of the keys has no such
difference: with omega_i = sum_j w_ij, p_ij = w_ij / omega_i, m_i = sum_j p_ij k_j, e_ij = k_j - m_i

    A_i = sum_j p_ij e_ij e_ij^T + (lambda_i / omega_i) I,   z_i = A_i^{-1} (m_i - q_i),   c_ij = 1 - e_ij . z_i
    o_i = sum_j p_ij c_ij v_j

and backward is one more system with the same matrix: with g_ij = do_i . v_j and its mean g_i under p_i,
y_i = -A_i^{-1} sum_j p_ij (g_ij - g_i) k_j and r_ij = g_ij - g_i + e_ij . y_i,

    d p_ij = r_ij c_ij,   d k_j = p_ij (c_ij y_i - r_ij z_i),   d v_j = p_ij c_ij do_i,   d q_i = -y_i,
    d (lambda_i / omega_i) = -y_i . z_i            beside what p and omega hand on to q and k

lambda_i / omega_i is kept within 1e-5 and 1e7. Queries go block by block, each against the keys it sees.

Backends: "reference" is least squares by a QR decomposition for every query. "cholesky" forms A_i for a block of
queries as one matrix product of p with products of key channels, and factors it. "cg" is the paper's: conjugate
gradients of a fixed number of steps, whose products never form A_i. On one core in float32 (N = 1024, two heads,
K = 64, forward) "cholesky" took 165 ms and was 5e-6 off; 32 steps took 161 ms and were 2e-2 off, 64 took 310 ms and
were 5e-4 off: "auto" is "cholesky".

B batch, N queries, M keys, H heads, K key width, V value width.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from formwright.ops.local_linear_blocks import FEW, LEAST, MOST, How, LocalLinear, blocks, forward, widths
from formwright.ops.tiles import compute_dtype

BACKENDS = ("auto", "reference", "cholesky", "cg")


def local_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_ridge: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    iterations: int = 32,
    offsets: Tensor | tuple[Tensor, Tensor] | None = None,
    lengths: tuple[Tensor | None, Tensor | None] | None = None,
    backend: str = "auto",
) -> Tensor:
    """q (B, N, H, K), k (B, M, H, K), v (B, M, H, V), log_ridge (B, N, H) = log lambda -> (B, N, H, V).

    causal      query i sees the keys up to M - N + i (aligned at the end)
    scale       1 / sqrt(K) without it
    iterations  steps of backend "cg"; the others have no use for it
    offsets     (S+1,) bounds of sequences packed in one row, or a pair of them for queries and keys
    lengths     (B,) valid queries and keys of padded rows (None: all); outputs at padding are 0

    Raises ValueError for shapes that don't fit, an unknown backend, or causal queries that would see no key."""
    _check(q, k, v, log_ridge, iterations, backend)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    how = How(causal, scale, iterations, "cholesky" if backend == "auto" else backend)
    if offsets is not None and lengths is not None:
        raise ValueError("local_linear_attention: a batch is packed (offsets) or padded (lengths), not both")
    if offsets is not None:
        return _packed(q, k, v, log_ridge, offsets, how)
    if lengths is not None:
        return _padded(q, k, v, log_ridge, lengths, how)
    return _attend(q, k, v, log_ridge, how)


def explain(n: int, m: int, *, key_dim: int, iterations: int = 32) -> str:
    """The backend that "auto" picks for n queries and m keys of this width, and why."""
    formed = key_dim**2 if n <= FEW else sum(widths(key_dim))
    form = "each query's matrix from the keys it weighs" if n <= FEW else "matrices of a block by one product"
    step = 2 * key_dim
    return (
        f"cholesky: {form}, {formed} multiply-adds a query and key; conjugate gradients take {step} a step, and to be "
        f"exact {key_dim} steps or more ({step * key_dim}); {iterations} steps take {step * iterations} and are "
        f"inexact: computed on request alone (backend='cg')"
    )


def macs(
    n: int,
    m: int,
    *,
    heads: int,
    key_dim: int,
    value_dim: int | None = None,
    causal: bool = False,
    iterations: int = 32,
    batch: int = 1,
    backend: str = "auto",
) -> int:
    """Multiply-adds of one forward's matrix products; factoring and solving, `solves`, come beside them. Only the
    fast backends are counted."""
    value_dim = value_dim or key_dim
    total = 0
    for start, stop, seen in blocks(n, m, causal):
        if backend == "cg":
            moments = 2 * key_dim * iterations
        else:
            moments = (key_dim**2 if stop - start <= FEW else sum(widths(key_dim))) + 2 * key_dim
        total += seen * ((stop - start) * (3 * key_dim + value_dim + moments) + key_dim)
    return batch * heads * total


def solves(n: int, *, heads: int, key_dim: int, batch: int = 1) -> int:
    """FLOPs of the Cholesky factors and their triangular systems, which FlopCounterMode doesn't count."""
    return batch * heads * n * (key_dim**3 // 3 + 4 * key_dim**2)


def reference(q: Tensor, k: Tensor, v: Tensor, log_ridge: Tensor, causal: bool, scale: float) -> Tensor:
    """The definition: weighted least squares of every query, its ridge as K further rows. q, k, v, log_ridge and the
    result as those of local_linear_attention."""
    n, m, width = q.shape[1], k.shape[1], q.shape[-1]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT * scale
    if causal:
        later = torch.ones(n, m, dtype=torch.bool, device=q.device).triu(m - n + 1)
        scores = scores.masked_fill(later, -math.inf)
    total = scores.logsumexp(-1, keepdim=True)
    share = (log_ridge.transpose(1, 2)[..., None] - total).clamp(LEAST, MOST)
    root = (0.5 * (scores - total)).exp()[..., None]  # (B, H, N, M, 1), of weights that sum to one
    differences = k[:, :, None] - q[:, :, :, None]
    rows = torch.cat([root, root * differences], -1)
    ridge = (0.5 * share).exp()[..., None] * F.pad(torch.eye(width, dtype=q.dtype, device=q.device), (1, 0))
    targets = F.pad(root * v[:, :, None], (0, 0, 0, width))
    basis, triangle = torch.linalg.qr(torch.cat([rows, ridge], -2))
    coefficients = torch.linalg.solve_triangular(triangle, basis.mT @ targets, upper=True)
    return coefficients[..., 0, :].transpose(1, 2)


def _check(q: Tensor, k: Tensor, v: Tensor, log_ridge: Tensor, iterations: int, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"local_linear_attention: {backend!r} is no backend; there are {', '.join(BACKENDS)}")
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4 or k.shape[:3] != v.shape[:3] or k.shape[1] == 0:
        raise ValueError(
            "local_linear_attention: q, k and v are (B, N, H, K), (B, M, H, K) and (B, M, H, V) with M >= 1, but are "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]) or log_ridge.shape != q.shape[:3]:
        raise ValueError(
            f"local_linear_attention: q {tuple(q.shape)} and k {tuple(k.shape)} share batch, heads and width, and "
            f"log_ridge has q's batch, tokens and heads, but is {tuple(log_ridge.shape)}"
        )
    if iterations < 1:
        raise ValueError(f"local_linear_attention: iterations is {iterations}, but must be at least 1")


# ---- sequences of unequal length: each is computed alone, so that it costs what its tokens cost


def _packed(q, k, v, log_ridge, offsets, how: How) -> Tensor:
    bounds = [o.tolist() for o in (offsets if isinstance(offsets, tuple) else (offsets, offsets))]
    if (
        q.shape[0] != 1
        or len(bounds[0]) != len(bounds[1])
        or (bounds[0][-1], bounds[1][-1]) != (q.shape[1], k.shape[1])
    ):
        raise ValueError(
            f"local_linear_attention: {q.shape[0]} rows of {q.shape[1]} queries and {k.shape[1]} keys don't fit the "
            f"offsets {bounds[0]} and {bounds[1]}; packed sequences lie in one row"
        )
    sizes = [[b - a for a, b in pairwise(bound)] for bound in bounds]
    parts = zip(
        q.split(sizes[0], 1), k.split(sizes[1], 1), v.split(sizes[1], 1), log_ridge.split(sizes[0], 1), strict=True
    )
    return torch.cat([_attend(*part, how) for part in parts if part[0].shape[1]], 1)


def _padded(q, k, v, log_ridge, lengths, how: How) -> Tensor:
    valid = [
        [x.shape[1]] * x.shape[0] if each is None else each.tolist() for x, each in zip((q, k), lengths, strict=True)
    ]
    out = []
    for row, (n, m) in enumerate(zip(*valid, strict=True)):
        queries, keys = (slice(row, row + 1), slice(0, n)), (slice(row, row + 1), slice(0, m))
        o = _attend(q[queries], k[keys], v[keys], log_ridge[queries], how)
        out.append(F.pad(o, (0, 0, 0, 0, 0, q.shape[1] - n)))
    return torch.cat(out)


def _attend(q: Tensor, k: Tensor, v: Tensor, log_ridge: Tensor, how: How) -> Tensor:
    if how.causal and q.shape[1] > k.shape[1]:
        raise ValueError(
            f"local_linear_attention: {q.shape[1]} causal queries end with {k.shape[1]} keys: the first see none"
        )
    if how.backend == "reference":
        return reference(q, k, v, log_ridge, how.causal, how.scale)
    b, dtype, wide = q.shape[0], q.dtype, compute_dtype(q.dtype)
    q, k, v = (x.transpose(1, 2).flatten(0, 1).to(wide) for x in (q, k, v))
    log_ridge = log_ridge.transpose(1, 2).flatten(0, 1).to(wide)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, log_ridge)):
        o = LocalLinear.apply(q, k, v, log_ridge, how)[0]
    else:
        o = forward(q, k, v, log_ridge, how, keep=False)[0]
    return o.unflatten(0, (b, -1)).transpose(1, 2).to(dtype)
