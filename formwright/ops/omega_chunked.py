"""The chunked form of ops.omega_rule: what tokens do to each other's errors in a chunk, by products and one system.

Let row r be a token i seen by a block (block + c - 1 rows each), and R_r its error v_i - M^T phi(k_i) at that block's
start. What an error adds to a memory later is a number: with D_ts =
sum_{s<=r<=t} (alpha_{r+1}..alpha_t) (theta_{s+1}..theta_r), a product of two triangular matrices, the row's weight in
M_t is W_tr = sum over steps s <= t of its block, whose window holds i, of D_ts eta_s gamma_i. In a chunk of some blocks

    R_r = v_i - (a_n M + b_n S)^T phi_i - sum_r' W_nr' (phi_i . phi_r') R_r'              n the token before r's block
    o_t = (a_t M + b_t S)^T phi(q_t) + sum_r W_tr (phi(q_t) . phi_r) R_r

M and S those before the chunk: a unit lower triangular system, none where the chunk is one block. Products of phi in
sums need no phi, only powers of x . y. Newton-Schulz is taken for all tokens of a block at once; backward makes that
again instead of keeping it. Memory is linear in N.
Newton-Schulz with Muon's coefficients: Muon is Scalable for LLM Training, arXiv 2502.16982, 2025.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from formwright.ops.polynomials import expanded, kernel

# About as many rows make one triangular system.
ROWS = 128
# Elements of what one group of chunks prepares together: on a CPU it should stay in cache.
CACHED_ELEMENTS = 512 * 256
# Logarithms of gates below this are those of nothing: the factor is less than float64 resolves.
LOWEST = -50.0
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Piece(NamedTuple):
    """Tokens start..stop in chunks of `size`, of blocks of `block` tokens; continued: they go on with a block begun."""

    start: int
    stop: int
    size: int
    block: int
    continued: bool


def pieces(tokens: int, position: int, window: int, block: int, muon: int) -> list[Piece]:
    """The rest of a block begun before, whole blocks, and the beginning of one."""
    found, start = [], 0
    if position:
        start = min(block - position, tokens)
        found.append(Piece(0, start, start, start, True))
    whole = (tokens - start) // block
    if whole:
        blocks = 1 if muon else max(1, min(whole, ROWS // (block + window - 1)))
        found.append(Piece(start, start + whole * block, blocks * block, block, False))
        start += whole * block
    if start < tokens:
        found.append(Piece(start, tokens, tokens - start, tokens - start, False))
    return found


def chunks(tokens, weights, memory, momentum, anchor, position, window, block, muon):
    q, log_alpha, eta, log_theta, keys, values, gammas = tokens
    outs = []
    for piece in pieces(q.shape[2], position, window, block, muon):
        if not piece.continued:
            anchor = memory
        whole = piece.start == 0 and piece.stop == q.shape[2]
        here = [t if whole or t is None else t[:, :, piece.start : piece.stop] for t in (q, log_alpha, eta, log_theta)]
        seen = [t if whole else t[:, :, piece.start : piece.stop + window - 1] for t in (keys, values, gammas)]
        o, memory, momentum = _piece(here, seen, weights, memory, momentum, anchor, piece, window, muon)
        outs.append(o)
    return torch.cat(outs, 2) if len(outs) > 1 else outs[0], memory, momentum, anchor


def newton_schulz(x: Tensor, steps: int, eps: float = 1e-6) -> Tensor:
    """x (..., F, V) with its singular values brought near 1, by Muon's odd polynomial of degree 5, `steps` times."""
    a, b, c = NEWTON_SCHULZ
    tall = x.shape[-2] > x.shape[-1]
    x = x * torch.rsqrt(x.square().sum((-2, -1), keepdim=True) + eps * eps)
    for _ in range(steps):
        gram = x.mT @ x if tall else x @ x.mT
        gram = b * gram + c * (gram @ gram)
        x = a * x + (x @ gram if tall else gram @ x)
    return x


def _piece(here, seen, weights, memory, momentum, anchor, piece, window, muon):
    (q, *gates), size, count = here, piece.size, piece.stop - piece.start
    missing, many, outs = -count % size, size > piece.block, []
    # (B,H,chunks,C,...), keys (B,H,chunks,C+c-1,...). Tokens that fill up the last chunk write, forget and add nothing.
    emit = torch.ones_like(q[..., 0])
    q, *gates = (t if t is None else _filled(t, missing).unflatten(2, (-1, size)) for t in (q, *gates, emit))
    keys, values, gammas = (_filled(t, missing).unfold(2, size + window - 1, size) for t in seen)
    chunks = [q, *gates, keys.mT, values.mT, gammas]
    together = 1 if muon else max(1, CACHED_ELEMENTS // (q[:, :, 0].numel() // q.shape[-1] * ROWS))
    for group in zip(*(_split(t, together) for t in chunks), strict=False):
        if muon:
            run = _muon_chunk if torch.compiler.is_compiling() or not torch.is_grad_enabled() else _muon_again
            inputs = [t if t is None else t.squeeze(2) for t in group]
            o, memory, momentum = run(memory, momentum, anchor, *inputs, weights, window, muon)
            anchor = memory
            outs.append(o)
            continue
        rows, *prepared = _prepare(*group, weights, piece.block, window, many)
        for one in zip(*(_split(t, None) for t in prepared), strict=False):
            o, memory, momentum = _chunk(memory, momentum, anchor, rows, *one)
            anchor = memory
            outs.append(o)
    return torch.cat(outs, 2)[:, :, :count], memory, momentum


def _filled(t: Tensor, missing: int) -> Tensor:
    """(B,H,N,...) with zeros after it."""
    return t if not missing else F.pad(t, (0,) * (2 * (t.ndim - 3)) + (0, missing))


def _split(t: Tensor | None, together: int | None) -> Iterable:
    """The chunks of (B,H,chunks,...) one by one, or so many together."""
    if t is None:
        return itertools.repeat(None)
    return t.unbind(2) if together is None else t.split(together, 2)


def _decays(log: Tensor) -> tuple[Tensor, Tensor]:
    """log (...,C) -> the products of factors after r up to t (...,C,C), those up to t (...,C)."""
    # In float64, for the differences of sums of strong decays would be coarse in float32.
    total = log.clamp(min=LOWEST).double().cumsum(-1)
    between = total.unsqueeze(-1) - total.unsqueeze(-2)
    later = torch.ones(log.shape[-1:] * 2, dtype=torch.bool, device=log.device).triu(1)
    return between.masked_fill(later, -math.inf).to(log.dtype).exp(), total.to(log.dtype).exp()


def _band(block: int, window: int, like: Tensor) -> Tensor:
    """(block, block + c - 1): 1 where a step of a block sees a token, counted from the first its window holds."""
    ahead = torch.arange(block + window - 1, device=like.device) - torch.arange(block, device=like.device)[:, None]
    return ((ahead >= 0) & (ahead < window)).to(like.dtype)


def _seen_rows(size: int, block: int, window: int, device: torch.device) -> Tensor:
    """The rows of a chunk: the numbers of the keys its blocks see, block after block."""
    ahead = torch.arange(block + window - 1, device=device)
    return (torch.arange(0, size, block, device=device)[:, None] + ahead).flatten()


def _prepare(q, log_alpha, eta, log_theta, emit, keys, values, gamma, weights, block, window, many):
    """All of some chunks that needs no memory, in the order of `_chunk`; planes are M and, with momentum, S.

    rows   the key of every row; None where the chunk is one block, whose rows are its keys
    phi    (...,E+C,F) of keys and queries;  target (...,R,V) the values of rows
    known  (...,R,planes) how much of the memories before the chunk there is at a row's block; None for one block
    system (...,R,R) rows on earlier blocks' rows, below the diagonal; None for one block
    old    (...,C,planes) how much of the memories before the chunk there is at each token
    read   (...,C,R) rows on outputs;  write (...,R,planes) rows on the last memories
    hold   (...,1,1) how much of S is left of S; None without momentum
    """
    size, ahead, momentum = q.shape[-2], block + window - 1, log_theta is not None
    keep, a = _decays(log_alpha)
    old = a.unsqueeze(-1)
    effect, carry, hold = keep, [], None
    if momentum:
        between, held = _decays(log_theta)
        joined = (keep * emit.unsqueeze(-2)) @ torch.cat([between, held.unsqueeze(-1)], -1)
        effect, carry, hold = joined[..., :-1], [between[..., -1:, :]], held[..., -1:, None]
        old = torch.cat([old, joined[..., -1:]], -1)
    # Before the first token nothing is written; the last token's row stands for M, the one after for S.
    effect = torch.cat([torch.zeros_like(keep[..., :1, :]), effect, *carry], -2) * eta.unsqueeze(-2)
    if block == 1:
        effect = effect.repeat_interleave(ahead, -1)
    else:
        effect = (effect.unflatten(-1, (-1, block)) @ _band(block, window, q)).flatten(-2)
    phi = expanded(torch.cat([keys, q], -2), weights)
    rows = known = system = None
    if many:
        rows = _seen_rows(size, block, window, q.device)
        keys, values, gamma = (t.index_select(3, rows) for t in (keys, values, gamma))
    effect = effect * gamma.unsqueeze(-2)
    if many:
        products = kernel(keys, keys, weights).unflatten(-2, (-1, ahead))
        system = (products * effect[..., 0:size:block, None, :]).flatten(-3, -2)
        # Before the first token there is all of M and nothing of S.
        first = torch.zeros_like(old[..., :1, :]).index_fill(-1, rows[:1], 1.0)
        known = torch.cat([first, old], -2)[..., 0:size:block, :].repeat_interleave(ahead, -2)
    read = kernel(q, keys, weights) * effect[..., 1 : size + 1, :]
    return rows, phi, values, known, system, old, read, effect[..., size:, :].mT, hold


def _chunk(memory, momentum, anchor, rows, phi, target, known, system, old, read, write, hold):
    size, value, planes = read.shape[-2], target.shape[-1], write.shape[-1]
    seen = phi.shape[-2] - size
    both = memory if momentum is None else torch.cat([memory, momentum], -1)
    keys, queries = phi.split([seen, size], -2)
    if rows is None:
        error, asked = target - keys @ anchor, queries @ both
    else:
        told, asked = (phi @ both).split([seen, size], -2)
        right = target - _weighed(told.index_select(-2, rows), known)
        error = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    o = read @ error + _weighed(asked, old)
    added = (error.unsqueeze(-2) * write.unsqueeze(-1)).flatten(-2)
    if rows is not None:
        added = added.new_zeros(*added.shape[:-2], seen, planes * value).index_add(-2, rows, added)
    added = keys.mT @ added
    memory = _weighed(both, old[..., -1:, :]) + added[..., :value]
    return o, memory, None if momentum is None else hold * momentum + added[..., value:]


def _weighed(planes: Tensor, weights: Tensor) -> Tensor:
    """The sum of planes (...,R,planes V), weighted by (...,R,planes): (...,R,V)."""
    if weights.shape[-1] == 1:
        return planes * weights
    first, second = planes.chunk(2, -1)
    return first * weights[..., :1] + second * weights[..., 1:]


def _muon_again(*inputs):
    """_muon_chunk whose backward computes the memories of all tokens again instead of keeping them."""
    return checkpoint(_muon_chunk, *inputs, use_reentrant=False, preserve_rng_state=False)


def _muon_chunk(
    memory, momentum, anchor, q, log_alpha, eta, log_theta, emit, keys, values, gamma, weights, window, steps
):
    size = q.shape[-2]
    near, asked = expanded(torch.cat([keys, q], -2).unsqueeze(2), weights).squeeze(2).split([keys.shape[-2], size], -2)
    error = gamma.unsqueeze(-1) * (values - near @ anchor)
    weight = eta.unsqueeze(-1) * _band(size, window, q)
    if log_theta is not None:
        between, held = _decays(log_theta)
        weight = between @ weight
    # (B,H,C,F,V): the gradients of all tokens, weighted and summed up to each.
    each = (near.unsqueeze(-1) * error.unsqueeze(-2)).flatten(-2)
    sums = (weight @ each).unflatten(-1, memory.shape[-2:])
    if log_theta is not None:
        sums = sums + held[..., None, None] * momentum.unsqueeze(2)
        momentum = sums[:, :, -1].clone()
    keep, a = _decays(log_alpha)
    steered = eta[..., None, None] * newton_schulz(sums, steps)
    memories = (keep @ steered.flatten(-2)).unflatten(-1, memory.shape[-2:]) + a[..., None, None] * memory.unsqueeze(2)
    o = (asked.unsqueeze(-2) @ memories).squeeze(-2)
    # Views would keep the memories of all tokens.
    return o, memories[:, :, -1].clone(), momentum
