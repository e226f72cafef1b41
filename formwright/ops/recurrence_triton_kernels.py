"""Triton kernels of ops.linear_recurrence's chunked form; recurrence_triton.py launches them.

The equations are those of recurrence_chunked.py, x a row that reads (q; with the delta rule also k), with S, dS the
states before a chunk and their gradients after it, "since" the decay from the chunk's start to a token, "until" from
a token to the chunk's end, "total" that of the whole chunk:

    forward   A = scores;  T = (I + tril(beta A^k, -1))^-1;  u = T beta v - w S, w = T beta (k since)  |  u = v
              S' = total S + (k until)^T u;   o = scale (A^q u + (q since) S)
    backward  du = scale A^qT do + (k until) dS';   dS = total dS' + scale (q since)^T do - w^T du
              dA^q = scale do u^T;  d_right = T^T du;  dv = beta d_right;  dA^k = -beta tril(d_right u^T, -1)

One program walks the chunks of one sequence and head for a tile of V, where a state follows on the last; everything
else is one program a chunk, head and tile. Sequences are rows of one table (bounds, first chunk, owner of each chunk),
so that packed and plain batches are the same thing. Every exponent is a sum of log decays or a difference of running
sums taken where it is <= 0: a scalar decay's sums are kept as a pair of float32 (made in float64), a diagonal decay's
are added up within blocks of 16, 32 and 64 tokens that are joined pairwise, so that nothing cancels.
"""

from __future__ import annotations

import triton
import triton.language as tl

CHUNK = 64
NONE, SCALAR, DIAGONAL = 0, 1, 2
# exp(-110) is 0 in float32, and -inf would make differences of sums NaN.
FLOOR = tl.constexpr(-110.0)


@triton.jit
def _dot(a, b, P: tl.constexpr):
    return tl.dot(a, b, input_precision=P)


@triton.jit
def _place(bounds, first, owner, chunk, C: tl.constexpr):
    """The chunk's tokens (C,) and the token at which its sequence ends."""
    sequence = tl.load(owner + chunk)
    start = tl.load(bounds + sequence) + (chunk - tl.load(first + sequence)) * C
    return start + tl.arange(0, C), tl.load(bounds + sequence + 1)


@triton.jit
def _rows(source, tokens, end, head, H, W: tl.constexpr, columns):
    """float32 rows of source (tokens, H, W), 0 past the sequence's end or the width."""
    keep = (tokens[:, None] < end) & (columns[None] < W)
    return tl.load(source + (tokens[:, None] * H + head) * W + columns[None], mask=keep, other=0).to(tl.float32)


@triton.jit
def _store_rows(target, rows, tokens, end, head, H, W: tl.constexpr, columns):
    keep = (tokens[:, None] < end) & (columns[None] < W)
    place = target + (tokens[:, None] * H + head) * W + columns[None]
    tl.store(place, rows.to(target.dtype.element_ty), mask=keep)


@triton.jit
def _numbers(source, tokens, end, head, H):
    return tl.load(source + tokens * H + head, mask=tokens < end, other=0).to(tl.float32)


@triton.jit
def _block(source, number, rows, columns, K: tl.constexpr, V: tl.constexpr):
    """A block of matrix `number` of source (numbers, K, V), float32."""
    keep = (rows[:, None] < K) & (columns[None] < V)
    place = source + number.to(tl.int64) * K * V + rows[:, None] * V + columns[None]
    return tl.load(place, mask=keep, other=0).to(tl.float32)


@triton.jit
def _store_block(target, block, number, rows, columns, K: tl.constexpr, V: tl.constexpr):
    keep = (rows[:, None] < K) & (columns[None] < V)
    place = target + number.to(tl.int64) * K * V + rows[:, None] * V + columns[None]
    tl.store(place, block.to(target.dtype.element_ty), mask=keep)


@triton.jit
def _decay_rows(decay, tokens, end, head, H, K: tl.constexpr, columns):
    return tl.maximum(_rows(decay, tokens, end, head, H, K, columns), FLOOR)


@triton.jit
def _sums(decay, tokens, end, head, H):
    """A scalar decay's running sums in float64, and their last."""
    logs = tl.maximum(_numbers(decay, tokens, end, head, H), FLOOR).to(tl.float64)
    return tl.cumsum(logs, 0), tl.sum(logs, 0)


@triton.jit
def _decays(decay, tokens, end, head, H, K: tl.constexpr, columns, C: tl.constexpr, DECAY: tl.constexpr):
    """since and until, (C, 1 or columns), and total, (1 or columns,)."""
    if DECAY == 2:
        logs = _decay_rows(decay, tokens, end, head, H, K, columns)
        later = _decay_rows(decay, tokens + 1, end, head, H, K, columns)
        later = tl.where(tl.arange(0, C)[:, None] < C - 1, later, 0.0)
        since = tl.exp(tl.cumsum(logs, 0))
        until = tl.exp(tl.cumsum(later, 0, reverse=True))
        total = tl.exp(tl.sum(logs, 0))
    elif DECAY == 1:
        sums, last = _sums(decay, tokens, end, head, H)
        since = tl.exp(sums.to(tl.float32))[:, None]
        until = tl.exp((last - sums).to(tl.float32))[:, None]
        total = tl.exp(tl.full((1,), 0.0, tl.float32) + last.to(tl.float32))
    else:
        since = tl.full((C, 1), 1.0, tl.float32)
        until = since
        total = tl.full((1,), 1.0, tl.float32)
    return since, until, total


@triton.jit
def _between(decay, tokens, end, head, H, C: tl.constexpr, DECAY: tl.constexpr):
    """(C, C): the decay from token j to token i, 0 for j > i; scores under a diagonal decay have theirs already."""
    i = tl.arange(0, C)
    seen = i[:, None] >= i[None]
    if DECAY == 1:
        sums = _sums(decay, tokens, end, head, H)[0]
        high = sums.to(tl.float32)
        low = (sums - high.to(tl.float64)).to(tl.float32)
        apart = (high[:, None] - high[None]) + (low[:, None] - low[None])
        weights = tl.where(seen, tl.exp(tl.where(seen, apart, 0.0)), 0.0)
    else:
        weights = tl.where(seen, 1.0, 0.0)
    return weights


@triton.jit
def _scores(
    x, k, decay, stored, tokens, end, head, number, H,
    K: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, DECAY: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """A (C, C), lower triangular, decays in it."""
    i = tl.arange(0, C)
    if DECAY == 2:
        scores = _block(stored, number, i, i, C, C)
    else:
        scores = tl.zeros((C, C), tl.float32)
        for k0 in range(0, K, BK):
            columns = k0 + tl.arange(0, BK)
            left = _rows(x, tokens, end, head, H, K, columns)
            scores += _dot(left, tl.trans(_rows(k, tokens, end, head, H, K, columns)), P)
        scores *= _between(decay, tokens, end, head, H, C, DECAY)
    return scores


@triton.jit
def _join(decay, tokens, end, head, H, K: tl.constexpr, columns, C: tl.constexpr, SIZE: tl.constexpr):
    """Blocks of SIZE tokens in pairs: for rows of a later block the decay since its start, for those of an earlier the
    decay to its end, (C, columns), each 0 in the other half; and the pairs' mask (C, C)."""
    BK: tl.constexpr = columns.shape[0]
    i = tl.arange(0, C)
    late = (i // SIZE) % 2 == 1
    logs = tl.reshape(_decay_rows(decay, tokens, end, head, H, K, columns), (C // SIZE, SIZE, BK))
    later = _decay_rows(decay, tokens + 1, end, head, H, K, columns)
    later = tl.reshape(tl.where((i % SIZE < SIZE - 1)[:, None], later, 0.0), (C // SIZE, SIZE, BK))
    since = tl.exp(tl.reshape(tl.cumsum(logs, 1), (C, BK)))
    until = tl.exp(tl.reshape(tl.cumsum(later, 1, reverse=True), (C, BK)))
    pairs = (i[:, None] // (2 * SIZE) == i[None] // (2 * SIZE)) & late[:, None] & (~late[None])
    return tl.where(late[:, None], since, 0.0), tl.where(late[:, None], 0.0, until), pairs


@triton.jit
def diagonal_scores(
    x, k, decay, out, bounds, first, owner, H,
    K: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """A of one chunk and head under a decay per key channel."""
    number = tl.program_id(0)
    head = number % H
    tokens, end = _place(bounds, first, owner, number // H, C)
    i = tl.arange(0, C)
    scores = tl.zeros((C, C), tl.float32)
    for k0 in range(0, K, BK):
        columns = k0 + tl.arange(0, BK)
        rows = _rows(x, tokens, end, head, H, K, columns)
        keys = _rows(k, tokens, end, head, H, K, columns)
        for level in tl.static_range(2):
            since, until, pairs = _join(decay, tokens, end, head, H, K, columns, C, 16 << level)
            scores += tl.where(pairs, _dot(rows * since, tl.trans(keys * until), P), 0.0)
        apart = tl.zeros((C, BK), tl.float32)
        for step in range(16):
            at = 15 - step
            j = i // 16 * 16 + at
            seen = (i % 16 >= at)[:, None]
            near = _rows(k, tokens - i + j, end, head, H, K, columns)
            column = tl.sum(tl.where(seen, rows * near * tl.exp(apart), 0.0), 1)
            scores += tl.where(i[None] == j[:, None], column[:, None], 0.0)
            apart += tl.where(seen, _decay_rows(decay, tokens - i + j, end, head, H, K, columns), 0.0)
    _store_block(out, scores, number, i, i, C, C)


@triton.jit
def _diagonal_backward(
    x, k, decay, d_scores, tokens, end, head, number, H, columns,
    K: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """What d_scores (C, C) gives x and k, (C, columns) each."""
    i = tl.arange(0, C)
    rows = _rows(x, tokens, end, head, H, K, columns)
    keys = _rows(k, tokens, end, head, H, K, columns)
    d_rows = tl.zeros_like(rows)
    d_keys = tl.zeros_like(keys)
    whole = _block(d_scores, number, i, i, C, C)
    for level in tl.static_range(2):
        since, until, pairs = _join(decay, tokens, end, head, H, K, columns, C, 16 << level)
        joined = tl.where(pairs, whole, 0.0)
        d_rows += _dot(joined, keys * until, P) * since
        d_keys += _dot(tl.trans(joined), rows * since, P) * until
    base = d_scores + number.to(tl.int64) * C * C
    apart = tl.zeros_like(rows)
    for step in range(16):
        at = 15 - step
        j = i // 16 * 16 + at
        seen = (i % 16 >= at)[:, None]
        near = _rows(k, tokens - i + j, end, head, H, K, columns)
        d_rows += tl.where(seen, tl.load(base + i * C + j)[:, None] * near * tl.exp(apart), 0.0)
        apart += tl.where(seen, _decay_rows(decay, tokens - i + j, end, head, H, K, columns), 0.0)
    apart = tl.zeros_like(rows)
    for at in range(16):
        j = i // 16 * 16 + at
        logs = _decay_rows(decay, tokens - i + j, end, head, H, K, columns)
        apart += tl.where((i % 16 < at)[:, None], logs, 0.0)
        near = _rows(x, tokens - i + j, end, head, H, K, columns)
        weight = tl.load(base + j * C + i)[:, None]
        d_keys += tl.where((i % 16 <= at)[:, None], weight * near * tl.exp(apart), 0.0)
    return d_rows, d_keys


@triton.jit
def solve(
    k, v, decay, beta, stored, inverse, u, w, bounds, first, owner, H,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, DECAY: tl.constexpr,
    P: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The delta rule's T, T beta v into u and w of one chunk and head. Inverses of blocks of 1, 2, 4, ... are joined
    by [[A, 0], [B, D]]^-1 = [[A^-1, 0], [-D^-1 B A^-1, D^-1]], all blocks in one product."""
    number = tl.program_id(0)
    head = number % H
    tokens, end = _place(bounds, first, owner, number // H, C)
    i = tl.arange(0, C)
    rate = _numbers(beta, tokens, end, head, H)[:, None]
    lower = _scores(k, k, decay, stored, tokens, end, head, number, H, K, BK, C, DECAY, P) * rate
    t = tl.where(i[:, None] == i[None], 1.0, 0.0)
    for level in range(6):
        late = (i >> level) % 2 == 1
        pairs = (i[:, None] >> (level + 1) == i[None] >> (level + 1)) & late[:, None] & (~late[None])
        t -= _dot(_dot(t, tl.where(pairs, lower, 0.0), EXACT), t, EXACT)
    _store_block(inverse, t, number, i, i, C, C)
    for v0 in range(0, V, BV):
        columns = v0 + tl.arange(0, BV)
        values = _rows(v, tokens, end, head, H, V, columns) * rate
        _store_rows(u, _dot(t, values, P), tokens, end, head, H, V, columns)
    for k0 in range(0, K, BK):
        columns = k0 + tl.arange(0, BK)
        since = _decays(decay, tokens, end, head, H, K, columns, C, DECAY)[0]
        keys = _rows(k, tokens, end, head, H, K, columns) * since * rate
        _store_rows(w, _dot(t, keys, P), tokens, end, head, H, K, columns)


@triton.jit
def walk(
    k, u, w, decay, state, states, final, bounds, first, H,
    K: tl.constexpr, V: tl.constexpr, KK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, DECAY: tl.constexpr,
    DELTA: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The states before each chunk of one sequence and head, and the last; with the delta rule u -= w S in place."""
    row = tl.program_id(0)
    sequence, head = row // H, row % H
    rows = tl.arange(0, KK)
    columns = tl.program_id(1) * BV + tl.arange(0, BV)
    start, end = tl.load(bounds + sequence), tl.load(bounds + sequence + 1)
    begin, stop = tl.load(first + sequence), tl.load(first + sequence + 1)
    s = _block(state, row, rows, columns, K, V)
    for chunk in range(begin, stop):
        tokens = start + (chunk - begin) * C + tl.arange(0, C)
        _store_block(states, s, chunk * H + head, rows, columns, K, V)
        _, until, total = _decays(decay, tokens, end, head, H, K, rows, C, DECAY)
        values = _rows(u, tokens, end, head, H, V, columns)
        if DELTA:
            values -= _dot(_rows(w, tokens, end, head, H, K, rows), s, P)
            _store_rows(u, values, tokens, end, head, H, V, columns)
        keys = _rows(k, tokens, end, head, H, K, rows) * until
        s = s * total[:, None] + _dot(tl.trans(keys), values, P)
    _store_block(final, s, row, rows, columns, K, V)


@triton.jit
def read(
    q, k, u, decay, stored, states, o, bounds, first, owner, H, scale,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, DECAY: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """o of one chunk and head, for a tile of V."""
    number = tl.program_id(0)
    head = number % H
    tokens, end = _place(bounds, first, owner, number // H, C)
    columns = tl.program_id(1) * BV + tl.arange(0, BV)
    scores = _scores(q, k, decay, stored, tokens, end, head, number, H, K, BK, C, DECAY, P)
    y = _dot(scores, _rows(u, tokens, end, head, H, V, columns), P)
    for k0 in range(0, K, BK):
        rows = k0 + tl.arange(0, BK)
        since = _decays(decay, tokens, end, head, H, K, rows, C, DECAY)[0]
        y += _dot(_rows(q, tokens, end, head, H, K, rows) * since, _block(states, number, rows, columns, K, V), P)
    _store_rows(o, y * scale, tokens, end, head, H, V, columns)


@triton.jit
def write_backward(
    q, k, decay, stored, d_o, d_states, d_u, bounds, first, owner, H, scale,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, DECAY: tl.constexpr,
    DELTA: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """du of one chunk and head, for a tile of V; with the delta rule only its first term (walk_backward adds on)."""
    number = tl.program_id(0)
    head = number % H
    tokens, end = _place(bounds, first, owner, number // H, C)
    columns = tl.program_id(1) * BV + tl.arange(0, BV)
    scores = _scores(q, k, decay, stored, tokens, end, head, number, H, K, BK, C, DECAY, P)
    d_values = _dot(tl.trans(scores), _rows(d_o, tokens, end, head, H, V, columns) * scale, P)
    if not DELTA:
        for k0 in range(0, K, BK):
            rows = k0 + tl.arange(0, BK)
            until = _decays(decay, tokens, end, head, H, K, rows, C, DECAY)[1]
            keys = _rows(k, tokens, end, head, H, K, rows) * until
            d_values += _dot(keys, _block(d_states, number, rows, columns, K, V), P)
    _store_rows(d_u, d_values, tokens, end, head, H, V, columns)


@triton.jit
def walk_backward(
    q, k, w, decay, d_o, d_u, d_final, d_states, d_state, bounds, first, H, scale,
    K: tl.constexpr, V: tl.constexpr, KK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, DECAY: tl.constexpr,
    DELTA: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Gradients of the states after each chunk of one sequence and head, and of the first state; completes d_u."""
    row = tl.program_id(0)
    sequence, head = row // H, row % H
    rows = tl.arange(0, KK)
    columns = tl.program_id(1) * BV + tl.arange(0, BV)
    start, end = tl.load(bounds + sequence), tl.load(bounds + sequence + 1)
    begin, stop = tl.load(first + sequence), tl.load(first + sequence + 1)
    ds = _block(d_final, row, rows, columns, K, V)
    for back in range(stop - begin):
        chunk = stop - 1 - back
        tokens = start + (chunk - begin) * C + tl.arange(0, C)
        _store_block(d_states, ds, chunk * H + head, rows, columns, K, V)
        since, until, total = _decays(decay, tokens, end, head, H, K, rows, C, DECAY)
        x = _rows(q, tokens, end, head, H, K, rows) * since
        change = _dot(tl.trans(x), _rows(d_o, tokens, end, head, H, V, columns) * scale, P)
        if DELTA:
            d_values = _rows(d_u, tokens, end, head, H, V, columns)
            d_values += _dot(_rows(k, tokens, end, head, H, K, rows) * until, ds, P)
            _store_rows(d_u, d_values, tokens, end, head, H, V, columns)
            change -= _dot(tl.trans(_rows(w, tokens, end, head, H, K, rows)), d_values, P)
        ds = ds * total[:, None] + change
    _store_block(d_state, ds, row, rows, columns, K, V)


@triton.jit
def scores_backward(
    k, v, u, decay, beta, stored, inverse, states, d_o, d_u, d_v, d_beta, d_queried, d_keyed, bounds, first, owner, H,
    scale, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, DECAY: tl.constexpr,
    DELTA: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Gradients of A^q, and with the delta rule of A^k, v and beta, of one chunk and head."""
    number = tl.program_id(0)
    head = number % H
    tokens, end = _place(bounds, first, owner, number // H, C)
    i = tl.arange(0, C)
    d_scores = tl.zeros((C, C), tl.float32)
    if DELTA:
        rate = _numbers(beta, tokens, end, head, H)
        turned = tl.trans(_block(inverse, number, i, i, C, C))
        d_system = tl.zeros((C, C), tl.float32)
        d_rate = tl.zeros((C,), tl.float32)
    for v0 in range(0, V, BV):
        columns = v0 + tl.arange(0, BV)
        written = tl.trans(_rows(u, tokens, end, head, H, V, columns))
        d_scores += _dot(_rows(d_o, tokens, end, head, H, V, columns), written, P)
        if DELTA:
            d_right = _dot(turned, _rows(d_u, tokens, end, head, H, V, columns), P)
            _store_rows(d_v, d_right * rate[:, None], tokens, end, head, H, V, columns)
            d_system -= _dot(d_right, written, P)
            error = _rows(v, tokens, end, head, H, V, columns)
            for k0 in range(0, K, BK):
                rows = k0 + tl.arange(0, BK)
                since = _decays(decay, tokens, end, head, H, K, rows, C, DECAY)[0]
                keys = _rows(k, tokens, end, head, H, K, rows) * since
                error -= _dot(keys, _block(states, number, rows, columns, K, V), P)
            d_rate += tl.sum(d_right * error, 1)
    d_scores = tl.where(i[:, None] >= i[None], d_scores * scale, 0.0)
    _store_block(d_queried, d_scores, number, i, i, C, C)
    if DELTA:
        d_system = tl.where(i[:, None] > i[None], d_system, 0.0)
        scores = _scores(k, k, decay, stored, tokens, end, head, number, H, K, BK, C, DECAY, P)
        d_rate += tl.sum(d_system * scores, 1)
        tl.store(d_beta + tokens * H + head, d_rate.to(d_beta.dtype.element_ty), mask=tokens < end)
        _store_block(d_keyed, d_system * rate[:, None], number, i, i, C, C)


@triton.jit
def read_backward(
    q, k, u, decay, states, d_states, d_o, d_v, d_queried, d_keyed, d_q, d_k, d_decay, bounds, first, owner, H, N,
    scale, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, DECAY: tl.constexpr,
    DELTA: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Gradients of q, k and the log decay of one chunk and head, for a tile of K; a scalar decay's as one partial sum a
    tile (tiles, N, H). What depends on decays through x_i and k_j gives the log decay x dx - k dk, summed from
    each token to the chunk's end, and the state's part at the end."""
    number = tl.program_id(0)
    head = number % H
    tokens, end = _place(bounds, first, owner, number // H, C)
    columns = tl.program_id(1) * BK + tl.arange(0, BK)
    i = tl.arange(0, C)
    d_x = tl.zeros((C, BK), tl.float32)
    d_x2 = tl.zeros((C, BK), tl.float32)
    d_end = tl.zeros((C, BK), tl.float32)
    meet = tl.zeros((BK,), tl.float32)
    for v0 in range(0, V, BV):
        across = v0 + tl.arange(0, BV)
        before = _block(states, number, columns, across, K, V)
        ds = _block(d_states, number, columns, across, K, V)
        d_x += _dot(_rows(d_o, tokens, end, head, H, V, across), tl.trans(before), P)
        d_end += _dot(_rows(u, tokens, end, head, H, V, across), tl.trans(ds), P)
        meet += tl.sum(before * ds, 1)
        if DELTA:
            d_x2 -= _dot(_rows(d_v, tokens, end, head, H, V, across), tl.trans(before), P)
    since, until, total = _decays(decay, tokens, end, head, H, K, columns, C, DECAY)
    queries = _rows(q, tokens, end, head, H, K, columns)
    keys = _rows(k, tokens, end, head, H, K, columns)
    d_x *= scale * since
    d_end *= until
    if DECAY:
        meet = meet * total + tl.sum(keys * d_end, 0)
    if DECAY == 2:
        more, d_keys = _diagonal_backward(q, k, decay, d_queried, tokens, end, head, number, H, columns, K, C, P)
    else:
        between = _between(decay, tokens, end, head, H, C, DECAY)
        weights = _block(d_queried, number, i, i, C, C) * between
        more, d_keys = _dot(weights, keys, P), _dot(tl.trans(weights), queries, P)
    d_x += more
    d_end += d_keys
    if DELTA:
        d_x2 *= since
        if DECAY == 2:
            more, d_keys = _diagonal_backward(k, k, decay, d_keyed, tokens, end, head, number, H, columns, K, C, P)
        else:
            weights = _block(d_keyed, number, i, i, C, C) * between
            more, d_keys = _dot(weights, keys, P), _dot(tl.trans(weights), keys, P)
        d_x2 += more
        d_end += d_keys
    _store_rows(d_q, d_x, tokens, end, head, H, K, columns)
    _store_rows(d_k, d_end + d_x2, tokens, end, head, H, K, columns)
    if DECAY:
        flow = queries * d_x + keys * (d_x2 - d_end)
        if DECAY == 2:
            _store_rows(d_decay, tl.cumsum(flow, 0, reverse=True) + meet[None], tokens, end, head, H, K, columns)
        else:
            sums = tl.cumsum(tl.sum(flow, 1), 0, reverse=True) + tl.sum(meet, 0)
            place = d_decay + (tl.program_id(1) * N + tokens) * H + head
            tl.store(place, sums, mask=tokens < end)
