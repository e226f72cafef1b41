"""Scores of reads against writes within a chunk, scaled by the decays between them, and their gradients.

    A_ij = sum_K x_i (G_ij k_j)  for j <= i,  G_ij = prod_{j < s <= i} a_s        x (n,C,R,K), k (n,C,K) -> A (n,C,R,C)

A decay that is one number per head and token scales A by exp(g_i - g_j), g its running sum. A decay per key channel
("Gated Linear Attention Transformers with Hardware-Efficient Training", arXiv 2312.06635, 2023) has no such factor;
here pairs of blocks of 1, 2, 4, ... C/2 tokens are joined: rows of the later block are scaled by the decay since the
block's start, keys of the earlier by the decay to its end, so that every factor is a product of numbers <= 1. Nothing
overflows, however strong the decay, and a decay of exactly 0 is exact.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from formwright.ops.tiles import Tile, Workspace, compute_dtype, copied

LOG2_E = 1 / math.log(2)


class Edges(NamedTuple):
    """Decays between a chunk's tokens and its edges where they scale values, not keys: since its start (n,C,1), until
    its end (n,C,1); of the whole chunk, for the state (n,1|K,1). None: 1."""

    since: Tensor | None
    until: Tensor | None
    total: Tensor | None


class Sums(NamedTuple):
    """Of log decays (B,N,H), all (B,H,N): their running sum from a chunk's start, to the base 2, since powers of 2 take
    a third of exp's time; in two parts, high + low, whose differences are exact enough in float32 however strong the
    decay; the decays since the chunk's start and until its end."""

    high: Tensor
    low: Tensor | None
    since: Tensor
    until: Tensor


def running_sums(log_decay: Tensor | None, tiles: list[Tile]) -> Sums | None:
    """Sums over every tile for decays that are one number per head and token, else None."""
    if log_decay is None or log_decay.ndim == 4:
        return None
    dtype = compute_dtype(log_decay.dtype)
    # Below the bound a decay is 0 anyway; -inf would make differences of running sums NaN.
    g = log_decay.transpose(1, 2).clamp(min=-750.0 if dtype == torch.float64 else -110.0).double() * LOG2_E
    g = g.contiguous()
    left = torch.empty_like(g)
    for begin, end, size in _runs(tiles):
        sums = g[:, :, begin:end].unflatten(2, (-1, size)).cumsum(3)
        left[:, :, begin:end] = (sums[..., -1:] - sums).flatten(2)
        g[:, :, begin:end] = sums.flatten(2)
    high = g.to(dtype)
    low = None if dtype == torch.float64 else (g - high).to(dtype)
    return Sums(high, low, g.exp2().to(dtype), left.exp2_().to(dtype))


def _runs(tiles: list[Tile]) -> list[tuple[int, int, int]]:
    """(begin, end, size): runs of tiles of one size that follow each other, of the first group of rows."""
    runs: list[tuple[int, int, int]] = []
    for tile in tiles:
        size = tile.size
        if tile.row > 0 or size == 0:
            continue
        if runs and runs[-1][1] == tile.start and runs[-1][2] == size:
            runs[-1] = (runs[-1][0], tile.stop, size)
        else:
            runs.append((tile.start, tile.stop, size))
    return runs


def _sums_of(sums: Tensor, tile: Tile, size: int) -> Tensor:
    """A tile of (B,H,N) as (n,C), its last value repeated up to `size` tokens."""
    rows = sums[tile.row : tile.row_end, :, tile.start : tile.stop].unflatten(2, (tile.chunks, -1))
    rows = rows.permute(2, 0, 1, 3).flatten(0, 2)
    return rows if rows.shape[1] == size else F.pad(rows, (0, size - rows.shape[1]), mode="replicate")


def within_chunk(
    x: Tensor, k: Tensor, log_decay: Tensor | None, sums: Sums | None, tile: Tile, work: Workspace, keep: bool
):
    """x (n,C,R,K), k (n,C,K) -> scores (n,C,R,C); x scaled by the decay since the chunk's start and k by that to its
    end, where that scales keys; what scales values; and (`keep`) what within_chunk_backward needs."""
    if log_decay is not None:
        return _diagonal_scores(x, k, log_decay, work, keep)
    n, size, reads, _ = x.shape
    scores = torch.bmm(x.flatten(1, 2), k.mT, out=work("scores", n, size * reads, size)).unflatten(1, (size, reads))
    if sums is None:
        between = x.new_ones(size, size).tril_()
        return scores.mul_(between[:, None]), x, k, Edges(None, None, None), ("plain", between)
    high, low, since, until = (None if t is None else _sums_of(t, tile, size) for t in sums)
    between = torch.sub(high[:, :, None], high[:, None], out=work("between", n, size, size))
    if low is not None:
        between = between.add_(low[:, :, None]).sub_(low[:, None])
    between = between.exp2_().tril_()
    scores.mul_(between[:, :, None])
    edges = Edges(since[..., None], until[..., None], since[:, -1, None, None])
    return scores, x, k, edges, ("scalar", between)


def within_chunk_backward(
    x: Tensor, k: Tensor, d_scores: Tensor, d_xe: Tensor, d_ke: Tensor, context: tuple, work: Workspace
) -> tuple[Tensor, Tensor]:
    """Gradients of x and k; d_scores, d_xe and d_ke are used up."""
    if context[0] == "diagonal":
        return _diagonal_backward(x, k, d_scores, d_xe, d_ke, context, work)
    between = context[1]
    d_scores.mul_(between[:, None] if between.ndim == 2 else between[:, :, None])
    size, reads = x.shape[1:3]
    flat = d_scores.flatten(1, 2)
    d_xe = d_xe.flatten(1, 2)
    dx = torch.baddbmm(d_xe, flat, k, out=work.onto(d_xe))
    dk = torch.baddbmm(d_ke, flat.mT, x.flatten(1, 2), out=work.onto(d_ke))
    return dx.unflatten(1, (size, reads)), dk


def _pairs(scores: Tensor, block: int) -> Tensor:
    """The view (n, b, R, b, M) of scores (n,C,R,C) that pairs the later half (rows) of each of M blocks of 2b tokens
    with its earlier half (columns)."""
    n, size, reads, _ = scores.shape
    count = size // (2 * block)
    split = scores.view(n, count, 2, block, reads, count, 2, block)
    return split[:, :, 1, :, :, :, 0].diagonal(dim1=1, dim2=4)


def _diagonal_scores(x: Tensor, k: Tensor, log_decay: Tensor, work: Workspace, keep: bool):
    n, size, reads, width = x.shape
    decay = torch.exp(log_decay, out=work("a", *log_decay.shape))
    xe = torch.mul(x, k[:, :, None], out=work("xe", *x.shape))
    own = xe.sum(-1)
    scores = work("scores", n, size, reads, size)
    scores = x.new_zeros(n, size, reads, size) if scores is None else scores.zero_()
    scores.diagonal(dim1=1, dim2=3).copy_(own.transpose(1, 2))
    xe = torch.mul(x, decay[:, :, None], out=work("xe", *x.shape))
    ke = copied(k, work("ke", *k.shape)) if work.buffers is not None else k.clone()
    total, levels, block = decay, [], 1
    while block < size:
        count = size // (2 * block)
        late = xe.view(n, count, 2, block, reads, width)[:, :, 1]
        early = ke.view(n, count, 2, block, width)[:, :, 0]
        halves = total.view(n, count, 2, width)
        left, right = late.reshape(n * count, block * reads, width), early.reshape(n * count, block, width)
        if keep:
            left = _level(left, work, f"left{block}")
            right = _level(right, work, f"right{block}")
            levels.append((left, right, halves))
        if block == 1:
            joined = torch.mul(left, right, out=work("met", *left.shape)).sum(-1)
        else:
            joined = torch.bmm(left, right.mT, out=work(f"joined{block}", n * count, block * reads, block))
        joined = joined.view(n, count, block, reads, block)
        _pairs(scores, block).copy_(joined.permute(0, 2, 3, 4, 1))
        late.mul_(halves[:, :, 0, None, None])
        early.mul_(halves[:, :, 1, None])
        total = torch.mul(halves[:, :, 0], halves[:, :, 1], out=work(f"halves{block}", n, count, width))
        block *= 2
    edges = Edges(None, None, total.reshape(n, width, 1))
    return scores, xe, ke, edges, ("diagonal", decay, levels)


def _level(rows: Tensor, work: Workspace, name: str) -> Tensor:
    out = work(name, *rows.shape)
    return rows.clone() if out is None else out.copy_(rows)


def _diagonal_backward(
    x: Tensor, k: Tensor, d_scores: Tensor, d_xe: Tensor, d_ke: Tensor, context: tuple, work: Workspace
):
    n, size, reads, width = x.shape
    _, decay, levels = context
    block = size
    for left, right, halves in reversed(levels):
        block //= 2
        count = size // (2 * block)
        late = d_xe.view(n, count, 2, block, reads, width)[:, :, 1]
        early = d_ke.view(n, count, 2, block, width)[:, :, 0]
        joined = _pairs(d_scores, block).permute(0, 4, 1, 2, 3).reshape(n * count, block * reads, block)
        late.mul_(halves[:, :, 0, None, None])
        early.mul_(halves[:, :, 1, None])
        if block == 1:
            late.view(left.shape).addcmul_(joined, right)
            met = torch.mul(joined, left, out=work("met", *left.shape))
            early.view(right.shape).add_(met.sum(1, keepdim=True))
        else:
            late += torch.bmm(joined, right, out=work(f"d_left{block}", *left.shape)).view_as(late)
            early += torch.bmm(joined.mT, left, out=work(f"d_right{block}", *right.shape)).view_as(early)
    own = d_scores.diagonal(dim1=1, dim2=3).transpose(1, 2)[..., None]
    dx = d_xe.mul_(decay[:, :, None]).addcmul_(own, k[:, :, None])
    return dx, d_ke.add_((own * x).sum(2)) if reads > 1 else d_ke.addcmul_(own.squeeze(2), x.squeeze(2))
