"""Attention whose weights are multiplied, after the softmax, by a factor that depends on the distance alone.

    s_ij = scale q_i . k_j + bias_{i-j}
    o_i  = sum_j softmax_j(s_ij) c_{i-j} v_j

The factors may be negative or zero and rows need not sum to one, so that no bias of scores says the same. Exact and in
memory linear in N: a block of queries at a time, forward and backward, which computes its weights again.
Your Transformer May Not be as Powerful as You Expect, arXiv 2205.13401, 2022.

B batch, N queries, M keys (aligned at the end: query i stands at M-N+i), H heads, K key width, V value width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from formwright.ops.attention import Distance

BACKENDS = ("auto", "reference", "blocks")
ROWS = 128  # queries of one block


def gained_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gain: Distance,
    *,
    bias: Distance | None = None,
    causal: bool = False,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """q (B, N, H, K), k (B, M, H, K), v (B, M, H, V) -> (B, N, H, V), with gradients of the tables of gain and bias.

    gain and bias are tables (H, R) or (1, R) that hold every distance 1-N ... M-1; a causal query sees no later key
    (those of negative distance are looked up and not used). scale is 1 / sqrt(K) without it.

    Raises ValueError for shapes that don't fit and tables that are too short."""
    if backend not in BACKENDS:
        raise ValueError(f"gained_attention: {backend!r} is no backend; there are {', '.join(BACKENDS)}")
    if q.ndim != 4 or k.shape[:3] != v.shape[:3] or q.shape[::2] != k.shape[::2] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"gained_attention: q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} don't fit; they are "
            "(B, N, H, K), (B, M, H, K) and (B, M, H, V)"
        )
    n, m = q.shape[1], k.shape[1]
    for name, table in (("gain", gain), ("bias", bias)):
        if table is not None and (table.zero < n - 1 or table.table.shape[-1] - 1 - table.zero < m - 1):
            raise ValueError(f"gained_attention: the {name}'s table must hold the distances {1 - n}..{m - 1}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    zeros = gain.zero, 0 if bias is None else bias.zero
    tables = gain.table, None if bias is None else bias.table
    if backend == "reference":
        return _reference(q * scale, k, v, *tables, *zeros, causal)
    q, k, v = ((q * scale).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return _Blocks.apply(q, k, v, *tables, *zeros, causal).transpose(1, 2)


def macs(
    n: int, m: int, *, heads: int, key_dim: int, causal: bool = False, batch: int = 1, backend: str = "auto"
) -> int:
    """Multiply-adds of one forward with values as wide as keys: of all pairs, or those of the blocks that a causal
    mask leaves."""
    pairs = n * m
    if causal and backend != "reference":
        pairs = sum((min(i + ROWS, n) - i) * (m - n + min(i + ROWS, n)) for i in range(0, n, ROWS))
    return 2 * batch * heads * pairs * key_dim


def _reference(q, k, v, gain, bias, gain_zero, bias_zero, causal) -> Tensor:
    n, m = q.shape[1], k.shape[1]
    distance = torch.arange(m - n, m, device=q.device)[:, None] - torch.arange(m, device=q.device)
    scores = torch.einsum("bnhk,bmhk->bhnm", q, k)
    if bias is not None:
        scores = scores + bias[:, distance + bias_zero]
    if causal:
        scores = scores.masked_fill(distance < 0, -math.inf)
    return torch.einsum("bhnm,bmhv->bnhv", scores.softmax(-1) * gain[:, distance + gain_zero], v)


def _toeplitz(table: Tensor, low: int, rows: int, width: int) -> Tensor:
    """(H, R) -> (H, rows, width) with table[low + width - 1 + row - column] at (row, column)."""
    return table[:, low : low + rows + width - 1].flip(-1).unfold(-1, width, 1).flip(1)


def _diagonals(x: Tensor) -> Tensor:
    """The transpose of _toeplitz: (H, rows, width) -> (H, rows + width - 1), sums along diagonals."""
    rows, width = x.shape[1:]
    # Each row is shifted one further than the one before, so that a column's sum is a diagonal's.
    shifted = F.pad(x.flip(1), (0, rows)).flatten(1)[:, : rows * (width + rows - 1)]
    return shifted.unflatten(1, (rows, -1)).sum(1).flip(-1)


class _Blocks(torch.autograd.Function):
    """q (B, H, N, K), scaled, k (B, H, M, K), v (B, H, M, V)."""

    @staticmethod
    def forward(ctx, q, k, v, gain, bias, gain_zero, bias_zero, causal):
        ctx.save_for_backward(q, k, v, gain, bias)
        ctx.how = gain_zero, bias_zero, causal
        out = q.new_empty(*q.shape[:3], v.shape[3])
        for start, stop, width in _blocks(q, k, causal):
            weights, gains = _weights(q, k, gain, bias, *ctx.how, start, stop, width)
            out[:, :, start:stop] = (weights * gains).to(v.dtype) @ v[:, :, :width]
        return out

    @staticmethod
    def backward(ctx, do):
        q, k, v, gain, bias = ctx.saved_tensors
        gain_zero, bias_zero, _ = ctx.how
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        dgain = torch.zeros_like(gain, dtype=wide)
        dbias = None if bias is None else torch.zeros_like(bias, dtype=wide)
        shift = k.shape[2] - q.shape[2]
        for start, stop, width in _blocks(q, k, ctx.how[2]):
            weights, gains = _weights(q, k, gain, bias, *ctx.how, start, stop, width)
            o = do[:, :, start:stop]
            dv[:, :, :width] += (weights * gains).to(o.dtype).mT @ o
            gradient = (o @ v[:, :, :width].mT).to(wide)
            _add_diagonals(dgain, gradient * weights, gain_zero + start + shift - width + 1)
            gradient = gradient * gains
            gradient = torch.ops.aten._softmax_backward_data(gradient, weights, -1, weights.dtype)
            if dbias is not None:
                _add_diagonals(dbias, gradient, bias_zero + start + shift - width + 1)
            gradient = gradient.to(q.dtype)
            dq[:, :, start:stop] = gradient @ k[:, :, :width]
            dk[:, :, :width] += gradient.mT @ q[:, :, start:stop]
        dbias = None if bias is None else dbias.to(bias.dtype)
        return dq, dk.to(k.dtype), dv.to(v.dtype), dgain.to(gain.dtype), dbias, None, None, None


def _blocks(q: Tensor, k: Tensor, causal: bool) -> list[tuple[int, int, int]]:
    """(start, stop) of queries and how many keys, from the first on, they see."""
    n, m = q.shape[2], k.shape[2]
    stops = [(start, min(start + ROWS, n)) for start in range(0, n, ROWS)]
    return [(start, stop, m - n + stop if causal else m) for start, stop in stops]


def _weights(q, k, gain, bias, gain_zero, bias_zero, causal, start, stop, width) -> tuple[Tensor, Tensor]:
    """The softmax's weights (B, H, rows, width) of a block, in float32 at least, and their gains (H, rows, width)."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    rows, shift = stop - start, k.shape[2] - q.shape[2]
    scores = (q[:, :, start:stop] @ k[:, :, :width].mT).to(wide)
    low = start + shift - width + 1
    if bias is not None:
        scores = scores + _toeplitz(bias, bias_zero + low, rows, width)
    if causal and rows > 1:
        later = torch.ones(rows, rows, dtype=torch.bool, device=q.device).triu(1)
        scores[..., width - rows :].masked_fill_(later, -math.inf)
    return scores.softmax(-1), _toeplitz(gain, gain_zero + low, rows, width).to(wide)


def _add_diagonals(table: Tensor, x: Tensor, low: int) -> None:
    """Add to a table (H | 1, R) what x (B, H, rows, width) gathered from it."""
    x = x.sum(0) if table.shape[0] > 1 else x.sum((0, 1))[None]
    table[:, low : low + x.shape[1] + x.shape[2] - 1] += _diagonals(x)
