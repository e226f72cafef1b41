"""The selective scan of Mamba: S states for each channel, whose decays and inputs depend on the token.

    h_t = exp(delta_t A) h_{t-1} + delta_t u_t b_t^T          h and A (D, S); b_t and c_t (S,), shared by all channels
    y_t = h_t c_t

Mamba: Linear-Time Sequence Modeling with Selective State Spaces, arXiv 2312.00752, 2023.

"reference" is this definition, token by token. The fast form computes tiles of some tokens of some channels that stay
in a CPU's cache, so that (B,N,D,S) never stands in memory: decays, inputs and read-outs are computed for a whole tile
at once, and only h = a h + x goes from token to token, in place; where a graph is traced, and on a GPU, it goes in
rounds that join ever longer pieces instead. Backward is written by hand: it keeps the states between tiles and
computes the rest again, so memory is linear in N. With g_t the gradient of h_t:

    g_t = dy_t c_t^T + exp(delta_{t+1} A) g_{t+1},    w_t = g_t h_{t-1} exp(delta_t A)
    d(delta_t u_t) = g_t b_t,   db_t = g_t^T (delta_t u_t),   dc_t = h_t^T dy_t
    d delta_t = sum_S w_t A + u_t d(delta_t u_t),   dA = sum_t w_t delta_t
"""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

from formwright.ops.kernel_trial import draws, kernels_refused, trial
from formwright.ops.scan_triton import SelectiveScan, selective_refusal
from formwright.ops.tiles import Tile, Workspace, compute_dtype, tile_plan

BACKENDS = ("auto", "reference", "torch", "triton")
# Elements of the state that go from token to token together, and of one operand of a tile, on a CPU.
ROW, CACHED_ELEMENTS = 16 * 1024, 512 * 1024
# Tokens of a tile elsewhere.
TILE = 64
LOG2E = math.log2(math.e)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    state: Tensor | None = None,
    offsets: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The scan above: u, delta (B,N,D), a (D,S) <= 0, b and c (B,N,S) -> y (B,N,D) and the last state (B,D,S).

    state    (B,D,S) the state before the first token; zeros where None. Its dtype is that of the last state
    offsets  (R+1,) bounds of R sequences packed in one row (B = 1): the state starts anew at each, states are (R,D,S)
    backend  "reference" computes the definition by plain autograd; "torch" tiles, and one token directly; "triton"
             CUDA kernels; "auto" takes these on a GPU where they were right when they were first tried there

    Everything is differentiable, states included. Half precisions are computed in float32. Raises ValueError for
    shapes or backends that do not fit.
    """
    _check(u, delta, a, b, c, state, offsets, backend)
    (batch, tokens, dim), size = u.shape, a.shape[1]
    bounds = [(0, tokens)] if offsets is None else list(itertools.pairwise(offsets.tolist()))
    if state is None:
        state = u.new_zeros(batch if offsets is None else len(bounds), dim, size)
    with torch.autocast(u.device.type, enabled=False):
        if _kernels_refused(u.device, u.dtype, tokens, size, backend) is None:
            rows = bounds if offsets is not None else [(row * tokens, (row + 1) * tokens) for row in range(batch)]
            return SelectiveScan.apply(u, delta, a, b, c, state, rows)
        if tokens == 1 and offsets is None and backend != "reference":
            return _one_token(u, delta, a, b, c, state)
        if backend == "reference" or tokens == 1:
            return _reference(u, delta, a, b, c, state, None if offsets is None else bounds)
        width, group, chunk = _tile_sizes(u, size)
        tiles = tile_plan(batch, bounds, chunk, group, packed=offsets is not None)
        inputs = (u, delta, a, b, c, state, tiles, width)
        if torch.is_grad_enabled() and any(t.requires_grad for t in inputs[:6]):
            return _SelectiveScan.apply(*inputs)
        return _forward(*inputs, keep=False)[:2]


def explain(
    tokens: int,
    *,
    backend: str = "auto",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    states: int = 16,
) -> str:
    """What selective_scan computes for N = tokens and why."""
    if backend == "reference":
        return "recurrent: backend='reference' asks for the definition, one token after another"
    refused = _kernels_refused(torch.device(device), dtype, tokens, states, backend)
    if refused is None:
        why = "they were right when tried on this GPU" if backend == "auto" else "backend='triton' asks for them"
        return f"Triton's kernels, token after token with all states in registers: {why}"
    if tokens == 1:
        return "recurrent in PyTorch: a single token needs one step of the definition"
    tiles = "tiles in PyTorch: some tokens of some channels at a time stay in cache; (B,N,D,S) is never in memory"
    return f"{tiles}; not in Triton: {refused}"


def _kernels_refused(device: torch.device, dtype: torch.dtype, tokens: int, states: int, backend: str) -> str | None:
    """Why Triton's kernels don't compute this, None where they do."""
    able = functools.partial(selective_refusal, device, dtype, states)
    tried = functools.partial(kernels_tried, device, dtype, states, torch.is_grad_enabled())
    return kernels_refused(backend, tokens, device, able, tried)


@functools.cache
def kernels_tried(device: torch.device, dtype: torch.dtype, states: int, gradients: bool) -> str | None:
    """What was wrong with Triton's kernels when they were tried on this device, None where nothing was."""
    draw, wide, narrow = draws(), (2, 130, 33), (2, 130, states)
    shapes = {"u": wide, "delta": wide, "a": (33, states), "b": narrow, "c": narrow, "state": (2, 33, states)}
    inputs = {name: draw(shape) for name, shape in shapes.items()}
    inputs["delta"], inputs["a"] = inputs["delta"].sigmoid(), -inputs["a"].abs()

    def op(*tensors: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        return selective_scan(*tensors[:5], state=tensors[5], backend=backend)

    return trial(f"selective_scan ({dtype}, {states} states)", op, list(inputs.values()), device, dtype, gradients)


def macs(batch: int, tokens: int, dim: int, state: int) -> int:
    """Multiply-adds of one forward's matrix products, as FlopCounterMode counts them: reading out by c."""
    return batch * tokens * dim * state


def flops(batch: int, tokens: int, dim: int, state: int) -> int:
    """Element-wise operations of one forward, for Cost.other_flops: decay (2), input (1) and step (2)."""
    return batch * tokens * dim * (5 * state + 1)


def _reference(u, delta, a, b, c, state, bounds):
    dtype = compute_dtype(u.dtype)
    out_dtype, state_dtype = u.dtype, state.dtype
    u, delta, a, b, c, state = (t.to(dtype) for t in (u, delta, a, b, c, state))
    if bounds is None:
        y, h = _steps(u, delta, a, b, c, state)
        return y.to(out_dtype), h.to(state_dtype)
    ys, states = [], []
    for number, (start, stop) in enumerate(bounds):
        y, h = _steps(*(t[:, start:stop] for t in (u, delta)), a, b[:, start:stop], c[:, start:stop], state[[number]])
        ys, states = [*ys, y], [*states, h]
    return torch.cat(ys, 1).to(out_dtype), torch.cat(states).to(state_dtype)


def _steps(u, delta, a, b, c, h):
    ys = []
    for t in range(u.shape[1]):
        step = delta[:, t, :, None]
        h = torch.exp(step * a) * h + step * u[:, t, :, None] * b[:, t, None]
        ys.append(torch.matmul(h, c[:, t, :, None]).squeeze(2))
    return (torch.stack(ys, 1) if ys else u), h


def _one_token(u, delta, a, b, c, h):
    """The definition for one token in few operations: the length of a decoding step is their number."""
    dtype, out_dtype, state_dtype = compute_dtype(u.dtype), u.dtype, h.dtype
    u, delta, a, b, c, h = (t if t.dtype == dtype else t.to(dtype) for t in (u, delta, a, b, c, h))
    h = torch.exp2((delta * LOG2E).mT * a) * h
    h = torch.addcmul(h, (delta * u).mT, b)
    return torch.bmm(h, c.mT).mT.to(out_dtype), h.to(state_dtype)


def _tile_sizes(u: Tensor, size: int) -> tuple[int, int, int]:
    """(channels, rows of the batch, tokens) of a tile."""
    batch, tokens, dim = u.shape
    if u.device.type != "cpu":
        return dim, batch, min(tokens, TILE)
    width = min(dim, max(16, ROW // size))
    group = max(1, min(batch, ROW // (size * width)))
    return width, group, min(tokens, max(8, CACHED_ELEMENTS // (size * width * group)))


def _forward(u, delta, a, b, c, state, tiles, width, keep):
    """(y, last state, the states before each tile): blocks of channels in turn, and in each all tiles."""
    y, final, kept = torch.empty_like(u, memory_format=torch.contiguous_format), state.clone(), []
    work = Workspace(u)
    for low in range(0, u.shape[2], width):
        at = slice(low, low + width)
        rates = a[at].to(work.dtype).mT.contiguous()
        for tile in tiles:
            if tile.first:
                h = state[tile.state : tile.state_end, at].mT.to(work.dtype)
            if keep:
                kept.append(h.clone())
            decay, states, *_ = _states(u, delta, rates, b, tile, at, h, work)
            h = states[-1]
            rows = _rows(c, tile, work, "c").flatten(0, 1).unsqueeze(1)
            read = torch.bmm(rows, states[1:].flatten(0, 1), out=work("y", len(rows), 1, h.shape[-1]))
            _store(y[..., at], read.view(len(decay), -1, h.shape[-1]), tile)
            if tile.last:
                final[tile.state : tile.state_end, at] = h.mT.to(final.dtype)
    return y, final, kept


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, a, b, c, state, tiles, width):
        y, final, kept = _forward(u, delta, a, b, c, state, tiles, width, keep=True)
        ctx.save_for_backward(u, delta, a, b, c, state, *kept)
        ctx.tiles, ctx.width = tiles, width
        return y, final

    @staticmethod
    def backward(ctx, d_y, d_final):
        with torch.autocast(d_y.device.type, enabled=False):
            return (
                *_backward(*ctx.saved_tensors, tiles=ctx.tiles, width=ctx.width, d_y=d_y, d_final=d_final),
                None,
                None,
            )


def _backward(u, delta, a, b, c, state, *kept, tiles, width, d_y, d_final):
    """Gradients of (u, delta, a, b, c, state), all tiles from the last to the first."""
    work, at_kept = Workspace(u), len(kept)
    d_u, d_delta = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (u, delta))
    # Blocks of channels add up in these.
    d_a = torch.zeros_like(a, dtype=work.dtype)
    d_b, d_c = (torch.zeros_like(t, dtype=work.dtype, memory_format=torch.contiguous_format) for t in (b, c))
    d_state = d_final.clone()
    for low in reversed(range(0, u.shape[2], width)):
        at = slice(low, low + width)
        rates = a[at].to(work.dtype).mT.contiguous()
        d_rates = torch.zeros_like(rates)
        for tile in reversed(tiles):
            if tile.last:
                d_h = d_final[tile.state : tile.state_end, at].mT.to(work.dtype)
            at_kept -= 1
            decay, states, inputs, steps, moved = _states(u, delta, rates, b, tile, at, kept[at_kept], work)
            shape, flat = decay.shape, (decay.shape[0] * decay.shape[1], *decay.shape[2:])
            read = _rows(d_y[..., at], tile, work, "d_y")
            g = torch.mul(_rows(c, tile, work, "c")[..., None], read.unsqueeze(2), out=work("g", *shape))
            g, d_h = _scan_back(decay, g, d_h, work)
            # Gradients that sum over channels or over the state are products of a vector and a matrix a token: in this
            # order, for batches of a matrix and a vector are many times slower on CPUs.
            d_cs = torch.bmm(read.view(flat[0], 1, -1), states[1:].view(flat).mT)
            _add(d_c, d_cs.view(shape[:3]), tile)
            d_bs = torch.bmm(moved.view(flat[0], 1, -1), g.view(flat).mT)
            _add(d_b, d_bs.view(shape[:3]), tile)
            rows = _rows(b, tile, work, "b").reshape(flat[0], 1, -1)
            d_moved = torch.bmm(rows, g.view(flat), out=work("d_moved", flat[0], 1, shape[3])).view(steps.shape)
            _store(d_u[..., at], d_moved * steps, tile)
            flow = torch.mul(decay, states[:-1], out=work.onto(decay))
            flow = torch.mul(flow, g, out=work.onto(flow))
            d_rates += torch.mul(flow, steps.unsqueeze(2), out=work.onto(g)).sum((0, 1))
            by_rate = torch.mul(flow, rates, out=work.onto(flow)).sum(2)
            _store(d_delta[..., at], by_rate.addcmul_(d_moved, inputs), tile)
            if tile.first:
                d_state[tile.state : tile.state_end, at] = d_h.mT.to(d_state.dtype)
        d_a[at] = d_rates.mT
    return d_u, d_delta, d_a.to(a.dtype), d_b.to(b.dtype), d_c.to(c.dtype), d_state


def _states(u, delta, rates, b, tile, at, before, work):
    """One tile's decays (T,G,S,D), its states (T+1,G,S,D) from the one before it on, u, delta and their product."""
    inputs, steps = _rows(u[..., at], tile, work, "u"), _rows(delta[..., at], tile, work, "delta")
    moved = torch.mul(inputs, steps, out=work("moved", *inputs.shape))
    shape = (*inputs.shape[:2], *rates.shape)
    # Powers of 2 are several times cheaper than those of e on many CPUs.
    decay = torch.mul(steps.unsqueeze(2), rates * LOG2E, out=work("decay", *shape)).exp2_()
    rows = _rows(b, tile, work, "b")[..., None]
    states = work("states", shape[0] + 1, *shape[1:])
    if states is None:
        return decay, _scan(decay, torch.cat([before[None], moved.unsqueeze(2) * rows]), work), inputs, steps, moved
    states[0] = before
    torch.mul(moved.unsqueeze(2), rows, out=states[1:])
    return decay, _scan(decay, states, work), inputs, steps, moved


def _scan(decay: Tensor, h: Tensor, work: Workspace) -> Tensor:
    """h_{t+1} += decay_t h_t, h one longer than decay."""
    if work.buffers is None or h.device.type != "cpu":
        return _rounds(torch.cat([torch.ones_like(decay[:1]), decay]), h)
    # On a CPU one pass in place is several times cheaper than rounds, whatever its calls cost.
    rows = h.unbind(0)
    for t, factor in enumerate(decay.unbind(0)):
        rows[t + 1].addcmul_(factor, rows[t])
    return h


def _scan_back(decay: Tensor, g: Tensor, d_h: Tensor, work: Workspace) -> tuple[Tensor, Tensor]:
    """g_t += decay_{t+1} g_{t+1} after g_T += d_h; and the gradient of the state before the tile."""
    if work.buffers is None or g.device.type != "cpu":
        g = torch.cat([g[:-1], (g[-1] + d_h)[None]])
        g = _rounds(torch.cat([torch.ones_like(decay[:1]), decay[1:].flip(0)]), g.flip(0)).flip(0)
        return g, decay[0] * g[0]
    rows, factors = g.unbind(0), decay.unbind(0)
    rows[-1].add_(d_h)
    for t in range(len(rows) - 2, -1, -1):
        rows[t].addcmul_(factors[t + 1], rows[t + 1])
    return g, factors[0] * rows[0]


def _rounds(factors: Tensor, h: Tensor) -> Tensor:
    """h_t += factors_t h_{t-1} for t >= 1, in log2 rounds: each joins pieces twice as long."""
    reach = 1
    while reach < len(h):
        h = torch.cat([h[:reach], torch.addcmul(h[reach:], factors[reach:], h[:-reach])])
        factors = torch.cat([factors[:reach], factors[reach:] * factors[:-reach]])
        reach *= 2
    return h


def _rows(t: Tensor, tile: Tile, work: Workspace, name: str) -> Tensor:
    """A tile of t (B,N,E) as (T,G,E), contiguous."""
    rows = t[tile.row : tile.row_end, tile.start : tile.stop].transpose(0, 1)
    out = work(name, *rows.shape)
    return rows.to(work.dtype).contiguous() if out is None else out.copy_(rows)


def _store(out: Tensor, rows: Tensor, tile: Tile) -> None:
    out[tile.row : tile.row_end, tile.start : tile.stop] = rows.transpose(0, 1)


def _add(out: Tensor, rows: Tensor, tile: Tile) -> None:
    out[tile.row : tile.row_end, tile.start : tile.stop] += rows.transpose(0, 1)


def _check(u, delta, a, b, c, state, offsets, backend) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"selective_scan: backend is one of {', '.join(BACKENDS)}, not {backend!r}")
    if u.ndim != 3 or delta.shape != u.shape or u.shape[1] < 1:
        raise ValueError(
            f"selective_scan takes u and delta (B,N,D) with N >= 1, but got {tuple(u.shape)} and {tuple(delta.shape)}"
        )
    if a.ndim != 2 or a.shape[0] != u.shape[2]:
        raise ValueError(f"selective_scan: a must be (D,S) with D={u.shape[2]}, but is {tuple(a.shape)}")
    want = (*u.shape[:2], a.shape[1])
    if b.shape != want or c.shape != want:
        raise ValueError(
            f"selective_scan: b and c must be (B,N,S)={want}, but are {tuple(b.shape)} and {tuple(c.shape)}"
        )
    if offsets is not None:
        bounds = offsets.tolist()
        if u.shape[0] != 1 or bounds[0] != 0 or bounds[-1] != u.shape[1] or bounds != sorted(bounds):
            raise ValueError(f"selective_scan: offsets must rise from 0 to N={u.shape[1]} in one row, but are {bounds}")
    rows = u.shape[0] if offsets is None else len(offsets) - 1
    if state is not None and state.shape != (rows, *a.shape):
        raise ValueError(f"selective_scan: state must be {(rows, *a.shape)}, but is {tuple(state.shape)}")
