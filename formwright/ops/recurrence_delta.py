"""The delta rule in chunks: u, what each token writes, one chunk after another, and its backward.

    (I + A) U = diag(beta) (V - X S),    A_ij = beta_i x_i (G_ij k_j) for j < i,    S' = G_C0 S + sum_j (G_Cj k_j) u_j^T

X are the keys as they read the state S before the chunk. The inverse of I + A is made for all chunks at once; from one
chunk to the next goes S.
"Parallelizing Linear Transformers with the Delta Rule over Sequence Length", arXiv 2406.06484, 2024; gated: arXiv
2412.06464, 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

from formwright.ops.recurrence_scores import Edges
from formwright.ops.tiles import Workspace


def carried(s: Tensor, added: Tensor, total: Tensor | None, out: Tensor | None) -> Tensor:
    """total s + added: a state through one chunk, or its gradient back."""
    return torch.add(added, s, out=out) if total is None else torch.addcmul(added, s, total, out=out)


def solved(
    s: Tensor, values: Tensor, rate: Tensor, inverse: Tensor, xe: Tensor, ke: Tensor, edges: Edges, chunks: int,
    work: Workspace, place: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The delta rule's u (n,C,V) of all chunks, each of which needs the state that those before it leave, and the
    states as `passed_on` gives them."""
    asks, writes = _asks_and_writes(xe, ke, rate, edges, work)
    right = torch.mul(values, rate, out=work("right", *values.shape))
    u = work("u", *values.shape)
    asks, writes, right, inverse = (t.unflatten(0, (chunks, -1)) for t in (asks, writes, right, inverse))
    into = None if u is None else u.unflatten(0, (chunks, -1))
    total = None if edges.total is None else edges.total.unflatten(0, (chunks, -1))
    states, found = [s if place is None else place[0]], []
    for chunk in range(chunks):
        last = states[-1]
        needs = torch.baddbmm(right[chunk], asks[chunk], last, alpha=-1, out=work.onto(right[chunk]))
        found.append(torch.bmm(inverse[chunk], needs, out=None if into is None else into[chunk]))
        out = None if place is None else place[chunk + 1]
        kept = last if total is None else torch.mul(last, total[chunk], out=out)
        states.append(torch.baddbmm(kept, writes[chunk].mT, found[-1], out=out))
    if place is None:
        return torch.cat(found), torch.stack(states)
    return u, place


def solved_back(
    ds: Tensor, d_u: Tensor, pushed: Tensor, rate: Tensor, inverse: Tensor, xe: Tensor, ke: Tensor, edges: Edges,
    chunks: int, work: Workspace, place: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Backward of `solved`: from d_u and `pushed`, what outputs say of u and of the states before chunks, and ds of
    the last state, the gradient of the right sides and those of all states. d_u is used up."""
    asks, writes = _asks_and_writes(xe, ke, rate, edges, work)
    d_right = work("d_right", *d_u.shape)
    into = None if d_right is None else d_right.unflatten(0, (chunks, -1))
    asks, writes, d_u, pushed, inverse = (t.unflatten(0, (chunks, -1)) for t in (asks, writes, d_u, pushed, inverse))
    total = None if edges.total is None else edges.total.unflatten(0, (chunks, -1))
    states, found = [ds if place is None else place[chunks]], []
    for chunk in range(chunks - 1, -1, -1):
        last = states[-1]
        whole = torch.baddbmm(d_u[chunk], writes[chunk], last, out=work.onto(d_u[chunk]))
        found.append(torch.bmm(inverse[chunk].mT, whole, out=None if into is None else into[chunk]))
        out = None if place is None else place[chunk]
        kept = carried(last, pushed[chunk], None if total is None else total[chunk], out)
        states.append(torch.baddbmm(kept, asks[chunk].mT, found[-1], alpha=-1, out=out))
    if place is None:
        return torch.cat(found[::-1]), torch.stack(states[::-1])
    return d_right, place


def _asks_and_writes(xe: Tensor, ke: Tensor, rate: Tensor, edges: Edges, work: Workspace) -> tuple[Tensor, Tensor]:
    """Of the delta rule, keys as they read the state before the chunk, and as they write to the one after it."""
    rate = rate if edges.since is None else rate * edges.since
    asks = torch.mul(xe[:, :, 1], rate, out=work("asks", *ke.shape))
    return asks, ke if edges.until is None else torch.mul(ke, edges.until, out=work("writes", *ke.shape))


def unit_lower_inverse(lower: Tensor, out: Tensor | None = None) -> Tensor:
    """The inverse of I - `lower` (n,C,C), of which what lies below the diagonal counts and nothing lies above it, C a
    power of two; `out` may be `lower` itself. Blocks of 4 by substitution; blocks of 4, 8, ... are joined by [[A, 0],
    [-B, D]]^-1 = [[A^-1, 0], [D^-1 B A^-1, D^-1]]. As stable as substitution, and nearly all products."""
    n, size, _ = lower.shape
    inverse = lower.clone() if out is None else out
    inverse.diagonal(dim1=1, dim2=2).fill_(1)
    block = min(4, size)
    small = inverse.view(n, size // block, block, size // block, block).diagonal(dim1=1, dim2=3)
    for row in range(2, block):
        for column in range(row - 1):
            for between in range(column + 1, row):
                small[:, row, column].addcmul_(small[:, row, between], small[:, between, column])
    while block < size:
        count = size // (2 * block)
        halves = inverse.view(n, count, 2, block, count, 2, block)
        # (n, block, block, count): what stands in the lower left of each pair of blocks.
        target = halves[:, :, 1, :, :, 0].diagonal(dim1=1, dim2=3)
        blocks = halves.diagonal(dim1=1, dim2=4).permute(0, 5, 1, 3, 2, 4)
        early, late = blocks[:, :, 0, 0].flatten(0, 1), blocks[:, :, 1, 1].flatten(0, 1)
        cross = torch.bmm(torch.bmm(late, target.permute(0, 3, 1, 2).flatten(0, 1)), early)
        target.copy_(cross.view(n, count, block, block).permute(0, 2, 3, 1))
        block *= 2
    return inverse
