"""The Omega rule: a memory trained, as it reads, by gradient descent on the last c tokens instead of the last one.

    loss_t(M) = 1/2 sum_{t-c < i <= t} gamma_i |M^T phi(k_i) - v_i|^2              gamma_i in 0..1: what of i is learned
    S_t = theta_t S_{t-1} - eta_t dloss_t(M_n(t)),     M_t = alpha_t M_{t-1} + S_t,     o_t = M_t^T phi(q_t)

n(t) is the last token before t's block of `block` tokens: with block=1 the gradient is taken at M_{t-1}, the rule
itself; with more at the memory the block began with, as the paper trains in parallel. Without theta there is no
momentum, S_t = -eta_t dloss_t (OmegaNet). With muon > 0 M_t = alpha_t M_{t-1} + eta_t NewtonSchulz(S_t), which brings
all singular values of S_t near 1 in so many steps (Atlas). Blocks are counted from the first token; before it the
window is empty.

phi are the monomials of x up to a degree p, each degree weighted: phi(x) . phi(y) = sum_n w_n^2 (x . y)^n, so that
w_n^2 = 1/n! is the exponential's Taylor series; there are binomial(K+p, p) = F of them.

"recurrent" is this definition. "chunked": let row r be a token i seen by a block (block + c - 1 rows each), and R_r its
error v_i - M^T phi(k_i) at that block's start. What an error adds to a memory later is a number: with D_ts =
sum_{s<=r<=t} (alpha_{r+1}..alpha_t) (theta_{s+1}..theta_r), a product of two triangular matrices, the row's weight in
M_t is W_tr = sum over steps s <= t of its block, whose window holds i, of D_ts eta_s gamma_i. In a chunk of some blocks

    R_r = v_i - (a_n M + b_n S)^T phi_i - sum_r' W_nr' (phi_i . phi_r') R_r'              n the token before r's block
    o_t = (a_t M + b_t S)^T phi(q_t) + sum_r W_tr (phi(q_t) . phi_r) R_r

M and S those before the chunk: a unit lower triangular system, none where the chunk is one block. Products of phi in
sums need no phi, only powers of x . y. Newton-Schulz is taken for all tokens of a block at once; backward makes that
again instead of keeping it. Memory is linear in N.
ATLAS: Learning to Optimally Memorize the Context at Test Time, arXiv 2505.23735, 2025; Newton-Schulz with Muon's
coefficients: Muon is Scalable for LLM Training, arXiv 2502.16982, 2025.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from formwright.ops.tiles import compute_dtype

FORMS = ("auto", "recurrent", "chunked")
BACKENDS = ("auto", "reference", "torch")
# About as many rows make one triangular system.
ROWS = 128
# Elements of what one group of chunks prepares together: on a CPU it should stay in cache.
CACHED_ELEMENTS = 512 * 256
# Logarithms of gates below this are those of nothing: the factor is less than float64 resolves.
LOWEST = -50.0
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class OmegaState(NamedTuple):
    """What the rule needs of the tokens before.

    memory    (B,H,F,V) M
    momentum  (B,H,F,V) S; None without momentum
    anchor    (B,H,F,V) the memory the current block began with; None where block is 1
    keys, values, gamma   (B,c-1,H,K), (B,c-1,H,V), (B,c-1,H) the last tokens; gamma is 0 where there was none
    position  tokens of the current block that have been read
    """

    memory: Tensor
    momentum: Tensor | None
    anchor: Tensor | None
    keys: Tensor
    values: Tensor
    gamma: Tensor
    position: int = 0


def omega_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    weights: Tensor,
    log_alpha: Tensor,
    eta: Tensor,
    gamma: Tensor,
    log_theta: Tensor | None = None,
    window: int = 1,
    block: int = 1,
    muon: int = 0,
    state: OmegaState | None = None,
    form: str = "auto",
    backend: str = "auto",
) -> tuple[Tensor, OmegaState]:
    """The rule above: q, k (B,N,H,K), v (B,N,H,V) -> o (B,N,H,V) and the state after the last token.

    weights    (H,p+1) w_n of the degrees 0..p
    log_alpha  (B,N,H) <= 0, the logarithm of what M keeps;  log_theta  the same of S, None for no momentum
    eta        (B,N,H) >= 0 steps;  gamma  (B,N,H) weights of tokens in the loss
    window     c, tokens in the loss;  block  tokens whose gradients are taken at one memory
    muon       steps of Newton-Schulz, 0 for none
    state      see `first_state`; None begins with a memory of zeros
    form       "recurrent", "chunked", or "auto" (see `explain`)
    backend    "reference" computes the recurrent form; "torch" or "auto" the form chosen

    Everything is differentiable. Half precisions are computed in float32. Raises ValueError for what doesn't fit.
    """
    _check(q, k, v, weights, (log_alpha, eta, gamma, log_theta), window, block, muon, form, backend)
    degree, remembers = weights.shape[-1] - 1, log_theta is not None
    if state is None:
        shape = q.shape[0], *q.shape[2:], v.shape[-1]
        state = first_state(q, *shape, degree=degree, momentum=remembers, window=window, block=block)
    _check_state(state, q, v, degree, remembers, window, block)
    with torch.autocast(q.device.type, enabled=False):
        dtype = compute_dtype(q.dtype)
        # Tokens stand in (B,H,N,...); keys, values and gammas begin with those of the window before.
        tokens = [t.to(dtype).transpose(1, 2) for t in (q, log_alpha, eta)]
        tokens.append(None if log_theta is None else log_theta.to(dtype).transpose(1, 2))
        seen = [torch.cat([old.to(new.dtype), new], 1) for old, new in zip(state[3:6], (k, v, gamma), strict=True)]
        tokens += [t.to(dtype).transpose(1, 2) for t in seen]
        memories = [None if t is None else t.to(dtype) for t in state[:3]]
        if backend == "reference" or form == "recurrent":
            run = _steps
        else:
            run = partial(_steps, expand=_phi) if form == "auto" and q.shape[1] == 1 else _chunks
        o, memory, momentum, anchor = run(tokens, weights.to(dtype), *memories, state.position, window, block, muon)
        position = (state.position + q.shape[1]) % block
        # Between two blocks the next gradients are taken at the memory there is.
        memories = memory, momentum, anchor if position else None if block == 1 else memory
        memories = [t if t is None else t.to(old.dtype) for t, old in zip(memories, state[:3], strict=True)]
        last = [t[:, q.shape[1] :].to(old.dtype).clone() for t, old in zip(seen, state[3:6], strict=True)]
    return o.transpose(1, 2).to(v.dtype), OmegaState(*memories, *last, position)


def first_state(
    like: Tensor,
    batch: int,
    heads: int,
    key: int,
    value: int,
    *,
    degree: int,
    momentum: bool,
    window: int,
    block: int,
    memory: Tensor | None = None,
) -> OmegaState:
    """The state before the first token, in `like`'s dtype and device, its memory (H,F,V) or zeros where None."""
    shape = batch, heads, features(key, degree), value
    m = like.new_zeros(shape) if memory is None else memory.to(like).expand(shape).clone()
    before = [like.new_zeros(batch, window - 1, heads, *width) for width in ((key,), (value,), ())]
    return OmegaState(m, torch.zeros_like(m) if momentum else None, m.clone() if block > 1 else None, *before)


def features(width: int, degree: int) -> int:
    """F, the number of monomials of `width` variables up to a degree."""
    return math.comb(width + degree, degree)


def reference(q: Tensor, k: Tensor, v: Tensor, **options) -> tuple[Tensor, OmegaState]:
    """omega_rule by its definition, token by token; `options` are those of omega_rule."""
    return omega_rule(q, k, v, backend="reference", **options)


def explain(
    tokens: int, *, window: int = 1, block: int = 1, muon: int = 0, form: str = "auto", backend: str = "auto"
) -> str:
    """What omega_rule computes for N = tokens from the first on, and why."""
    if backend == "reference":
        return "recurrent: backend='reference' asks for the definition, one token after another"
    if form == "recurrent":
        return "recurrent in PyTorch: form='recurrent' was asked for"
    if tokens == 1 and form == "auto":
        return "recurrent in PyTorch: a single token needs one step of the definition"
    size = max(piece.size for piece in _pieces(tokens, 0, window, block, muon))
    if muon:
        return f"chunked in PyTorch: the memories of {size} tokens at once, {muon} steps of Newton-Schulz for each"
    how = "their errors at one memory" if size <= block else "their errors from one triangular system"
    return f"chunked in PyTorch: {size} tokens at once, {how}"


def macs(
    batch: int,
    tokens: int,
    heads: int,
    key: int,
    value: int,
    *,
    degree: int,
    momentum: bool,
    window: int = 1,
    block: int = 1,
    muon: int = 0,
) -> int:
    """Multiply-adds of the matrix products, form "auto", from the first token on, as torch's FlopCounterMode counts
    them (it leaves out triangular systems, see `flops`)."""
    wide, planes, total = features(key, degree), 1 + momentum, 0
    select = sum(n * (features(key, n) - features(key, n - 1)) for n in range(2, degree + 1))
    small, large = min(wide, value), max(wide, value)
    polished = muon * (2 * small * small * large + small**3)
    if tokens == 1:
        return batch * heads * ((window + 1) * key * select + (2 * window + 1) * wide * value + polished)
    for piece in _pieces(tokens, 0, window, block, muon):
        size, blocks = piece.size, piece.size // piece.block
        keys, rows = size + window - 1, blocks * (piece.block + window - 1)
        chunk = (keys + size) * key * select
        if muon:
            chunk += momentum * size * size * keys + keys * wide * value
            chunk += size * wide * value * (keys + size + 1)
            chunk += size * polished
        else:
            chunk += momentum * size * size * (size + 1)
            chunk += (size + planes) * size * (piece.block + window - 1) if piece.block > 1 else 0
            chunk += rows * (key + 1 + (key if degree > 1 else 0)) * (size + (rows if blocks > 1 else 0))
            reads = (keys + size) * planes if blocks > 1 else keys + size * planes
            chunk += wide * value * (reads + keys * planes) + size * rows * value
        total += -(-(piece.stop - piece.start) // size) * chunk
    return batch * heads * total


def flops(batch: int, tokens: int, heads: int, value: int, *, window: int = 1, block: int = 1, muon: int = 0) -> int:
    """Operations of the triangular systems, for Cost.other_flops."""
    total = 0
    for piece in _pieces(tokens, 0, window, block, muon):
        rows = piece.size // piece.block * (piece.block + window - 1)
        if piece.size > piece.block:
            total += -(-(piece.stop - piece.start) // piece.size) * rows * rows * value
    return batch * heads * total


class Piece(NamedTuple):
    """Tokens start..stop in chunks of `size`, of blocks of `block` tokens; continued: they go on with a block begun."""

    start: int
    stop: int
    size: int
    block: int
    continued: bool


def _pieces(tokens: int, position: int, window: int, block: int, muon: int) -> list[Piece]:
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


def _monomials(width: int, degree: int) -> tuple[list[list[int]], list[float]]:
    """The monomials of a degree as sorted variables, and the square roots of how often each is in (x . y)^degree."""
    # With each the product of factorials of how often a variable stands in it, and how often the last one does.
    chosen: list[tuple[list[int], int, int]] = [([], 1, 0)]
    for _ in range(degree):
        grown = []
        for few, repeats, run in chosen:
            first = few[-1] if few else 0
            for i in range(first, width):
                again = run + 1 if i == first else 1
                grown.append(([*few, i], repeats * again, again))
        chosen = grown
    times = math.factorial(degree)
    return [few for few, _, _ in chosen], [math.sqrt(times / repeats) for _, repeats, _ in chosen]


def _defined(x: Tensor, weights: Tensor) -> Tensor:
    """phi(x) of x (B,H,C,K), monomial by monomial."""
    found = []
    for n in range(weights.shape[-1]):
        for few, root in zip(*_monomials(x.shape[-1], n), strict=True):
            product = torch.ones_like(x[..., 0])
            for i in few:
                product = product * x[..., i]
            found.append(weights[:, n, None] * root * product)
    return torch.stack(found, -1)


def _steps(
    tokens, weights, memory, momentum, anchor, position, window, block, muon, expand: Callable[..., Tensor] = _defined
):
    q, log_alpha, eta, log_theta, keys, values, gammas = tokens
    outs = []
    # Taken apart once: the gradient of a slice is as long as all tokens.
    wide, values, gammas = (x.unbind(2) for x in (expand(keys, weights), values, gammas[..., None]))
    queries = expand(q, weights).split(1, 2)
    alphas, etas = (x[..., None, None].unbind(2) for x in (log_alpha.exp(), eta))
    thetas = None if log_theta is None else log_theta.exp()[..., None, None].unbind(2)
    for t in range(q.shape[2]):
        if (position + t) % block == 0:
            anchor = memory
        # Keys begin window - 1 tokens before q.
        near, wanted, gamma = (torch.stack(x[t : t + window], 2) for x in (wide, values, gammas))
        step = etas[t] * (near.mT @ (gamma * (wanted - near @ anchor)))
        if thetas is not None:
            momentum = step = thetas[t] * momentum + step
        if muon:
            step = etas[t] * newton_schulz(step, muon)
        memory = alphas[t] * memory + step
        outs.append(queries[t] @ memory)
    return torch.cat(outs, 2), memory, momentum, anchor


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


def _chunks(tokens, weights, memory, momentum, anchor, position, window, block, muon):
    q, log_alpha, eta, log_theta, keys, values, gammas = tokens
    outs = []
    for piece in _pieces(q.shape[2], position, window, block, muon):
        if not piece.continued:
            anchor = memory
        whole = piece.start == 0 and piece.stop == q.shape[2]
        here = [t if whole or t is None else t[:, :, piece.start : piece.stop] for t in (q, log_alpha, eta, log_theta)]
        seen = [t if whole else t[:, :, piece.start : piece.stop + window - 1] for t in (keys, values, gammas)]
        o, memory, momentum = _piece(here, seen, weights, memory, momentum, anchor, piece, window, muon)
        outs.append(o)
    return torch.cat(outs, 2) if len(outs) > 1 else outs[0], memory, momentum, anchor


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


def _phi(x: Tensor, weights: Tensor) -> Tensor:
    """x (B,H,...,K), weights (H,p+1) -> its monomials (B,H,...,F), in the order of _monomials."""
    weights = weights.view(weights.shape[0], *[1] * (x.ndim - 3), -1)
    found = [torch.ones_like(x[..., :1]) * weights[..., :1]]
    if weights.shape[-1] > 1:
        found.append(x * weights[..., 1:2])
    for n in range(2, weights.shape[-1]):
        chosen, roots = _monomials(x.shape[-1], n)
        # Choosing by products with ones and zeros: the gradient of an index would add one number after another.
        places = torch.tensor(chosen, device=x.device).T.reshape(-1)
        select = (torch.arange(x.shape[-1], device=x.device)[:, None] == places).to(x.dtype)
        product = torch.tensor(roots, dtype=x.dtype, device=x.device) * weights[..., n : n + 1]
        for factor in (x @ select).split(len(chosen), -1):
            product = product * factor
        found.append(product)
    return torch.cat(found, -1)


def _kernel(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """phi(x) . phi(y) of x (B,H,n,R,K) against y (B,H,n,C,K): (B,H,n,R,C)."""
    *lower, last, most = weights.square()[..., None, None, None].unbind(1)
    # The innermost step of Horner's rule, last + most (x . y), is a product too.
    ones = torch.ones_like(y[..., :1])
    total = torch.cat([x * most, last.expand_as(x[..., :1])], -1) @ torch.cat([y, ones], -1).mT
    if lower:
        s = x @ y.mT
        for weight in reversed(lower):
            total = torch.addcmul(weight, s, total)
    return total


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
    phi = _phi(torch.cat([keys, q], -2), weights)
    rows = known = system = None
    if many:
        rows = _seen_rows(size, block, window, q.device)
        keys, values, gamma = (t.index_select(3, rows) for t in (keys, values, gamma))
    effect = effect * gamma.unsqueeze(-2)
    if many:
        products = _kernel(keys, keys, weights).unflatten(-2, (-1, ahead))
        system = (products * effect[..., 0:size:block, None, :]).flatten(-3, -2)
        # Before the first token there is all of M and nothing of S.
        first = torch.zeros_like(old[..., :1, :]).index_fill(-1, rows[:1], 1.0)
        known = torch.cat([first, old], -2)[..., 0:size:block, :].repeat_interleave(ahead, -2)
    read = _kernel(q, keys, weights) * effect[..., 1 : size + 1, :]
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
    near, asked = _phi(torch.cat([keys, q], -2).unsqueeze(2), weights).squeeze(2).split([keys.shape[-2], size], -2)
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


def _check(q, k, v, weights, gates, window, block, muon, form, backend) -> None:
    if form not in FORMS:
        raise ValueError(f"form is one of {', '.join(FORMS)}, not {form!r}")
    if backend not in BACKENDS:
        raise ValueError(f"backend is one of {', '.join(BACKENDS)}, not {backend!r}")
    if min(window, block) < 1 or muon < 0:
        raise ValueError(f"window={window} and block={block} must be at least 1, and muon={muon} at least 0")
    if q.ndim != 4 or q.shape[1] < 1 or k.shape != q.shape or v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
        raise ValueError(f"q and k must be (B,N,H,K) and v (B,N,H,V), N >= 1, but are {shapes}")
    if weights.ndim != 2 or weights.shape[0] != q.shape[2]:
        raise ValueError(f"weights must be (H,p+1) with H={q.shape[2]}, but are {tuple(weights.shape)}")
    for name, t in zip(("log_alpha", "eta", "gamma", "log_theta"), gates, strict=True):
        if t is not None and t.shape != q.shape[:3]:
            raise ValueError(f"{name} must be (B,N,H) = {tuple(q.shape[:3])}, but is {tuple(t.shape)}")


def _check_state(state: OmegaState, q: Tensor, v: Tensor, degree: int, momentum: bool, window: int, block: int) -> None:
    batch, _, heads, key = q.shape
    want = batch, heads, features(key, degree), v.shape[-1]
    if state.memory.shape != want:
        raise ValueError(f"the state's memory must be {want}, but is {tuple(state.memory.shape)}")
    fits = (state.momentum is not None) == momentum and (state.anchor is not None) == (block > 1)
    if not fits or state.keys.shape[1] != window - 1:
        raise ValueError("the state is that of a rule with another window, block or momentum; make it by first_state")
