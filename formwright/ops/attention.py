"""Attention: rows of normalised scores times values, exactly, in memory linear in the number of tokens.

    s_ij = scale q_i . k_j + bias_ij        for the keys j that the mask allows query i
    o_i  = sum_j p_ij v_j,  p_i = normaliser(s_i)

Attention Is All You Need, 1706.03762, 2017; grouped heads: GQA, 2305.13245, 2023; one block of queries at a time, its
scores computed again for the gradient: Self-attention Does Not Need O(n^2) Memory, 2112.05682, 2021.

Backends: "reference" is the dense definition; "sdpa" is PyTorch's own kernel, for what it computes; "blocks" goes
through blocks of queries, takes the keys that the mask touches (a window costs what the window costs), and works for
every normaliser, bias and mask. Queries that may attend to no key give zeros.

B batch, N queries, M keys, H heads, G key/value heads (H = G R, head h reads group h // R), K key width, V value width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from formwright.ops.masks import Causal, Full, Mask, Ranges, complement, intersect, simplify
from formwright.ops.normalisers import Normaliser, Softmax, normaliser_of

BACKENDS = ("auto", "reference", "sdpa", "blocks")
ROWS = 128  # queries of one block
HALF = (torch.float16, torch.bfloat16)
TILE = 2**19  # scores held at once, of as many heads as fit: 2 MiB in float32, so that they stay in cache


@dataclass(frozen=True, eq=False)
class Distance:
    """A score bias that depends on the distance i - j of query and key positions alone (aligned at the end, as masks
    are): table (H, R) or (1, R), the bias of distance d in column d + zero. ALiBi, T5's buckets, any function of
    distance; memory linear in N, and the table gets gradients."""

    table: Tensor
    zero: int


Bias = Tensor | Distance | Callable[[Tensor, Tensor], Tensor]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask | None = None,
    bias: Bias | None = None,
    normaliser: str | Normaliser = "softmax",
    scale: float | None = None,
    offsets: Tensor | tuple[Tensor, Tensor] | None = None,
    lengths: Tensor | tuple[Tensor | None, Tensor | None] | None = None,
    backend: str = "auto",
) -> Tensor:
    """q (B, N, H, K), k (B, M, G, K), v (B, M, G, V) -> (B, N, H, V).

    mask        a mask object (ops.masks); None allows all
    bias        added to scores: a tensor broadcastable to (B, H, N, M); a Distance; or a function of the indices (n,)
                of queries and (m,) of keys that gives a block of it and needs no gradient
    normaliser  a name among ops.normalisers.NORMALISERS, or an object with options
    scale       1 / sqrt(K) without it
    offsets     (S+1,) bounds of sequences packed in one row, or a pair of them for queries and keys
    lengths     (B,) valid tokens of padded rows, or a pair for queries and keys (None: all); outputs at padding are 0

    Raises ValueError for shapes that don't fit, and for a backend that can't compute what is asked."""
    _check(q, k, v, backend)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    normaliser = normaliser_of(normaliser)
    if offsets is not None and lengths is not None:
        raise ValueError("attention: a batch is packed (offsets) or padded (lengths), not both")
    if offsets is not None:
        return _packed(q, k, v, mask, bias, normaliser, scale, offsets, backend)
    if lengths is not None:
        return _padded(q, k, v, mask, bias, normaliser, scale, lengths, backend)
    return _attend(q, k, v, mask, bias, normaliser, scale, backend)


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask | None = None,
    bias: Bias | None = None,
    normaliser: str | Normaliser = "softmax",
) -> str:
    """The backend that "auto" picks for these tensors, and why: "sdpa: ..." or "blocks: ..."."""
    _check(q, k, v, "auto")
    half_on_cpu = q.device.type == "cpu" and q.dtype in HALF
    backend, reason = _choose(q.shape, k.shape, v.shape, mask, bias is not None, normaliser_of(normaliser), half_on_cpu)
    return f"{backend}: {reason}"


def macs(
    n: int,
    m: int,
    *,
    heads: int,
    kv_heads: int | None = None,
    key_dim: int,
    value_dim: int | None = None,
    mask: Mask | None = None,
    bias: bool = False,
    normaliser: str | Normaliser = "softmax",
    batch: int = 1,
    backend: str = "auto",
) -> int:
    """Multiply-adds of one forward, without gradients of anything: all n m products for "sdpa" and "reference" (as
    FlopCounterMode counts them, causal or not), those of the keys really taken for "blocks"."""
    kv_heads = kv_heads or heads
    value_dim = value_dim or key_dim
    shapes = (batch, n, heads, key_dim), (batch, m, kv_heads, key_dim), (batch, m, kv_heads, value_dim)
    if backend == "auto":
        backend = _choose(*shapes, mask, bias, normaliser_of(normaliser))[0]
    pairs = n * m
    if backend == "blocks":
        blocks = _ranges(simplify(mask, n, m), n, m)
        pairs = sum((stop - start) * _width(touched) for start, stop, touched, _ in blocks)
    return batch * heads * pairs * (key_dim + value_dim)


def count_cpu_sdpa(q, k, v, *args, out_shape=None, **kwargs) -> int:
    """FLOPs of PyTorch's CPU attention kernel from its shapes, for FlopCounterMode(custom_mapping=SDPA_FLOPS): PyTorch
    counts its CUDA kernels this way (all n m products, causal or not) and the CPU one not at all."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


SDPA_FLOPS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count_cpu_sdpa}


def _check(q: Tensor, k: Tensor, v: Tensor, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"attention: {backend!r} is no backend; there are {', '.join(BACKENDS)}")
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise ValueError(
            "attention: q, k and v are (B, N, heads, width), but are "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"attention: q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} don't fit: "
            "q and k share batch and width, k and v share batch, tokens and heads"
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: {q.shape[2]} query heads are no multiple of {k.shape[2]} key/value heads")


def _refusal(q, k, v, plain: Mask, bias: bool, normaliser: Normaliser) -> str | None:
    """Why SDPA can't compute attention of these shapes exactly, in memory linear in N; None where it can."""
    if not isinstance(normaliser, Softmax):
        return f"SDPA has no {type(normaliser).__name__.lower()}"
    if bias:
        return "SDPA would hold the whole bias"
    if q[3] != v[3]:
        return f"SDPA wants one width, but keys have {q[3]} and values {v[3]}"
    if not isinstance(plain, Full) and not (isinstance(plain, Causal) and q[1] == k[1]):
        return f"SDPA would compute all that {plain} forbids"
    return "there are no keys" if k[1] == 0 else None


def _choose(q, k, v, mask, bias: bool, normaliser: Normaliser, half_on_cpu: bool = False) -> tuple[str, str]:
    """The backend for shapes q, k, v and its reason. It may depend on more than shapes only where both do the same
    products, so that `macs` needs no more than them."""
    plain = simplify(mask, q[1], k[1])
    if (reason := _refusal(q, k, v, plain, bias, normaliser)) is not None:
        return "blocks", reason
    if q[1] == 1 and half_on_cpu:
        return "blocks", "for one query in half precision matrix products beat SDPA's CPU kernel"
    if q[1] == 1 and k[2] < q[2] and k[1] >= 1024:
        return "blocks", "one query in grouped heads: keys are read once a group, not once a head"
    return "sdpa", f"softmax, {plain}"


def _attend(q, k, v, mask, bias, normaliser, scale, backend) -> Tensor:
    n, m = q.shape[1], k.shape[1]
    plain = simplify(mask, n, m)
    if plain.batched and plain.rows() != q.shape[0]:
        raise ValueError(f"attention: the mask {plain} was made for {plain.rows()} rows, but there are {q.shape[0]}")
    if backend == "reference":
        return reference(q, k, v, mask, bias, normaliser, scale)
    if backend == "auto":
        half_on_cpu = q.device.type == "cpu" and q.dtype in HALF
        backend = _choose(q.shape, k.shape, v.shape, plain, bias is not None, normaliser, half_on_cpu)[0]
    if backend == "sdpa":
        if (reason := _refusal(q.shape, k.shape, v.shape, plain, bias is not None, normaliser)) is not None:
            raise ValueError(f"attention: backend 'sdpa' can't compute this ({reason}); use 'auto' or 'blocks'")
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        causal, grouped = isinstance(plain, Causal), q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=grouped).transpose(
            1, 2
        )
    return _blockwise(q, k, v, plain, bias, normaliser, scale)


def reference(q, k, v, mask, bias, normaliser, scale) -> Tensor:
    """The definition, densely: all scores of all heads at once."""
    n, m, groups = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
    scores = torch.einsum("bnhk,bmhk->bhnm", q, k) * scale
    if isinstance(bias, Distance):
        distance = torch.arange(m - n, m, device=q.device)[:, None] - torch.arange(m, device=q.device)
        scores = scores + bias.table[:, distance + bias.zero]
    elif isinstance(bias, Tensor):
        scores = scores + bias
    elif bias is not None:
        scores = scores + bias(torch.arange(n, device=q.device), torch.arange(m, device=q.device))
    allowed = (Full() if mask is None else mask).materialize(n, m, q.device)
    allowed = allowed[:, None] if allowed.ndim == 3 else allowed
    count = allowed.sum(-1, keepdim=True).clamp_min(1).to(scores.dtype)
    scores = scores.masked_fill(~allowed, normaliser.hidden)
    blind = (scores == -math.inf).all(-1, keepdim=True)
    weights = normaliser.weights(scores.masked_fill(blind, 0), count).masked_fill(blind, 0)
    return torch.einsum("bhnm,bmhv->bnhv", weights, v)


# ---- sequences of unequal length: each is computed alone, so that it costs what its tokens cost


def _packed(q, k, v, mask, bias, normaliser, scale, offsets, backend) -> Tensor:
    if q.shape[0] != 1:
        raise ValueError(f"attention: packed sequences lie in one row, but there are {q.shape[0]}")
    bounds = [o.tolist() for o in (offsets if isinstance(offsets, tuple) else (offsets, offsets))]
    if len(bounds[0]) != len(bounds[1]) or bounds[0][-1] != q.shape[1] or bounds[1][-1] != k.shape[1]:
        raise ValueError(
            f"attention: the offsets end at {bounds[0][-1]} and {bounds[1][-1]} after {len(bounds[0]) - 1} and "
            f"{len(bounds[1]) - 1} sequences, but there are {q.shape[1]} queries and {k.shape[1]} keys"
        )
    sizes = [[b - a for a, b in pairwise(bound)] for bound in bounds]
    parts = zip(q.split(sizes[0], 1), k.split(sizes[1], 1), v.split(sizes[1], 1), *bounds, strict=False)
    out = [
        _attend(qs, ks, vs, mask, _part_of(bias, slice(None), a, qs, c, ks), normaliser, scale, backend)
        for qs, ks, vs, a, c in parts
    ]
    return torch.cat(out, 1)


def _padded(q, k, v, mask, bias, normaliser, scale, lengths, backend) -> Tensor:
    lengths = lengths if isinstance(lengths, tuple) else (lengths, lengths)
    valid = [
        [x.shape[1]] * x.shape[0] if each is None else each.tolist() for x, each in zip((q, k), lengths, strict=True)
    ]
    out = []
    for row, (n, m) in enumerate(zip(*valid, strict=True)):
        qs, ks, vs = (x[row : row + 1, :size] for x, size in ((q, n), (k, m), (v, m)))
        part = _part_of(bias, slice(row, row + 1), 0, qs, 0, ks)
        o = _attend(qs, ks, vs, mask, part, normaliser, scale, backend)
        out.append(F.pad(o, (0, 0, 0, 0, 0, q.shape[1] - n)))
    return torch.cat(out)


def _part_of(bias: Bias | None, rows: slice, start: int, q: Tensor, key_start: int, k: Tensor) -> Bias | None:
    if isinstance(bias, Tensor):
        bias = bias.reshape((1,) * (4 - bias.ndim) + tuple(bias.shape))
        bias = bias[rows] if bias.shape[0] > 1 else bias
        bias = bias[:, :, start : start + q.shape[1]] if bias.shape[2] > 1 else bias
        return bias[..., key_start : key_start + k.shape[1]] if bias.shape[3] > 1 else bias
    if bias is None or isinstance(bias, Distance):
        return bias
    return lambda i, j: _row_of(bias(i + start, j + key_start), rows)


def _row_of(block: Tensor, rows: slice) -> Tensor:
    return block[rows] if block.ndim == 4 and block.shape[0] > 1 else block


# ---- block by block


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


def _take(x: Tensor, ranges: Ranges) -> Tensor:
    parts = [x[:, :, a:b] for a, b in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _bias_block(table: Tensor | None, how: _How, block: _Block, tile: tuple[slice, slice], shift: int) -> Tensor:
    """(B | 1, heads | 1, queries | 1, keys | 1) of the bias; `shift` is M - N."""
    n, device = block.stop - block.start, None if table is None else table.device
    heads = slice(tile[1].start * how.r, tile[1].stop * how.r)
    if how.bias == "dense":
        x = table[tile[0] if table.shape[0] > 1 else slice(None), heads if table.shape[1] > 1 else slice(None)]
        x = x[:, :, block.start : block.stop] if table.shape[2] > 1 else x
        return _take(x.transpose(2, 3), block.ranges).transpose(2, 3) if table.shape[3] > 1 else x
    if isinstance(how.bias, int):
        x = table[heads] if table.shape[0] > 1 else table
        parts = []
        for a, b in block.ranges:
            low = how.bias + block.start + shift - b + 1
            parts.append(x[:, low : low + n + b - a - 1].flip(-1).unfold(-1, b - a, 1).flip(1))
        return torch.cat(parts, -1)[None]
    j = torch.cat([torch.arange(a, b, device=device) for a, b in block.ranges])
    x = how.bias(torch.arange(block.start, block.stop, device=device), j)
    x = x.reshape((1,) * (4 - x.ndim) + tuple(x.shape))
    return x[tile[0] if x.shape[0] > 1 else slice(None), heads if x.shape[1] > 1 else slice(None)]


def _by_rows(x: Tensor, how: _How) -> Tensor:
    """(B, heads | 1, queries, keys) -> (B, G | 1, queries, R | 1, keys), beside scores."""
    return x.unflatten(1, (-1, how.r)).transpose(2, 3) if x.shape[1] > 1 else x.unsqueeze(3)


def _weights(q, k, table, how, block, tile, shift) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores and weights (B, G, queries, R, keys) of a tile, and which queries are blind (None: none can be)."""
    rows = tile[0]
    scores = q @ k.transpose(2, 3)
    scores = scores.float() if scores.dtype in HALF else scores
    scores = scores.unflatten(2, (block.stop - block.start, how.r))
    if how.bias is not None:
        scores = scores + _by_rows(_bias_block(table, how, block, tile, shift), how)
    for column, allowed in block.partial:
        allowed = allowed[rows] if allowed.shape[0] > 1 else allowed
        scores[..., column : column + allowed.shape[-1]].masked_fill_(~allowed, how.normaliser.hidden)
    blind = None
    if block.blind:
        blind = scores.amax(-1, keepdim=True) == -math.inf
        scores = scores.masked_fill(blind, 0)
    weights = how.normaliser.weights(scores, _count(block, rows))
    return scores, weights if blind is None else weights.masked_fill(blind, 0), blind


def _count(block: _Block, rows: slice) -> Tensor | int:
    return block.count[rows] if isinstance(block.count, Tensor) and block.count.shape[0] > 1 else block.count


def _forward(q, k, v, table, how) -> Tensor:
    b, g, _, _ = q.shape
    o = q.new_empty(b, g, q.shape[2], v.shape[3])
    shift = k.shape[2] - q.shape[2] // how.r
    for block in _blocks(how, q, k):
        queries = slice(block.start * how.r, block.stop * how.r)
        if not block.ranges:
            o[:, :, queries] = 0
            continue
        keys, values = _take(k, block.ranges), _take(v, block.ranges)
        for tile in _tiles(block, how, b, g):
            _, weights, _ = _weights(q[tile][:, :, queries], keys[tile], table, how, block, tile, shift)
            o[(*tile, queries)] = weights.flatten(2, 3).to(v.dtype) @ values[tile]
    return o


def _backward(do, q, k, v, table, how, table_needed) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    b, g, _, _ = q.shape
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
    dtable = torch.zeros_like(table, dtype=wide) if table_needed else None
    shift = k.shape[2] - q.shape[2] // how.r
    for block in _blocks(how, q, k):
        if not block.ranges:
            continue
        queries = slice(block.start * how.r, block.stop * how.r)
        keys, values = _take(k, block.ranges), _take(v, block.ranges)
        for tile in _tiles(block, how, b, g):
            here = (*tile, queries)
            scores, weights, blind = _weights(q[here], keys[tile], table, how, block, tile, shift)
            gradient = (do[here] @ values[tile].transpose(2, 3)).to(scores.dtype).view_as(scores)
            _spread(dv, tile, block.ranges, weights.flatten(2, 3).to(do.dtype).transpose(2, 3) @ do[here])
            gradient = how.normaliser.slope(scores, weights, gradient, _count(block, tile[0]))
            if blind is not None:
                gradient = gradient.masked_fill(blind, 0)
            if how.normaliser.hidden != -math.inf:
                for column, allowed in block.partial:
                    allowed = allowed[tile[0]] if allowed.shape[0] > 1 else allowed
                    gradient[..., column : column + allowed.shape[-1]].masked_fill_(~allowed, 0)
            if table_needed:
                _bias_gradient(dtable, gradient, how, block, tile, shift)
            gradient = gradient.flatten(2, 3).to(q.dtype)
            dq[here] = gradient @ keys[tile]
            _spread(dk, tile, block.ranges, gradient.transpose(2, 3) @ q[here])
    return dq, dk.to(k.dtype), dv.to(v.dtype), None if dtable is None else dtable.to(table.dtype)


def _spread(whole: Tensor, tile: tuple[slice, slice], ranges: Ranges, part: Tensor) -> None:
    """Add `part`, whose rows are the keys of all ranges in turn, to where they come from."""
    column = 0
    for a, b in ranges:
        whole[(*tile, slice(a, b))] += part[:, :, column : column + b - a]
        column += b - a


def _bias_gradient(dtable: Tensor, gradient: Tensor, how: _How, block: _Block, tile: tuple, shift: int) -> None:
    heads = slice(tile[1].start * how.r, tile[1].stop * how.r)
    x = gradient.transpose(2, 3).flatten(1, 2)  # (B, heads, queries, keys)
    if how.bias == "dense":
        x = x.sum([d for d in range(4) if dtable.shape[d] == 1], keepdim=True) if 1 in dtable.shape else x
        rows, heads = (s if dtable.shape[d] > 1 else slice(None) for d, s in enumerate((tile[0], heads)))
        target = dtable[rows, heads]
        target = target[:, :, block.start : block.stop] if dtable.shape[2] > 1 else target
        if dtable.shape[3] == 1:
            target += x
            return
        _spread(target.transpose(2, 3), (slice(None), slice(None)), block.ranges, x.transpose(2, 3))
        return
    x = x.sum(0) if dtable.shape[0] > 1 else x.sum((0, 1))[None]
    target, column, n = dtable[heads] if dtable.shape[0] > 1 else dtable, 0, block.stop - block.start
    for a, b in block.ranges:
        # each row is shifted one further than the one before, so that a column's sum is a diagonal's
        width = b - a
        shifted = F.pad(x[:, :, column : column + width].flip(1), (0, n)).flatten(1)[:, : n * (width + n - 1)]
        low = how.bias + block.start + shift - b + 1
        target[:, low : low + n + width - 1] += shifted.unflatten(1, (n, -1)).sum(1).flip(-1)
        column += width


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, table, how):
        ctx.save_for_backward(q, k, v, table)
        ctx.how = how
        return _forward(q, k, v, table, how)

    @staticmethod
    def backward(ctx, do):
        return *_backward(do.contiguous(), *ctx.saved_tensors, ctx.how, ctx.needs_input_grad[3]), None


def _blockwise(q, k, v, mask, bias, normaliser, scale) -> Tensor:
    n, h = q.shape[1:3]
    m, g = k.shape[1:3]
    table, kind = _read(bias, n, m)
    how = _How(mask, normaliser, kind, h // g)
    # the R heads of a group become rows beside one another: (B, G, N R, K), so that keys are never copied to heads
    q = (q * scale).unflatten(2, (g, h // g)).permute(0, 2, 1, 3, 4).flatten(2, 3)
    k, v = k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, table)):
        o = _Blockwise.apply(q, k, v, table, how)
    else:
        o = _forward(q, k, v, table, how)
    return o.unflatten(2, (n, h // g)).permute(0, 2, 1, 3, 4).flatten(2, 3)


def _read(bias: Bias | None, n: int, m: int) -> tuple[Tensor | None, str | int | Callable | None]:
    """(the tensor of the bias, if it is one, and how blocks of it are found)."""
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
