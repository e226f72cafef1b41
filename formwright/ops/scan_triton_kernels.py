"""Triton kernels of ops.linear_scan and ops.selective_scan; scan_triton.py launches them.

linear_scan      one program goes along a row for a tile of channels, tile of tokens after tile of tokens; within one,
                 neighbours are joined by an associative scan: (a', b') after (a, b) is (a' a, a' b + b').
selective_scan   one program goes along a sequence for a tile of channels, token after token, its states (D, S) in
                 registers. Every KEPT tokens the states are stored; backward goes from one of those to the next again,
                 writes the states between to a workspace, and comes back. Sums over channels (dB, dC) and over
                 sequences (dA) are left as one part a program: no order of additions is left to chance.

The equations, and those of backward, are in scan.py and selective_scan.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _after(early_factor, early, late_factor, late):
    return late_factor * early_factor, late_factor * early + late


@triton.jit
def scan_forward(a, b, state, h, N, D, T: tl.constexpr, W: tl.constexpr):
    """h of one row of a, b (B, N, D) and W channels, from state (B, D)."""
    row = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * W + tl.arange(0, W)
    inside = channels < D
    before = tl.load(state + row * D + channels, mask=inside, other=0.0)
    last = (tl.arange(0, T) == T - 1)[:, None]
    for start in range(0, N, T):
        tokens = start + tl.arange(0, T)
        keep = (tokens < N)[:, None] & inside[None]
        place = (row * N + tokens)[:, None] * D + channels[None]
        factor = tl.load(a + place, mask=keep, other=1.0)
        factor, joined = tl.associative_scan((factor, tl.load(b + place, mask=keep, other=0.0)), 0, _after)
        joined += factor * before[None]
        tl.store(h + place, joined, mask=keep)
        before = tl.sum(tl.where(last, joined, 0.0), 0)


@triton.jit
def scan_backward(a, h, state, d_h, d_a, d_b, d_state, N, D, T: tl.constexpr, W: tl.constexpr):
    """g_t = dh_t + a_{t+1} g_{t+1}, from the last token to the first; db = g, da_t = g_t h_{t-1}."""
    row = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * W + tl.arange(0, W)
    inside = channels < D
    start_state = tl.load(state + row * D + channels, mask=inside, other=0.0)
    after = tl.zeros((W,), a.dtype.element_ty)
    last = (tl.arange(0, T) == T - 1)[:, None]
    for start in range(0, N, T):
        tokens = N - 1 - (start + tl.arange(0, T))
        keep = (tokens >= 0)[:, None] & inside[None]
        place = (row * N + tokens)[:, None] * D + channels[None]
        later = (tokens < N - 1)[:, None]
        factor = tl.load(a + place + D, mask=keep & later, other=1.0)
        factor, g = tl.associative_scan((factor, tl.load(d_h + place, mask=keep, other=0.0)), 0, _after)
        g += factor * after[None]
        tl.store(d_b + place, g, mask=keep)
        first = (tokens == 0)[:, None]
        before = tl.load(h + place - D, mask=keep & (tokens > 0)[:, None], other=0.0)
        tl.store(d_a + place, g * tl.where(first, start_state[None], before), mask=keep)
        after = tl.sum(tl.where(last, g, 0.0), 0)
    # Past the first token nothing was added and every factor was 1: `after` is its g.
    head = tl.load(a + row * N * D + channels, mask=inside, other=0.0)
    tl.store(d_state + row * D + channels, head * after, mask=inside)


@triton.jit
def _numbers(source, token, WIDTH, places):
    # Tokens count from bounds in int64, so that no place overflows.
    return tl.load(source + token * WIDTH + places, mask=places < WIDTH, other=0.0).to(tl.float32)


@triton.jit
def selective_forward(
    u, delta, a, b, c, state, y, final, kept, bounds, first, D, S,
    W: tl.constexpr, SS: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """y of one sequence and W channels; the states before every KEPT-th of its tokens, and after the last."""
    sequence = tl.program_id(0).to(tl.int64)
    channels, states = tl.program_id(1) * W + tl.arange(0, W), tl.arange(0, SS)
    inside = (channels < D)[:, None] & (states < S)[None]
    place = channels[:, None] * S + states[None]
    rates = tl.load(a + place, mask=inside, other=0.0).to(tl.float32) * LOG2E
    h = tl.load(state + sequence * D * S + place, mask=inside, other=0.0).to(tl.float32)
    start, end = tl.load(bounds + sequence), tl.load(bounds + sequence + 1)
    slot = tl.load(first + sequence)
    for token in range(start, end):
        if (token - start) % KEPT == 0:
            tl.store(kept + (slot + (token - start) // KEPT) * D * S + place, h, mask=inside)
        step = _numbers(delta, token, D, channels)
        moved = step * _numbers(u, token, D, channels)
        h = tl.exp2(step[:, None] * rates) * h + moved[:, None] * _numbers(b, token, S, states)[None]
        read = tl.sum(h * _numbers(c, token, S, states)[None], 1)
        tl.store(y + token * D + channels, read.to(y.dtype.element_ty), mask=channels < D)
    tl.store(final + sequence * D * S + place, h, mask=inside)


@triton.jit
def selective_backward(
    u, delta, a, b, c, kept, d_y, d_final, d_u, d_delta, d_a, d_b, d_c, d_state, work, bounds, first, D, S, N,
    W: tl.constexpr, SS: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Gradients of one sequence and W channels: d_a (sequences, D, S), d_b and d_c (tiles of channels, N, S) in parts.
    work (programs, KEPT, W, SS) holds the states before the tokens of one stretch."""
    sequence, tile = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    channels, states = tile * W + tl.arange(0, W), tl.arange(0, SS)
    inside = (channels < D)[:, None] & (states < S)[None]
    place = channels[:, None] * S + states[None]
    rates = tl.load(a + place, mask=inside, other=0.0).to(tl.float32)
    start, end = tl.load(bounds + sequence), tl.load(bounds + sequence + 1)
    slot = tl.load(first + sequence)
    mine = work + (sequence * tl.num_programs(1) + tile) * KEPT * W * SS
    inner = tl.arange(0, W)[:, None] * SS + states[None]
    g = tl.load(d_final + sequence * D * S + place, mask=inside, other=0.0).to(tl.float32)
    d_rates = tl.zeros((W, SS), tl.float32)
    stretches = (end - start + KEPT - 1) // KEPT
    for back in range(stretches):
        stretch = stretches - 1 - back
        low = start + stretch * KEPT
        size = tl.minimum(KEPT, end - low)
        h = tl.load(kept + (slot + stretch) * D * S + place, mask=inside, other=0.0)
        tl.debug_barrier()
        for i in range(size):
            tl.store(mine + i * W * SS + inner, h)
            step = _numbers(delta, low + i, D, channels)
            moved = step * _numbers(u, low + i, D, channels)
            h = tl.exp2(step[:, None] * rates * LOG2E) * h + moved[:, None] * _numbers(b, low + i, S, states)[None]
        tl.debug_barrier()
        for i in range(size):
            token = low + size - 1 - i
            step, x = _numbers(delta, token, D, channels), _numbers(u, token, D, channels)
            keys = _numbers(b, token, S, states)
            read = _numbers(d_y, token, D, channels)
            g += read[:, None] * _numbers(c, token, S, states)[None]
            at = (tile * N + token) * S + states
            tl.store(d_c + at, tl.sum(h * read[:, None], 0), mask=states < S)
            tl.store(d_b + at, tl.sum(g * (step * x)[:, None], 0), mask=states < S)
            h = tl.load(mine + (size - 1 - i) * W * SS + inner)
            g_decayed = g * tl.exp2(step[:, None] * rates * LOG2E)
            d_moved = tl.sum(g * keys[None], 1)
            flow = g_decayed * h
            d_rates += flow * step[:, None]
            d_step = tl.sum(flow * rates, 1) + x * d_moved
            out = token * D + channels
            tl.store(d_u + out, (d_moved * step).to(d_u.dtype.element_ty), mask=channels < D)
            tl.store(d_delta + out, d_step.to(d_delta.dtype.element_ty), mask=channels < D)
            g = g_decayed
    tl.store(d_a + sequence * D * S + place, d_rates, mask=inside)
    tl.store(d_state + sequence * D * S + place, g, mask=inside)
