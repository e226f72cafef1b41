"""Exact attention by blocks of queries: memory linear in N for every normaliser, bias and mask.

    s_ij = scale q_i . k_j + bias_ij,  p_i = normaliser(s_i),  o_i = sum_j p_ij v_j
    dv_j = sum_i p_ij do_i,  dp_ij = do_i . v_j,  ds_i = slope(s_i, p_i, dp_i)
    dq_i = scale sum_j ds_ij k_j,  dk_j = scale sum_i ds_ij q_i

A block of queries has the scores of all keys that its mask touches (a window costs what the window costs), so that a
normaliser sees whole rows; tiles of a block hold as many heads as stay in cache, and the gradient computes their scores
again: Self-attention Does Not Need O(n^2) Memory, 2112.05682, 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from formwright.ops.attention_bias import Bias, Place, add_bias_gradient, bias_block, read_bias, spread, take
from formwright.ops.masks import Mask, Ranges, complement, intersect
from formwright.ops.normalisers import Normaliser

ROWS = 128  # queries of one block
HALF = (torch.float16, torch.bfloat16)
TILE = 2**19  # scores held at once, of as many heads as fit: 2 MiB in float32, so that they stay in cache


@dataclass(frozen=True, eq=False)
class _How:
    """What is computed beside the tensors: r query heads read one key/value head."""

    mask: Mask
    normaliser: Normaliser
    bias: str | int | Callable | None  # "dense", a Distance's zero, a function, or None
    r: int


@dataclass(frozen=True, eq=False)
class _Block:
    """Queries start..stop-1 and the ranges of keys that they touch; `partial` holds (first column, mask) of the
    columns that need one; `count` is how many keys each query may attend to; `blind` says that one may see none."""

    start: int
    stop: int
    ranges: Ranges
    partial: list[tuple[int, Tensor]]
    count: Tensor | int
    blind: bool


def blockwise(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, bias: Bias | None, normaliser: Normaliser, scale: float
) -> Tensor:
    """q (B,N,H,K), k (B,M,G,K), v (B,M,G,V) -> (B,N,H,V)."""
    n, h = q.shape[1:3]
    m, g = k.shape[1:3]
    table, kind = read_bias(bias, n, m)
    how = _How(mask, normaliser, kind, h // g)
    # the R heads of a group become rows beside one another: (B, G, N R, K), so that keys are never copied to heads
    q = (q * scale).unflatten(2, (g, h // g)).permute(0, 2, 1, 3, 4).flatten(2, 3)
    k, v = _rows_together(k), _rows_together(v)
    learned = normaliser.learned(h)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, table, learned)):
        o = _Blockwise.apply(q, k, v, table, learned, how)
    else:
        o = _forward(q, k, v, table, learned, how)
    return o.unflatten(2, (n, h // g)).permute(0, 2, 1, 3, 4).flatten(2, 3)


def _rows_together(x: Tensor) -> Tensor:
    """(B, M, G, K) -> (B, G, M, K), the rows of a group one after another; no copy of a cache that lies so already,
    with room left behind."""
    x = x.transpose(1, 2)
    return x if x.stride(-1) == 1 and x.stride(-2) == x.shape[-1] else x.contiguous()


def pairs(mask: Mask, n: int, m: int) -> int:
    """The scores that are computed."""
    return sum((stop - start) * _width(touched) for start, stop, touched, _ in _ranges(mask, n, m))


def _ranges(mask: Mask, n: int, m: int) -> Iterator[tuple[int, int, Ranges, Ranges]]:
    """(start, stop) of queries, the ranges of keys touched, and those of them that need no mask, block by block."""
    for start in range(0, n, ROWS):
        stop = min(start + ROWS, n)
        first, last = start + m - n, stop + m - n
        touched = [pair for pair in mask.touches(first, last, m) if pair[0] < pair[1]]
        yield start, stop, touched, intersect(touched, mask.covers(first, last, m))


def _width(ranges: Ranges) -> int:
    return sum(b - a for a, b in ranges)


def _blocks(how: _How, q: Tensor, k: Tensor) -> Iterator[_Block]:
    n, m = q.shape[2] // how.r, k.shape[2]
    before: dict[tuple, tuple[Tensor, Tensor]] = {}
    for start, stop, touched, covered in _ranges(how.mask, n, m):
        i = torch.arange(start + m - n, stop + m - n, device=q.device)
        partial, count, now = [], _width(covered), {}
        for a, b in intersect(touched, complement(covered, m)):
            # a mask of i - j alone repeats along the diagonal: what the block before it had is had again
            place = (stop - start, a - start, b - a) if how.mask.relative else (start, a)
            if place in before:
                now[place] = before[place]
            else:
                allowed = how.mask.block(i, torch.arange(a, b, device=q.device))
                allowed = allowed.reshape(-1, 1, stop - start, 1, b - a)
                now[place] = allowed, allowed.sum(-1, keepdim=True)
            partial.append((_width(intersect(touched, [(0, a)])), now[place][0]))
            count = count + now[place][1]
        before = now
        if isinstance(count, Tensor):
            count = count.clamp_min(1).to(torch.float64 if q.dtype == torch.float64 else torch.float32)
        yield _Block(start, stop, touched, partial, count, not covered or how.bias is not None)


def _tiles(block: _Block, how: _How, b: int, g: int) -> Iterator[tuple[slice, slice]]:
    """Slices of batch and groups whose scores fit a tile: several rows of the batch, or several groups of one row."""
    size = (block.stop - block.start) * how.r * _width(block.ranges)
    rows, groups = max(1, TILE // (size * g)), min(g, max(1, TILE // size))
    for row in range(0, b, rows):
        for group in range(0, g, groups):
            yield slice(row, min(row + rows, b)), slice(group, min(group + groups, g))


def _place(block: _Block, how: _How, tile: tuple[slice, slice], shift: int) -> Place:
    heads = slice(tile[1].start * how.r, tile[1].stop * how.r)
    return Place(block.start, block.stop, block.ranges, tile[0], heads, shift)


def _normaliser(how: _How, learned: Tensor | None, groups: slice) -> Normaliser:
    """The normaliser of a tile's heads, whose learned numbers (H,) lie beside its scores (B, G, queries, R, keys)."""
    if learned is None:
        return how.normaliser
    return how.normaliser.with_learned(learned.view(-1, 1, how.r, 1)[groups])


def _weights(q, k, table, normaliser, how, block, place) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores and weights (B, G, queries, R, keys) of a tile, and which queries are blind (None: none can be)."""
    scores = q @ k.transpose(2, 3)
    scores = scores.float() if scores.dtype in HALF else scores
    scores = scores.unflatten(2, (block.stop - block.start, how.r))
    if how.bias is not None:
        bias = bias_block(table, how.bias, place, q.device)  # (B, heads | 1, queries, keys)
        bias = bias.unflatten(1, (-1, how.r)).transpose(2, 3) if bias.shape[1] > 1 else bias.unsqueeze(3)
        scores = scores + bias
    for column, allowed in block.partial:
        allowed = allowed[place.rows] if allowed.shape[0] > 1 else allowed
        scores[..., column : column + allowed.shape[-1]].masked_fill_(~allowed, normaliser.hidden)
    blind = None
    if block.blind:
        blind = scores.amax(-1, keepdim=True) == -math.inf
        scores = scores.masked_fill(blind, 0)
    weights = normaliser.weights(scores, _count(block, place.rows))
    return scores, weights if blind is None else weights.masked_fill(blind, 0), blind


def _count(block: _Block, rows: slice) -> Tensor | int:
    return block.count[rows] if isinstance(block.count, Tensor) and block.count.shape[0] > 1 else block.count


def _forward(q, k, v, table, learned, how) -> Tensor:
    b, g, _, _ = q.shape
    o = q.new_empty(b, g, q.shape[2], v.shape[3])
    shift = k.shape[2] - q.shape[2] // how.r
    for block in _blocks(how, q, k):
        queries = slice(block.start * how.r, block.stop * how.r)
        if not block.ranges:
            o[:, :, queries] = 0
            continue
        keys, values = take(k, block.ranges), take(v, block.ranges)
        for tile in _tiles(block, how, b, g):
            place, normaliser = _place(block, how, tile, shift), _normaliser(how, learned, tile[1])
            _, weights, _ = _weights(q[tile][:, :, queries], keys[tile], table, normaliser, how, block, place)
            o[(*tile, queries)] = weights.flatten(2, 3).to(v.dtype) @ values[tile]
    return o


def _backward(do, q, k, v, table, learned, how, table_needed):
    """Gradients of q, k, v, table and learned."""
    b, g, _, _ = q.shape
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
    dtable = torch.zeros_like(table, dtype=wide) if table_needed else None
    dlearned = None if learned is None else torch.zeros_like(learned, dtype=wide)
    shift = k.shape[2] - q.shape[2] // how.r
    for block in _blocks(how, q, k):
        if not block.ranges:
            continue
        queries = slice(block.start * how.r, block.stop * how.r)
        keys, values = take(k, block.ranges), take(v, block.ranges)
        for tile in _tiles(block, how, b, g):
            here, count = (*tile, queries), _count(block, tile[0])
            place, normaliser = _place(block, how, tile, shift), _normaliser(how, learned, tile[1])
            scores, weights, blind = _weights(q[here], keys[tile], table, normaliser, how, block, place)
            above = (do[here] @ values[tile].transpose(2, 3)).to(scores.dtype).view_as(scores)
            spread(dv[tile], block.ranges, weights.flatten(2, 3).to(do.dtype).transpose(2, 3) @ do[here])
            gradient = normaliser.slope(scores, weights, above, count)
            if blind is not None:
                gradient = gradient.masked_fill(blind, 0)
            if normaliser.hidden != -math.inf:
                for column, allowed in block.partial:
                    allowed = allowed[place.rows] if allowed.shape[0] > 1 else allowed
                    gradient[..., column : column + allowed.shape[-1]].masked_fill_(~allowed, 0)
            if table_needed:
                add_bias_gradient(dtable, gradient.transpose(2, 3).flatten(1, 2), how.bias, place)
            if learned is not None:
                each = normaliser.learned_slope(scores, weights, above, count)
                each = each if blind is None else each.masked_fill(blind, 0)
                dlearned[place.heads] += each.sum((0, 2, 4)).flatten()
            gradient = gradient.flatten(2, 3).to(q.dtype)
            dq[here] = gradient @ keys[tile]
            spread(dk[tile], block.ranges, gradient.transpose(2, 3) @ q[here])
    dtable = None if dtable is None else dtable.to(table.dtype)
    return dq, dk.to(k.dtype), dv.to(v.dtype), dtable, None if learned is None else dlearned.to(learned.dtype)


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, table, learned, how):
        ctx.save_for_backward(q, k, v, table, learned)
        ctx.how = how
        return _forward(q, k, v, table, learned, how)

    @staticmethod
    def backward(ctx, do):
        return *_backward(do.contiguous(), *ctx.saved_tensors, ctx.how, ctx.needs_input_grad[3]), None
