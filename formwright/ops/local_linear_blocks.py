"""Local linear attention block by block: the systems of local_linear.py formed, factored and solved, and backward.

Queries go block by block, each against the keys it sees; as many heads at once as a tile holds. In the letters of
local_linear.py: A_i of a block of queries is one product of the weights p with products of key channels, some channels
at a time; few queries form it from the keys they weigh; conjugate gradients never form it. Factors are kept for
backward where they are small, else formed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from formwright.ops.tiles import Workspace

ROWS = 128  # queries of one block
COLUMNS = 256  # keys whose channel products are held at once
PIECE = 16  # channels whose products with those after them are formed together, so that few are formed twice
FEW = 16  # up to so many queries in a block, each forms its matrix from the keys it weighs
TILE = 2**19  # elements of scores and matrices held at once, of as many heads as fit
KEPT_BYTES = 2**26  # factors are kept for backward up to this size, and formed again beyond
LEAST, MOST = math.log(1e-5), math.log(1e7)


@dataclass(frozen=True)
class How:
    """What is computed beside the tensors."""

    causal: bool
    scale: float
    iterations: int
    backend: str


def blocks(n: int, m: int, causal: bool) -> Iterator[tuple[int, int, int]]:
    """(start, stop) of queries and how many keys the block reads."""
    for start in range(0, n, ROWS):
        stop = min(start + ROWS, n)
        yield start, stop, stop + m - n if causal else m


def _tiles(heads: int, n: int, m: int, width: int, causal: bool) -> Iterator[tuple[slice, slice, slice]]:
    """(heads, queries, keys) whose scores and matrices fit a tile."""
    for start, stop, seen in blocks(n, m, causal):
        step = max(1, TILE // ((stop - start) * (seen + width**2)))
        for head in range(0, heads, step):
            yield slice(head, min(head + step, heads)), slice(start, stop), slice(0, seen)


def _scores(q: Tensor, k: Tensor, how: How) -> Tensor:
    """(G, R, M), of q (G, R, K) that end with the keys where causal."""
    scores = q @ k.mT * how.scale
    if how.causal:
        r, m = scores.shape[1:]
        later = torch.ones(r, r, dtype=torch.bool, device=q.device).triu(1)
        scores[:, :, m - r :].masked_fill_(later, -math.inf)
    return scores


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)


def widths(channels: int) -> list[int]:
    """How many channel products each piece forms."""
    return [min(PIECE, channels - a) * (channels - a) for a in range(0, channels, PIECE)]


def _moments(p: Tensor, k: Tensor, work: Workspace) -> Tensor:
    """sum_j p_ij k_j k_j^T (G, R, K, K), in its lower triangle at least; above it zeros may stand."""
    (g, r, m), width = p.shape, k.shape[-1]
    if r <= FEW:
        total, step = p.new_zeros(g, r, width, width), max(1, TILE // (g * r * width))
        for a in range(0, m, step):
            keys = k[:, None, a : a + step]
            total = total + (keys * p[:, :, a : a + step, None]).mT @ keys
        return total
    counts = widths(width)
    total = work("moments", g, r, sum(counts))
    total = p.new_zeros(g, r, sum(counts)) if total is None else total.zero_()
    for a in range(0, m, COLUMNS):
        keys = k[:, a : a + COLUMNS]
        pieces = [keys[:, :, c:, None] * keys[:, :, None, c : c + PIECE] for c in range(0, width, PIECE)]
        products = torch.cat(
            [piece.flatten(2) for piece in pieces], -1, out=work("products", *keys.shape[:2], sum(counts))
        )
        total = torch.baddbmm(total, p[:, :, a : a + COLUMNS], products, out=work.onto(total))
    matrix = p.new_zeros(g, r, width, width)
    for c, piece in zip(range(0, width, PIECE), total.split(counts, -1), strict=True):
        matrix[:, :, c:, c : c + PIECE] = piece.unflatten(-1, (width - c, -1))
    return matrix


def _factors(p: Tensor, keys: Tensor, mean: Tensor, share: Tensor, work: Workspace) -> Tensor:
    """Lower Cholesky factors (G, R, K, K) of the matrices A, with a few units in the last place of the moments' trace
    on their diagonals, for what rounding may have taken. One that is indefinite all the same, as keys of thousands
    make it in float32, is replaced by the bound trace I: its query's slope is then nearly left out."""
    matrix = _moments(p, keys, work)
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    trace = diagonal.sum(-1, keepdim=True)
    matrix.addcmul_(mean[..., :, None], mean[..., None, :], value=-1)
    diagonal.add_(share + 4 * torch.finfo(p.dtype).eps * trace)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    bound = torch.eye(keys.shape[-1], dtype=p.dtype, device=p.device) * (trace + share).sqrt()[..., None]
    return torch.where((failed > 0)[..., None, None], bound, factor)


def _conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> Tensor:
    """x (G, R, K) with product(x) = b, after so many steps; solved ones stay as they are."""
    x, residual, direction = torch.zeros_like(b), b, b
    size = _dot(b, b)
    for _ in range(steps):
        image = product(direction)
        curve = _dot(direction, image)
        going = curve > 0
        rate = torch.where(going, size / torch.where(going, curve, 1), 0)
        x, residual = x + rate * direction, residual - rate * image
        before, size = size, _dot(residual, residual)
        direction = residual + torch.where(before > 0, size / torch.where(before > 0, before, 1), 0) * direction
    return x


def _solver(p, keys, mean, share, how: How, work: Workspace, factor: Tensor | None = None):
    """(function that solves A x = b for b (G, R, K), the factor it uses or None)."""

    def product(x: Tensor) -> Tensor:
        weighted = p * (x @ keys.mT - _dot(x, mean))
        return weighted @ keys - weighted.sum(-1, keepdim=True) * mean + share * x

    if how.backend == "cg":
        return lambda b: _conjugate_gradients(product, b, how.iterations), None
    factor = _factors(p, keys, mean, share, work) if factor is None else factor

    def solve(b: Tensor) -> Tensor:
        x = torch.cholesky_solve(b[..., None], factor)[..., 0]
        # refined once by A's product itself, free of what the factor has for the sake of rounding
        return x + torch.cholesky_solve((b - product(x))[..., None], factor)[..., 0]

    return solve, factor


def _about(p: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys about a mean of those that all queries of the block see, so that their moments are small: (that origin
    (G, 1, K), k - origin, and the mean of these under each query's weights (G, R, K))."""
    origin = p[:, :1] @ k
    k = k - origin
    return origin, k, p @ k


def _share(log_ridge: Tensor, total: Tensor) -> Tensor:
    return (log_ridge[..., None] - total).clamp(LEAST, MOST).exp()


def forward(q, k, v, log_ridge, how: How, keep: bool) -> tuple[Tensor, ...]:
    """o (G, N, V), and of every query: log omega (G, N, 1), z (G, N, K), and its factor where these are kept."""
    heads, n, width = q.shape
    o = q.new_empty(heads, n, v.shape[-1])
    total, z = q.new_empty(heads, n, 1), torch.empty_like(q)
    factors = q.new_empty(heads, n, width, width) if keep else q.new_empty(0)
    work = Workspace(q)
    for head, rows, columns in _tiles(heads, n, k.shape[1], q.shape[-1], how.causal):
        here, keys = (head, rows), k[head, columns]
        scores = _scores(q[here], keys, how)
        total[here] = scores.logsumexp(-1, keepdim=True)
        p = scores.softmax(-1)  # not exp(scores - total): where scores are large, that sums to one too inexactly
        origin, keys, centre = _about(p, keys)
        solve, factor = _solver(p, keys, centre, _share(log_ridge[here], total[here]), how, work)
        z[here] = solve(centre - (q[here] - origin))
        o[here] = p.mul_(1 + _dot(centre, z[here]) - z[here] @ keys.mT) @ v[head, columns]
        if keep:
            factors[here] = factor
    return o, total, z, factors


def _backward(do, q, k, v, log_ridge, total, z, factors, how: How) -> tuple[Tensor, ...]:
    heads, n, _ = q.shape
    dq, d_ridge = torch.empty_like(q), torch.empty_like(log_ridge)
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    work = Workspace(q)
    for head, rows, columns in _tiles(heads, n, k.shape[1], q.shape[-1], how.causal):
        here, there = (head, rows), (head, columns)
        p = _scores(q[here], k[there], how).softmax(-1)
        _, keys, centre = _about(p, k[there])
        gap = log_ridge[here][..., None] - total[here]
        share = gap.clamp(LEAST, MOST).exp()
        factor = factors[here] if factors.numel() else None
        solve, _ = _solver(p, keys, centre, share, how, work, factor)
        g = do[here] @ v[there].mT
        g = g - _dot(p, g)
        y = -solve((p * g) @ keys)
        c = 1 + _dot(centre, z[here]) - z[here] @ keys.mT
        pr = p * (g + y @ keys.mT - _dot(y, centre))
        pull = torch.where((gap > LEAST) & (gap < MOST), share * _dot(y, z[here]), 0)
        ds = pr * c
        ds = (ds - p * (ds.sum(-1, keepdim=True) - pull)) * how.scale
        pc = p * c
        dq[here] = ds @ k[there] - y
        dk[there] += ds.mT @ q[here] + pc.mT @ y - pr.mT @ z[here]
        dv[there] += pc.mT @ do[here]
        d_ridge[here] = -pull[..., 0]
    return dq, dk, dv, d_ridge


class LocalLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, log_ridge, how):
        bytes_of_factors = q.numel() * q.shape[-1] * q.element_size()
        o, *rest = forward(q, k, v, log_ridge, how, how.backend != "cg" and bytes_of_factors <= KEPT_BYTES)
        ctx.save_for_backward(q, k, v, log_ridge, *rest)
        ctx.how = how
        return (o,)

    @staticmethod
    def backward(ctx, do):
        return *_backward(do.contiguous(), *ctx.saved_tensors, ctx.how), None
