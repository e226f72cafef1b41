"""Triton kernels of the backward of ops.linear_recurrence's chunked form: the equations of
recurrence_triton_kernels.py, whose states, u, w and inverses they read. recurrence_triton.py launches them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from formwright.ops.recurrence_triton_tiles import (
    between_tokens,
    chunk_decays,
    chunk_scores,
    dot,
    join_blocks,
    load_block,
    load_decay,
    load_numbers,
    load_rows,
    place_of,
    store_block,
    store_rows,
)


@triton.jit
def _diagonal_backward(
    x, k, decay, d_scores, tokens, end, head, number, H, columns,
    K: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """What d_scores (C, C) gives x and k, (C, columns) each."""
    i = tl.arange(0, C)
    rows = load_rows(x, tokens, end, head, H, K, columns)
    keys = load_rows(k, tokens, end, head, H, K, columns)
    d_rows = tl.zeros_like(rows)
    d_keys = tl.zeros_like(keys)
    whole = load_block(d_scores, number, i, i, C, C)
    for level in tl.static_range(2):
        since, until, pairs = join_blocks(decay, tokens, end, head, H, K, columns, C, 16 << level)
        joined = tl.where(pairs, whole, 0.0)
        d_rows += dot(joined, keys * until, P) * since
        d_keys += dot(tl.trans(joined), rows * since, P) * until
    base = d_scores + number.to(tl.int64) * C * C
    apart = tl.zeros_like(rows)
    for step in range(16):
        at = 15 - step
        j = i // 16 * 16 + at
        seen = (i % 16 >= at)[:, None]
        near = load_rows(k, tokens - i + j, end, head, H, K, columns)
        d_rows += tl.where(seen, tl.load(base + i * C + j)[:, None] * near * tl.exp(apart), 0.0)
        apart += tl.where(seen, load_decay(decay, tokens - i + j, end, head, H, K, columns), 0.0)
    apart = tl.zeros_like(rows)
    for at in range(16):
        j = i // 16 * 16 + at
        logs = load_decay(decay, tokens - i + j, end, head, H, K, columns)
        apart += tl.where((i % 16 < at)[:, None], logs, 0.0)
        near = load_rows(x, tokens - i + j, end, head, H, K, columns)
        weight = tl.load(base + j * C + i)[:, None]
        d_keys += tl.where((i % 16 <= at)[:, None], weight * near * tl.exp(apart), 0.0)
    return d_rows, d_keys


@triton.jit
def write_backward(
    q, k, decay, stored, d_o, d_states, d_u, bounds, first, owner, H, scale,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, DECAY: tl.constexpr,
    DELTA: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """du of one chunk and head, for a tile of V; with the delta rule only its first term (walk_backward adds on)."""
    number = tl.program_id(0)
    head = number % H
    tokens, end = place_of(bounds, first, owner, number // H, C)
    columns = tl.program_id(1) * BV + tl.arange(0, BV)
    scores = chunk_scores(q, k, decay, stored, tokens, end, head, number, H, K, BK, C, DECAY, P)
    d_values = dot(tl.trans(scores), load_rows(d_o, tokens, end, head, H, V, columns) * scale, P)
    if not DELTA:
        for k0 in range(0, K, BK):
            rows = k0 + tl.arange(0, BK)
            until = chunk_decays(decay, tokens, end, head, H, K, rows, C, DECAY)[1]
            keys = load_rows(k, tokens, end, head, H, K, rows) * until
            d_values += dot(keys, load_block(d_states, number, rows, columns, K, V), P)
    store_rows(d_u, d_values, tokens, end, head, H, V, columns)


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
    ds = load_block(d_final, row, rows, columns, K, V)
    for back in range(stop - begin):
        chunk = stop - 1 - back
        tokens = start + (chunk - begin) * C + tl.arange(0, C)
        store_block(d_states, ds, chunk * H + head, rows, columns, K, V)
        since, until, total = chunk_decays(decay, tokens, end, head, H, K, rows, C, DECAY)
        x = load_rows(q, tokens, end, head, H, K, rows) * since
        change = dot(tl.trans(x), load_rows(d_o, tokens, end, head, H, V, columns) * scale, P)
        if DELTA:
            d_values = load_rows(d_u, tokens, end, head, H, V, columns)
            d_values += dot(load_rows(k, tokens, end, head, H, K, rows) * until, ds, P)
            store_rows(d_u, d_values, tokens, end, head, H, V, columns)
            change -= dot(tl.trans(load_rows(w, tokens, end, head, H, K, rows)), d_values, P)
        ds = ds * total[:, None] + change
    store_block(d_state, ds, row, rows, columns, K, V)


@triton.jit
def scores_backward(
    k, v, u, decay, beta, stored, inverse, states, d_o, d_u, d_v, d_beta, d_queried, d_keyed, bounds, first, owner, H,
    scale, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, DECAY: tl.constexpr,
    DELTA: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Gradients of A^q, and with the delta rule of A^k, v and beta, of one chunk and head."""
    number = tl.program_id(0)
    head = number % H
    tokens, end = place_of(bounds, first, owner, number // H, C)
    i = tl.arange(0, C)
    d_scores = tl.zeros((C, C), tl.float32)
    if DELTA:
        rate = load_numbers(beta, tokens, end, head, H)
        turned = tl.trans(load_block(inverse, number, i, i, C, C))
        d_system = tl.zeros((C, C), tl.float32)
        d_rate = tl.zeros((C,), tl.float32)
    for v0 in range(0, V, BV):
        columns = v0 + tl.arange(0, BV)
        written = tl.trans(load_rows(u, tokens, end, head, H, V, columns))
        d_scores += dot(load_rows(d_o, tokens, end, head, H, V, columns), written, P)
        if DELTA:
            d_right = dot(turned, load_rows(d_u, tokens, end, head, H, V, columns), P)
            store_rows(d_v, d_right * rate[:, None], tokens, end, head, H, V, columns)
            d_system -= dot(d_right, written, P)
            error = load_rows(v, tokens, end, head, H, V, columns)
            for k0 in range(0, K, BK):
                rows = k0 + tl.arange(0, BK)
                since = chunk_decays(decay, tokens, end, head, H, K, rows, C, DECAY)[0]
                keys = load_rows(k, tokens, end, head, H, K, rows) * since
                error -= dot(keys, load_block(states, number, rows, columns, K, V), P)
            d_rate += tl.sum(d_right * error, 1)
    d_scores = tl.where(i[:, None] >= i[None], d_scores * scale, 0.0)
    store_block(d_queried, d_scores, number, i, i, C, C)
    if DELTA:
        d_system = tl.where(i[:, None] > i[None], d_system, 0.0)
        scores = chunk_scores(k, k, decay, stored, tokens, end, head, number, H, K, BK, C, DECAY, P)
        d_rate += tl.sum(d_system * scores, 1)
        tl.store(d_beta + tokens * H + head, d_rate.to(d_beta.dtype.element_ty), mask=tokens < end)
        store_block(d_keyed, d_system * rate[:, None], number, i, i, C, C)


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
    tokens, end = place_of(bounds, first, owner, number // H, C)
    columns = tl.program_id(1) * BK + tl.arange(0, BK)
    i = tl.arange(0, C)
    d_x = tl.zeros((C, BK), tl.float32)
    d_x2 = tl.zeros((C, BK), tl.float32)
    d_end = tl.zeros((C, BK), tl.float32)
    meet = tl.zeros((BK,), tl.float32)
    for v0 in range(0, V, BV):
        across = v0 + tl.arange(0, BV)
        before = load_block(states, number, columns, across, K, V)
        ds = load_block(d_states, number, columns, across, K, V)
        d_x += dot(load_rows(d_o, tokens, end, head, H, V, across), tl.trans(before), P)
        d_end += dot(load_rows(u, tokens, end, head, H, V, across), tl.trans(ds), P)
        meet += tl.sum(before * ds, 1)
        if DELTA:
            d_x2 -= dot(load_rows(d_v, tokens, end, head, H, V, across), tl.trans(before), P)
    since, until, total = chunk_decays(decay, tokens, end, head, H, K, columns, C, DECAY)
    queries = load_rows(q, tokens, end, head, H, K, columns)
    keys = load_rows(k, tokens, end, head, H, K, columns)
    d_x *= scale * since
    d_end *= until
    if DECAY:
        meet = meet * total + tl.sum(keys * d_end, 0)
    if DECAY == 2:
        more, d_keys = _diagonal_backward(q, k, decay, d_queried, tokens, end, head, number, H, columns, K, C, P)
    else:
        between = between_tokens(decay, tokens, end, head, H, C, DECAY)
        weights = load_block(d_queried, number, i, i, C, C) * between
        more, d_keys = dot(weights, keys, P), dot(tl.trans(weights), queries, P)
    d_x += more
    d_end += d_keys
    if DELTA:
        d_x2 *= since
        if DECAY == 2:
            more, d_keys = _diagonal_backward(k, k, decay, d_keyed, tokens, end, head, number, H, columns, K, C, P)
        else:
            weights = load_block(d_keyed, number, i, i, C, C) * between
            more, d_keys = dot(weights, keys, P), dot(tl.trans(weights), keys, P)
        d_x2 += more
        d_end += d_keys
    store_rows(d_q, d_x, tokens, end, head, H, K, columns)
    store_rows(d_k, d_end + d_x2, tokens, end, head, H, K, columns)
    if DECAY:
        flow = queries * d_x + keys * (d_x2 - d_end)
        if DECAY == 2:
            store_rows(d_decay, tl.cumsum(flow, 0, reverse=True) + meet[None], tokens, end, head, H, K, columns)
        else:
            sums = tl.cumsum(tl.sum(flow, 1), 0, reverse=True) + tl.sum(meet, 0)
            place = d_decay + (tl.program_id(1) * N + tokens) * H + head
            tl.store(place, sums, mask=tokens < end)
