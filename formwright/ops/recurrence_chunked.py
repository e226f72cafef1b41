"""The chunked form of ops.linear_recurrence: blocks of matrix products, with a backward written by hand.

Inside one chunk of C tokens, S the state before it, G_ij = prod_{j < s <= i} a_s, and x_i a row that reads (q_i; with
the delta rule also k_i):

    A_ij = sum_K x_i (G_ij k_j)  for j <= i         scores of reads against writes
    y_i  = x_i (G_i0 S)                              what the state before the chunk answers
    q:     o_i = y_i + sum_j A_ij u_j,               S' = G_C0 S + sum_j (G_Cj k_j) u_j^T
    plain: u = v;  delta rule: u_i = beta_i (v_i - y_i^k - sum_{j<i} A_ij^k u_j), a unit lower triangular system (the WY
    form of "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", arXiv 2406.06484, 2024; gated:
    arXiv 2412.06464, 2024).

Several chunks are computed together, as n = chunks x rows x heads independent blocks; from one to the next goes the
state alone, and with the delta rule u, which needs it.
recurrence_scores.py computes A for a decay that is one number per head and for one per key channel.
Backward keeps the states between chunks (N/C of them) and recomputes the rest. The gradient of log_decay needs no
products of its own: whatever depends on G through row i depends on x_i in the same way, so it is the running sum, from
the chunk's end, of x_i dx_i - k_i dk_i, plus S' dS' at the end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from formwright.ops.recurrence_delta import carried, solved, solved_back, unit_lower_inverse
from formwright.ops.recurrence_scores import running_sums, within_chunk, within_chunk_backward
from formwright.ops.tiles import Tile, Workspace, padded_size


def forward_tiles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor | None,
    state: Tensor,
    scale: float,
    tiles: list[Tile],
    keep: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(o, final state, what backward needs): all tiles in turn."""
    o, final, kept = torch.empty_like(v, memory_format=torch.contiguous_format), state.clone(), []
    work, s, sums = Workspace(q), state, running_sums(log_decay, tiles)
    for tile in tiles:
        if tile.first:
            s = _load_state(state, tile, work.dtype)
        x, keys, values, decay, rate = _load(q, k, v, log_decay, beta, scale, tile, work)
        n, size = x.shape[:2]
        scores, xe, ke, edges, _ = within_chunk(x, keys, decay, sums, tile, work, keep=False)
        place = _place(work, "states", s, tile.chunks, 0, fresh=keep)
        if rate is None:
            u, until = values, edges.until
            writes = ke if until is None else torch.mul(ke, until, out=work.onto(ke))
            added = torch.bmm(writes.mT, u, out=None if place is None else place[1:].flatten(0, 1))
            states = passed_on(s, added, edges.total, tile.chunks, place)
        else:
            system = torch.mul(scores[:, :, 1], -rate, out=None if keep else work("system", n, size, size))
            inverse = unit_lower_inverse(system, out=work.onto(system))
            u, states = solved(s, values, rate, inverse, xe, ke, edges, tile.chunks, work, place)
        s, before = states[-1], states[:-1].flatten(0, 1)
        # The decays between tokens are used up: where shapes agree, their memory serves again.
        queried = torch.bmm(xe[:, :, 0], before, out=work("between", *u.shape))
        if edges.since is not None:
            queried = torch.mul(queried, edges.since, out=work.onto(queried))
        _store(o, torch.baddbmm(queried, scores[:, :, 0], u, out=work.onto(queried)), tile)
        if keep:
            kept += [states] if rate is None else [inverse, states]
        if tile.last:
            final[tile.state : tile.state_end] = s.unflatten(0, (-1, state.shape[1])).to(final.dtype)
    return o, final, kept


def _place(work: Workspace, name: str, s: Tensor, chunks: int, at: int, fresh: bool = False) -> Tensor | None:
    """Memory for the states (chunks+1, n/chunks, K, V) between chunks, s already in its place; `fresh`: that lasts."""
    place = work(name, chunks + 1, *s.shape)
    if place is None:
        return None
    place = torch.empty_like(place) if fresh else place
    place[at].copy_(s)
    return place


def passed_on(
    s: Tensor, added: Tensor, total: Tensor | None, chunks: int, place: Tensor | None, back: bool = False
) -> Tensor:
    """The states (chunks+1, n/chunks, K, V) between chunks, S' = total S + added through each: s is the first of them,
    or with `back` the last. `place` (see `_place`) is where they are written; it may hold `added` where they go."""
    added = added.unflatten(0, (chunks, -1))
    total = None if total is None else total.unflatten(0, (chunks, -1))
    states = [s if place is None else place[chunks if back else 0]]
    for chunk in range(chunks - 1, -1, -1) if back else range(chunks):
        out = None if place is None else place[chunk + (not back)]
        states.append(carried(states[-1], added[chunk], None if total is None else total[chunk], out))
    if place is not None:
        return place
    return torch.stack(states[::-1] if back else states)


class ChunkedRecurrence(torch.autograd.Function):
    """forward_tiles with its backward. Memory: inputs, outputs, and one state a chunk."""

    @staticmethod
    def forward(ctx, q, k, v, log_decay, beta, state, scale, tiles):
        o, final, kept = forward_tiles(q, k, v, log_decay, beta, state, scale, tiles, keep=True)
        ctx.save_for_backward(q, k, v, log_decay, beta, state, *kept)
        ctx.scale, ctx.tiles = scale, tiles
        return o, final

    @staticmethod
    def backward(ctx, d_o, d_final):
        q, k, v, log_decay, beta, state, *kept = ctx.saved_tensors
        with torch.autocast(d_o.device.type, enabled=False):
            grads = backward_tiles(q, k, v, log_decay, beta, state, ctx.scale, ctx.tiles, kept, d_o, d_final)
        return *grads, None, None


def backward_tiles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor | None,
    state: Tensor,
    scale: float,
    tiles: list[Tile],
    kept: list[Tensor],
    d_o: Tensor,
    d_final: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of (q, k, v, log_decay, beta, state), all tiles in turn from the last to the first."""
    dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
    d_decay = None if log_decay is None else torch.empty_like(log_decay, memory_format=torch.contiguous_format)
    d_beta = None if beta is None else torch.empty_like(beta, memory_format=torch.contiguous_format)
    d_o, d_state, work, sums = d_o.contiguous(), d_final.clone(), Workspace(q), running_sums(log_decay, tiles)
    at, ds = len(kept), state
    for tile in reversed(tiles):
        if tile.last:
            ds = _load_state(d_final, tile, work.dtype)
        at -= 1
        before, after = kept[at][:-1].flatten(0, 1), kept[at][1:].flatten(0, 1)
        if beta is not None:
            at -= 1
            inverse = kept[at]
        x, keys, values, decay, rate = _load(q, k, v, log_decay, beta, scale, tile, work)
        n, size, reads, width = x.shape
        scores, xe, ke, edges, context = within_chunk(x, keys, decay, sums, tile, work, keep=True)
        since, until, total = edges
        dy = _rows(d_o, tile, size, work, "dy")
        d_u = torch.bmm(scores[:, :, 0].mT, dy, out=work("d_u", *values.shape))
        place = _place(work, "d_states", ds, tile.chunks, tile.chunks)
        if rate is None:
            u = values
            d_scores = torch.bmm(dy, u.mT, out=work("d_scores", n, size, size)).unsqueeze(2)
            seen = dy if since is None else torch.mul(dy, since, out=work.onto(dy))
            pushed = torch.bmm(xe[:, :, 0].mT, seen, out=None if place is None else place[:-1].flatten(0, 1))
            d_states = passed_on(ds, pushed, total, tile.chunks, place, back=True)
            d_after = d_states[1:].flatten(0, 1)
            writes = ke if until is None else torch.mul(ke, until, out=work("d_xe", *ke.shape))
            d_values = torch.baddbmm(d_u, writes, d_after, out=work.onto(d_u))
            seen = seen.unsqueeze(2)
        else:
            both = work("seen", n, size, 2, values.shape[2])  # for what reads as a query, and as a key
            if both is None:
                seen = dy if since is None else dy * since
            elif since is None:
                seen = both[:, :, 0].copy_(dy)
            else:
                seen = torch.mul(dy, since, out=both[:, :, 0])
            pushed = torch.bmm(xe[:, :, 0].mT, seen, out=None if place is None else place[:-1].flatten(0, 1))
            d_right, d_states = solved_back(
                ds, d_u, pushed, rate, inverse, xe, ke, edges, tile.chunks, work, place
            )  # fmt: skip
            d_after = d_states[1:].flatten(0, 1)
            error = torch.bmm(xe[:, :, 1], before, out=work("error", *values.shape))
            error = error if since is None else torch.mul(error, since, out=work.onto(error))
            error = torch.sub(values, error, out=work.onto(error))
            u = torch.bmm(inverse, rate * error, out=work("u", *values.shape))
            d_system = torch.bmm(d_right, u.mT, out=work("d_system", n, size, size)).neg_().tril_(-1)
            d_values = torch.mul(rate, d_right, out=work("d_values", *values.shape))
            _store(d_beta, (d_right * error).sum(-1) + (d_system * scores[:, :, 1]).sum(-1), tile)
            d_queried = torch.bmm(dy, u.mT, out=work("d_queried", n, size, size))
            d_scores = torch.stack((d_queried, rate * d_system), 2, out=work("d_scores", n, size, 2, size))
            lost = -rate if since is None else -rate * since
            if both is None:
                seen = torch.stack((seen, d_right * lost), 2)
            else:
                torch.mul(d_right, lost, out=both[:, :, 1])
                seen = both
        _store(dv, d_values, tile)
        ds, flat = d_states[0], seen.flatten(1, 2)
        sent = u if until is None else torch.mul(u, until, out=work.onto(u))
        d_xe = torch.bmm(flat, before.mT, out=work("d_xe", n, size * reads, width)).unflatten(1, (size, reads))
        d_ke = torch.bmm(sent, d_after.mT, out=work("d_ke", n, size, width))
        dx, d_keys = within_chunk_backward(x, keys, d_scores, d_xe, d_ke, context, work)
        if log_decay is not None:
            flow = torch.mul(x, dx, out=work.onto(x) if reads == 1 else work("flow", *x.shape))
            flow = flow.squeeze(2) if reads == 1 else flow.sum(2)
            flow = flow.addcmul_(keys, d_keys, value=-1)
            meet = torch.mul(after, d_after, out=work("meet", *after.shape))
            if log_decay.ndim == 3:
                flow, meet = flow.sum(-1, keepdim=True), meet.sum((1, 2))[:, None, None]
                _store(d_decay, _tail_sums(flow, meet)[..., 0], tile)
            else:
                _store(d_decay, _tail_sums(flow, meet.sum(2)[:, None]), tile)
        _store(dk, d_keys if rate is None else d_keys.add_(dx[:, :, 1]), tile)
        _store(dq, dx[:, :, 0].mul_(scale), tile)
        if tile.first:
            d_state[tile.state : tile.state_end] = ds.unflatten(0, (-1, state.shape[1])).to(d_state.dtype)
    return dq, dk, dv, d_decay, d_beta, d_state


def _rows(
    t: Tensor, tile: Tile, size: int, work: Workspace, name: str, scale: float = 1.0, into: Tensor | None = None
) -> Tensor:
    """A tile of scale * t, t (B,N,H) or (B,N,H,E), as (n, C) or (n, C, E), filled up with zeros to `size` tokens; in
    the memory of that name, or in `into`."""
    rows = t[tile.row : tile.row_end, tile.start : tile.stop].unflatten(1, (tile.chunks, -1))
    rows = rows.permute(1, 0, 3, 2, *range(4, rows.ndim))
    tokens = rows.shape[3]
    if into is None:
        out = work(name, *rows.shape[:3], size, *rows.shape[4:])
    else:
        out = into.unflatten(0, rows.shape[:3])
    if out is None:
        rows = (rows.to(work.dtype) * scale).flatten(0, 2)
        missing = size - tokens
        return F.pad(rows, (0, missing) if rows.ndim == 2 else (0, 0, 0, missing)) if missing else rows
    filled = out if tokens == size else out[:, :, :, :tokens]
    if scale == 1.0:
        filled.copy_(rows)
    else:
        torch.mul(rows.to(work.dtype), scale, out=filled)
    if tokens < size:
        out[:, :, :, tokens:] = 0
    return out.flatten(0, 2)


def _load_state(state: Tensor, tile: Tile, dtype: torch.dtype) -> Tensor:
    return state[tile.state : tile.state_end].flatten(0, 1).to(dtype)


def _load(q, k, v, log_decay, beta, scale, tile, work):
    """One tile's x (n,C,R,K) with R = 1, or 2 with the delta rule; k; v; log decay per channel; beta (n,C,1)."""
    size = tile.size
    if beta is not None or (log_decay is not None and log_decay.ndim == 4):
        size = padded_size(size)
    values = _rows(v, tile, size, work, "v")
    diagonal = log_decay is not None and log_decay.ndim == 4
    decay = _rows(log_decay, tile, size, work, "decay") if diagonal else None
    if beta is None:
        x = _rows(q, tile, size, work, "q", scale).unsqueeze(2)
        return x, _rows(k, tile, size, work, "k"), values, decay, None
    rate = _rows(beta, tile, size, work, "beta")[..., None]
    x = work("x", *values.shape[:2], 2, q.shape[3])
    if x is None:
        x = torch.stack((_rows(q, tile, size, work, "q", scale), _rows(k, tile, size, work, "k")), 2)
    else:
        _rows(q, tile, size, work, "q", scale, into=x[:, :, 0])
        _rows(k, tile, size, work, "k", into=x[:, :, 1])
    return x, x[:, :, 1], values, decay, rate


def _store(out: Tensor, rows: Tensor, tile: Tile) -> None:
    """Write (n, C) or (n, C, E) back to its place in (B,N,H) or (B,N,H,E)."""
    rows = rows[:, : tile.size].unflatten(0, (tile.chunks, tile.row_end - tile.row, -1))
    rows = rows.permute(1, 0, 3, 2, *range(4, rows.ndim))
    out[tile.row : tile.row_end, tile.start : tile.stop].unflatten(1, (tile.chunks, -1)).copy_(rows)


def _tail_sums(flow: Tensor, end: Tensor) -> Tensor:
    """Sums of flow (n,C,E) from each token to the chunk's end, plus `end`; for E > 1 by a product with ones, since
    running sums along a strided axis are slow."""
    tokens = flow.shape[1]
    if flow.shape[2] == 1:
        return flow.flip(1).cumsum(1).flip(1).add_(end)
    ones = torch.ones(tokens, tokens, dtype=flow.dtype, device=flow.device).triu_()
    return torch.matmul(ones, flow).add_(end)
