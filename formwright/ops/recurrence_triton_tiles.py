"""What the kernels of recurrence_triton_kernels.py and recurrence_triton_backward.py have in common: rows and blocks
loaded and stored, decays and scores of one chunk.

Sequences are rows of one table (bounds, first chunk, owner of each chunk), so that packed and plain batches are the
same thing. Every exponent is a sum of log decays or a difference of running sums taken where it is <= 0: a scalar
decay's sums are kept as a pair of float32 (made in float64), a diagonal decay's are added up within blocks of 16, 32
and 64 tokens that are joined pairwise, so that nothing cancels.
"""

from __future__ import annotations

import triton
import triton.language as tl

# exp(-110) is 0 in float32, and -inf would make differences of sums NaN.
FLOOR = tl.constexpr(-110.0)


@triton.jit
def dot(a, b, P: tl.constexpr):
    return tl.dot(a, b, input_precision=P)


@triton.jit
def place_of(bounds, first, owner, chunk, C: tl.constexpr):
    """The chunk's tokens (C,) and the token at which its sequence ends."""
    sequence = tl.load(owner + chunk)
    start = tl.load(bounds + sequence) + (chunk - tl.load(first + sequence)) * C
    return start + tl.arange(0, C), tl.load(bounds + sequence + 1)


@triton.jit
def load_rows(source, tokens, end, head, H, W: tl.constexpr, columns):
    """float32 rows of source (tokens, H, W), 0 past the sequence's end or the width."""
    keep = (tokens[:, None] < end) & (columns[None] < W)
    return tl.load(source + (tokens[:, None] * H + head) * W + columns[None], mask=keep, other=0).to(tl.float32)


@triton.jit
def store_rows(target, rows, tokens, end, head, H, W: tl.constexpr, columns):
    keep = (tokens[:, None] < end) & (columns[None] < W)
    place = target + (tokens[:, None] * H + head) * W + columns[None]
    tl.store(place, rows.to(target.dtype.element_ty), mask=keep)


@triton.jit
def load_numbers(source, tokens, end, head, H):
    return tl.load(source + tokens * H + head, mask=tokens < end, other=0).to(tl.float32)


@triton.jit
def load_block(source, number, rows, columns, K: tl.constexpr, V: tl.constexpr):
    """A block of matrix `number` of source (numbers, K, V), float32."""
    keep = (rows[:, None] < K) & (columns[None] < V)
    place = source + number.to(tl.int64) * K * V + rows[:, None] * V + columns[None]
    return tl.load(place, mask=keep, other=0).to(tl.float32)


@triton.jit
def store_block(target, block, number, rows, columns, K: tl.constexpr, V: tl.constexpr):
    keep = (rows[:, None] < K) & (columns[None] < V)
    place = target + number.to(tl.int64) * K * V + rows[:, None] * V + columns[None]
    tl.store(place, block.to(target.dtype.element_ty), mask=keep)


@triton.jit
def load_decay(decay, tokens, end, head, H, K: tl.constexpr, columns):
    return tl.maximum(load_rows(decay, tokens, end, head, H, K, columns), FLOOR)


@triton.jit
def running_sums(decay, tokens, end, head, H):
    """A scalar decay's running sums in float64, and their last."""
    logs = tl.maximum(load_numbers(decay, tokens, end, head, H), FLOOR).to(tl.float64)
    return tl.cumsum(logs, 0), tl.sum(logs, 0)


@triton.jit
def chunk_decays(decay, tokens, end, head, H, K: tl.constexpr, columns, C: tl.constexpr, DECAY: tl.constexpr):
    """since and until, (C, 1 or columns), and total, (1 or columns,)."""
    if DECAY == 2:
        logs = load_decay(decay, tokens, end, head, H, K, columns)
        later = load_decay(decay, tokens + 1, end, head, H, K, columns)
        later = tl.where(tl.arange(0, C)[:, None] < C - 1, later, 0.0)
        since = tl.exp(tl.cumsum(logs, 0))
        until = tl.exp(tl.cumsum(later, 0, reverse=True))
        total = tl.exp(tl.sum(logs, 0))
    elif DECAY == 1:
        sums, last = running_sums(decay, tokens, end, head, H)
        since = tl.exp(sums.to(tl.float32))[:, None]
        until = tl.exp((last - sums).to(tl.float32))[:, None]
        total = tl.exp(tl.full((1,), 0.0, tl.float32) + last.to(tl.float32))
    else:
        since = tl.full((C, 1), 1.0, tl.float32)
        until = since
        total = tl.full((1,), 1.0, tl.float32)
    return since, until, total


@triton.jit
def between_tokens(decay, tokens, end, head, H, C: tl.constexpr, DECAY: tl.constexpr):
    """(C, C): the decay from token j to token i, 0 for j > i; scores under a diagonal decay have theirs already."""
    i = tl.arange(0, C)
    seen = i[:, None] >= i[None]
    if DECAY == 1:
        sums = running_sums(decay, tokens, end, head, H)[0]
        high = sums.to(tl.float32)
        low = (sums - high.to(tl.float64)).to(tl.float32)
        apart = (high[:, None] - high[None]) + (low[:, None] - low[None])
        weights = tl.where(seen, tl.exp(tl.where(seen, apart, 0.0)), 0.0)
    else:
        weights = tl.where(seen, 1.0, 0.0)
    return weights


@triton.jit
def chunk_scores(
    x, k, decay, stored, tokens, end, head, number, H,
    K: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, DECAY: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """A (C, C), lower triangular, decays in it."""
    i = tl.arange(0, C)
    if DECAY == 2:
        scores = load_block(stored, number, i, i, C, C)
    else:
        scores = tl.zeros((C, C), tl.float32)
        for k0 in range(0, K, BK):
            columns = k0 + tl.arange(0, BK)
            left = load_rows(x, tokens, end, head, H, K, columns)
            scores += dot(left, tl.trans(load_rows(k, tokens, end, head, H, K, columns)), P)
        scores *= between_tokens(decay, tokens, end, head, H, C, DECAY)
    return scores


@triton.jit
def join_blocks(decay, tokens, end, head, H, K: tl.constexpr, columns, C: tl.constexpr, SIZE: tl.constexpr):
    """Blocks of SIZE tokens in pairs: for rows of a later block the decay since its start, for those of an earlier the
    decay to its end, (C, columns), each 0 in the other half; and the pairs' mask (C, C)."""
    BK: tl.constexpr = columns.shape[0]
    i = tl.arange(0, C)
    late = (i // SIZE) % 2 == 1
    logs = tl.reshape(load_decay(decay, tokens, end, head, H, K, columns), (C // SIZE, SIZE, BK))
    later = load_decay(decay, tokens + 1, end, head, H, K, columns)
    later = tl.reshape(tl.where((i % SIZE < SIZE - 1)[:, None], later, 0.0), (C // SIZE, SIZE, BK))
    since = tl.exp(tl.reshape(tl.cumsum(logs, 1), (C, BK)))
    until = tl.exp(tl.reshape(tl.cumsum(later, 1, reverse=True), (C, BK)))
    pairs = (i[:, None] // (2 * SIZE) == i[None] // (2 * SIZE)) & late[:, None] & (~late[None])
    return tl.where(late[:, None], since, 0.0), tl.where(late[:, None], 0.0, until), pairs
