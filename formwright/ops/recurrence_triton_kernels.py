"""Triton kernels of ops.linear_recurrence's chunked form; recurrence_triton.py launches them.

The equations are those of recurrence_chunked.py, x a row that reads (q; with the delta rule also k), with S, dS the
states before a chunk and their gradients after it, "since" the decay from the chunk's start to a token, "until" from
a token to the chunk's end, "total" that of the whole chunk:

    forward   A = scores;  T = (I + tril(beta A^k, -1))^-1;  u = T beta v - w S, w = T beta (k since)  |  u = v
              S' = total S + (k until)^T u;   o = scale (A^q u + (q since) S)
    backward  du = scale A^qT do + (k until) dS';   dS = total dS' + scale (q since)^T do - w^T du
              dA^q = scale do u^T;  d_right = T^T du;  dv = beta d_right;  dA^k = -beta tril(d_right u^T, -1)

One program walks the chunks of one sequence and head for a tile of V, where a state follows on the last; everything
else is one program a chunk, head and tile. Backward is in recurrence_triton_backward.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from formwright.ops.recurrence_triton_tiles import (
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
def diagonal_scores(
    x, k, decay, out, bounds, first, owner, H,
    K: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """A of one chunk and head under a decay per key channel."""
    number = tl.program_id(0)
    head = number % H
    tokens, end = place_of(bounds, first, owner, number // H, C)
    i = tl.arange(0, C)
    scores = tl.zeros((C, C), tl.float32)
    for k0 in range(0, K, BK):
        columns = k0 + tl.arange(0, BK)
        rows = load_rows(x, tokens, end, head, H, K, columns)
        keys = load_rows(k, tokens, end, head, H, K, columns)
        for level in tl.static_range(2):
            since, until, pairs = join_blocks(decay, tokens, end, head, H, K, columns, C, 16 << level)
            scores += tl.where(pairs, dot(rows * since, tl.trans(keys * until), P), 0.0)
        apart = tl.zeros((C, BK), tl.float32)
        for step in range(16):
            at = 15 - step
            j = i // 16 * 16 + at
            seen = (i % 16 >= at)[:, None]
            near = load_rows(k, tokens - i + j, end, head, H, K, columns)
            column = tl.sum(tl.where(seen, rows * near * tl.exp(apart), 0.0), 1)
            scores += tl.where(i[None] == j[:, None], column[:, None], 0.0)
            apart += tl.where(seen, load_decay(decay, tokens - i + j, end, head, H, K, columns), 0.0)
    store_block(out, scores, number, i, i, C, C)


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
    tokens, end = place_of(bounds, first, owner, number // H, C)
    i = tl.arange(0, C)
    rate = load_numbers(beta, tokens, end, head, H)[:, None]
    lower = chunk_scores(k, k, decay, stored, tokens, end, head, number, H, K, BK, C, DECAY, P) * rate
    t = tl.where(i[:, None] == i[None], 1.0, 0.0)
    for level in range(6):
        late = (i >> level) % 2 == 1
        pairs = (i[:, None] >> (level + 1) == i[None] >> (level + 1)) & late[:, None] & (~late[None])
        t -= dot(dot(t, tl.where(pairs, lower, 0.0), EXACT), t, EXACT)
    store_block(inverse, t, number, i, i, C, C)
    for v0 in range(0, V, BV):
        columns = v0 + tl.arange(0, BV)
        values = load_rows(v, tokens, end, head, H, V, columns) * rate
        store_rows(u, dot(t, values, P), tokens, end, head, H, V, columns)
    for k0 in range(0, K, BK):
        columns = k0 + tl.arange(0, BK)
        since = chunk_decays(decay, tokens, end, head, H, K, columns, C, DECAY)[0]
        keys = load_rows(k, tokens, end, head, H, K, columns) * since * rate
        store_rows(w, dot(t, keys, P), tokens, end, head, H, K, columns)


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
    s = load_block(state, row, rows, columns, K, V)
    for chunk in range(begin, stop):
        tokens = start + (chunk - begin) * C + tl.arange(0, C)
        store_block(states, s, chunk * H + head, rows, columns, K, V)
        _, until, total = chunk_decays(decay, tokens, end, head, H, K, rows, C, DECAY)
        values = load_rows(u, tokens, end, head, H, V, columns)
        if DELTA:
            values -= dot(load_rows(w, tokens, end, head, H, K, rows), s, P)
            store_rows(u, values, tokens, end, head, H, V, columns)
        keys = load_rows(k, tokens, end, head, H, K, rows) * until
        s = s * total[:, None] + dot(tl.trans(keys), values, P)
    store_block(final, s, row, rows, columns, K, V)


@triton.jit
def read(
    q, k, u, decay, stored, states, o, bounds, first, owner, H, scale,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, DECAY: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """o of one chunk and head, for a tile of V."""
    number = tl.program_id(0)
    head = number % H
    tokens, end = place_of(bounds, first, owner, number // H, C)
    columns = tl.program_id(1) * BV + tl.arange(0, BV)
    scores = chunk_scores(q, k, decay, stored, tokens, end, head, number, H, K, BK, C, DECAY, P)
    y = dot(scores, load_rows(u, tokens, end, head, H, V, columns), P)
    for k0 in range(0, K, BK):
        rows = k0 + tl.arange(0, BK)
        since = chunk_decays(decay, tokens, end, head, H, K, rows, C, DECAY)[0]
        y += dot(
            load_rows(q, tokens, end, head, H, K, rows) * since, load_block(states, number, rows, columns, K, V), P
        )
    store_rows(o, y * scale, tokens, end, head, H, V, columns)
