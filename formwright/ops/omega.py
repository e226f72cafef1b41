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

"recurrent" is this definition; "chunked", blocks of matrix products with memory linear in N, is in omega_chunked.py.
ATLAS: Learning to Optimally Memorize the Context at Test Time, arXiv 2505.23735, 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from formwright.ops.omega_chunked import chunks, newton_schulz, pieces
from formwright.ops.polynomials import expanded, features, one_by_one
from formwright.ops.tiles import compute_dtype

FORMS = ("auto", "recurrent", "chunked")
BACKENDS = ("auto", "reference", "torch")


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
            run = partial(_steps, expand=expanded) if form == "auto" and q.shape[1] == 1 else chunks
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
    size = max(piece.size for piece in pieces(tokens, 0, window, block, muon))
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
    for piece in pieces(tokens, 0, window, block, muon):
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
    for piece in pieces(tokens, 0, window, block, muon):
        rows = piece.size // piece.block * (piece.block + window - 1)
        if piece.size > piece.block:
            total += -(-(piece.stop - piece.start) // piece.size) * rows * rows * value
    return batch * heads * total


def _steps(
    tokens, weights, memory, momentum, anchor, position, window, block, muon, expand: Callable[..., Tensor] = one_by_one
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
