"""Score biases of attention: a tensor, a function of places, or a table of distances, taken block by block.

    s_ij = scale q_i . k_j + bias_ij

A bias that depends on i - j alone (ALiBi: Train Short, Test Long, 2108.12409, 2021; the buckets of T5, 1910.10683,
2019) is a table of N + M - 1 numbers a head, and a block of queries reads a band of it: memory stays linear in N.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from formwright.ops.masks import Ranges


@dataclass(frozen=True, eq=False)
class Distance:
    """A score bias that depends on the distance i - j of query and key positions alone (aligned at the end, as masks
    are): table (H, R) or (1, R), the bias of distance d in column d + zero. ALiBi, T5's buckets, any function of
    distance; memory linear in N, and the table gets gradients."""

    table: Tensor
    zero: int


Bias = Tensor | Distance | Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Place:
    """Where a tile of scores lies: queries start..stop-1, the ranges of keys they touch, rows of the batch, heads, and
    M - N."""

    start: int
    stop: int
    ranges: Ranges
    rows: slice
    heads: slice
    shift: int


def dense_bias(bias: Bias | None, n: int, m: int, device: torch.device) -> Tensor | None:
    """The whole bias, broadcastable to (B, H, n, m)."""
    if bias is None or isinstance(bias, Tensor):
        return bias
    if isinstance(bias, Distance):
        distance = torch.arange(m - n, m, device=device)[:, None] - torch.arange(m, device=device)
        return bias.table[:, distance + bias.zero]
    return bias(torch.arange(n, device=device), torch.arange(m, device=device))


def bias_within(bias: Bias | None, rows: slice, queries: slice, keys: slice) -> Bias | None:
    """The bias of some rows of the batch, queries and keys, as one for these alone."""
    if isinstance(bias, Tensor):
        bias = bias.reshape((1,) * (4 - bias.ndim) + tuple(bias.shape))
        bias = bias[rows] if bias.shape[0] > 1 else bias
        bias = bias[:, :, queries] if bias.shape[2] > 1 else bias
        return bias[..., keys] if bias.shape[3] > 1 else bias
    if bias is None or isinstance(bias, Distance):
        return bias
    return lambda i, j: _rows_of(bias(i + queries.start, j + keys.start), rows)


def _rows_of(block: Tensor, rows: slice) -> Tensor:
    return block[rows] if block.ndim == 4 and block.shape[0] > 1 else block


def read_bias(bias: Bias | None, n: int, m: int) -> tuple[Tensor | None, str | int | Callable | None]:
    """(the tensor of the bias, if it is one; its kind: "dense", a Distance's zero, a function, or None).

    Raises ValueError for a Distance that is too short and a function that needs a gradient."""
    if bias is None:
        return None, None
    if isinstance(bias, Distance):
        least, most = -bias.zero, bias.table.shape[-1] - 1 - bias.zero
        if n and m and (least > m - n - (m - 1) or most < m - 1):
            raise ValueError(
                f"attention: the table of biases holds distances {least}..{most}, but {n} queries and {m} keys have "
                f"{1 - n}..{m - 1}"
            )
        return bias.table, bias.zero
    if isinstance(bias, Tensor):
        return bias.reshape((1,) * (4 - bias.ndim) + tuple(bias.shape)), "dense"
    with torch.enable_grad():
        if bias(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)).requires_grad:
            raise ValueError(
                "attention: a bias given as a function gets no gradient, but this one needs one; give it as a tensor, "
                "or as a Distance where it depends on the distance alone"
            )
    return None, bias


def take(x: Tensor, ranges: Ranges) -> Tensor:
    """The rows of x (B, heads, rows, ...) in all ranges, in turn."""
    parts = [x[:, :, a:b] for a, b in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def spread(whole: Tensor, ranges: Ranges, part: Tensor) -> None:
    """Add `part`, what `take` would give, to where it comes from."""
    column = 0
    for a, b in ranges:
        whole[:, :, a:b] += part[:, :, column : column + b - a]
        column += b - a


def bias_block(table: Tensor | None, kind: str | int | Callable, place: Place, device: torch.device) -> Tensor:
    """(B | 1, heads | 1, queries | 1, keys | 1) of the bias at a place."""
    n = place.stop - place.start
    if kind == "dense":
        x = table[place.rows if table.shape[0] > 1 else slice(None), place.heads if table.shape[1] > 1 else slice(None)]
        x = x[:, :, place.start : place.stop] if table.shape[2] > 1 else x
        return take(x.transpose(2, 3), place.ranges).transpose(2, 3) if table.shape[3] > 1 else x
    if isinstance(kind, int):
        x = table[place.heads] if table.shape[0] > 1 else table
        parts = []
        for a, b in place.ranges:
            low = kind + place.start + place.shift - b + 1
            parts.append(x[:, low : low + n + b - a - 1].flip(-1).unfold(-1, b - a, 1).flip(1))
        return torch.cat(parts, -1)[None]
    j = torch.cat([torch.arange(a, b, device=device) for a, b in place.ranges])
    x = kind(torch.arange(place.start, place.stop, device=device), j)
    x = x.reshape((1,) * (4 - x.ndim) + tuple(x.shape))
    return x[place.rows if x.shape[0] > 1 else slice(None), place.heads if x.shape[1] > 1 else slice(None)]


def add_bias_gradient(total: Tensor, gradient: Tensor, kind: str | int, place: Place) -> None:
    """Add the gradient of a tile's scores (B, heads, queries, keys) to that of the table they read."""
    if kind == "dense":
        summed = [d for d in range(4) if total.shape[d] == 1]
        x = gradient.sum(summed, keepdim=True) if summed else gradient
        rows = place.rows if total.shape[0] > 1 else slice(None)
        target = total[rows, place.heads if total.shape[1] > 1 else slice(None)]
        target = target[:, :, place.start : place.stop] if total.shape[2] > 1 else target
        if total.shape[3] == 1:
            target += x
        else:
            spread(target.transpose(2, 3), place.ranges, x.transpose(2, 3))
        return
    x = gradient.sum(0) if total.shape[0] > 1 else gradient.sum((0, 1))[None]
    target, column, n = total[place.heads] if total.shape[0] > 1 else total, 0, place.stop - place.start
    for a, b in place.ranges:
        # each row is shifted one further than the one before, so that a column's sum is a diagonal's
        width = b - a
        shifted = F.pad(x[:, :, column : column + width].flip(1), (0, n)).flatten(1)[:, : n * (width + n - 1)]
        low = kind + place.start + place.shift - b + 1
        target[:, low : low + n + width - 1] += shifted.unflatten(1, (n, -1)).sum(1).flip(-1)
        column += width
