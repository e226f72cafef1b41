"""Attention of sequences of unequal length, packed in one row or padded: no padding is computed.

Each sequence is computed alone, so that it costs what its tokens cost; those of one length are computed together, as
rows of a batch, so that many short ones don't each cost a call: ByteTransformer, 2210.03052, 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from formwright.ops.attention_bias import Bias, Distance, bias_within
from formwright.ops.masks import Mask

Attend = Callable[[Tensor, Tensor, Tensor, Bias | None], Tensor]
Sizes = list[tuple[int, int]]


def packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | None,
    bias: Bias | None,
    offsets: Tensor | tuple[Tensor, Tensor],
    attend: Attend,
) -> Tensor:
    """`attend` (q, k, v, bias) of each sequence of a row: q (1, N, H, K), k (1, M, G, K) -> (1, N, H, V)."""
    if q.shape[0] != 1:
        raise ValueError(f"attention: packed sequences lie in one row, but there are {q.shape[0]}")
    ours, theirs = offsets if isinstance(offsets, tuple) else (offsets, offsets)
    bounds = ours.tolist()
    key_bounds = bounds if theirs is ours else theirs.tolist()
    if len(bounds) != len(key_bounds) or bounds[-1] != q.shape[1] or key_bounds[-1] != k.shape[1]:
        raise ValueError(
            f"attention: the offsets end at {bounds[-1]} and {key_bounds[-1]} after {len(bounds) - 1} and "
            f"{len(key_bounds) - 1} sequences, but there are {q.shape[1]} queries and {k.shape[1]} keys"
        )
    sizes = [(b - a, d - c) for (a, b), (c, d) in zip(pairwise(bounds), pairwise(key_bounds), strict=True)]
    groups = _groups(sizes, mask, bias)
    order = _order(groups, bounds, q.device)
    key_order = order if key_bounds == bounds else _order(groups, key_bounds, q.device)
    q, k, v = _permuted(q, order), _permuted(k, key_order), _permuted(v, key_order)
    counts = [[len(group) * sizes[group[0]][side] for group in groups] for side in (0, 1)]
    parts = zip(groups, q.split(counts[0], 1), k.split(counts[1], 1), v.split(counts[1], 1), strict=True)
    out = []
    for group, *rows in parts:
        first = group[0]
        n, m = sizes[first]
        rows = [x[0].unflatten(0, (len(group), size)) for x, size in zip(rows, (n, m, m), strict=True)]
        within = bias_within(
            bias, slice(None), slice(bounds[first], bounds[first + 1]), slice(key_bounds[first], key_bounds[first + 1])
        )
        out.append(attend(*rows, within).flatten(0, 1)[None])
    return _permuted(torch.cat(out, 1), order, back=True)


def padded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | None,
    bias: Bias | None,
    lengths: Tensor | tuple[Tensor | None, Tensor | None],
    attend: Attend,
) -> Tensor:
    """`attend` (q, k, v, bias) of the valid tokens of each row: q (B, N, H, K), k (B, M, G, K) -> (B, N, H, V), zeros
    at padding."""
    ours, theirs = lengths if isinstance(lengths, tuple) else (lengths, lengths)
    n = [q.shape[1]] * q.shape[0] if ours is None else ours.tolist()
    m = n if theirs is ours and theirs is not None else [k.shape[1]] * q.shape[0] if theirs is None else theirs.tolist()
    sizes = list(zip(n, m, strict=True))
    groups = _groups(sizes, mask, bias)
    out: list[Tensor] = [q] * len(sizes)
    for group in groups:
        queries, keys = (slice(size) for size in sizes[group[0]])
        rows = slice(group[0], group[-1] + 1) if len(group) == group[-1] - group[0] + 1 else group
        within = bias_within(bias, slice(group[0], group[0] + 1), queries, keys)
        o = attend(q[rows, queries], k[rows, keys], v[rows, keys], within)
        for row, each in zip(group, F.pad(o, (0, 0, 0, 0, 0, q.shape[1] - o.shape[1])).unbind(), strict=True):
            out[row] = each
    return torch.stack(out)


def _groups(sizes: Sizes, mask: Mask | None, bias: Bias | None) -> list[list[int]]:
    """The sequences of equal size, by their places; each alone where their masks or biases differ."""
    if (mask is not None and mask.batched) or not (bias is None or isinstance(bias, Distance)):
        return [[place] for place in range(len(sizes))]
    found: dict[tuple[int, int], list[int]] = {}
    for place, size in enumerate(sizes):
        found.setdefault(size, []).append(place)
    return list(found.values())


def _order(groups: list[list[int]], bounds: list[int], device: torch.device) -> Tensor | None:
    """Where the tokens of all groups, in turn, come from; None where they lie so already."""
    places = [place for group in groups for place in group]
    if places == sorted(places):
        return None
    parts = []
    for group in groups:
        starts = torch.tensor([bounds[place] for place in group])
        parts.append((starts[:, None] + torch.arange(bounds[group[0] + 1] - bounds[group[0]])).flatten())
    return torch.cat(parts).to(device)


class _Permute(torch.autograd.Function):
    """Rows of x (1, N, ...) in another order, whose gradient is a look-up too."""

    @staticmethod
    def forward(ctx, x, order, inverse):
        ctx.save_for_backward(inverse)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx, gradient):
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(1, inverse), None, None


def _permuted(x: Tensor, order: Tensor | None, back: bool = False) -> Tensor:
    if order is None:
        return x
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return _Permute.apply(x, *((inverse, order) if back else (order, inverse)))
