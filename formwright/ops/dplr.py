"""The delta rule generalised: a state whose transition is a diagonal plus a matrix of rank one.

    S_t = diag(exp(log_decay_t)) S_{t-1} + b_t (S_{t-1}^T a_t)^T + k_t v_t^T,      o_t = S_t^T q_t

a reads the state before it decays, b says where what was read is added again: b = -beta k, a = exp(log_decay) k is the
gated delta rule. "recurrent" is this definition. "chunked": inside a chunk of C tokens, S the state before it,
G_ij = prod_{j < s <= i} diag(exp(log_decay_s)) and u_t = S_{t-1}^T a_t what is read,

    u_i = S^T G_{i-1,0} a_i + sum_{j<i} (a_i G_{i-1,j} b_j) u_j + (a_i G_{i-1,j} k_j) v_j
    o_i = S^T G_i0 q_i + sum_{j<=i} (q_i G_ij b_j) u_j + (q_i G_ij k_j) v_j
    S' = G_C0 S + sum_j G_Cj (b_j u_j^T + k_j v_j^T)

the first a unit lower triangular system, solved for all chunks at once: u = P + W S (the WY form of "Parallelizing
Linear Transformers with the Delta Rule over Sequence Length", arXiv 2406.06484, 2024; with a decay and two vectors:
"RWKV-7 Goose with Expressive Dynamic State Evolution", arXiv 2503.14456, 2025). Scores are joined from pairs of blocks
of 1, 2, 4, ... C/2 tokens, rows scaled by the decay since their block began, columns by that to their block's end, so
that every factor is <= 1 and no decay is too strong. Backward is autograd's, with memory linear in N.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from formwright.ops.tiles import compute_dtype, padded_size

CHUNK = 32
# Elements of one operand that are computed together: on a CPU, what they make should stay in cache.
CACHED_ELEMENTS = 512 * 256
FORMS = ("auto", "recurrent", "chunked")
BACKENDS = ("auto", "reference", "torch")


def dplr_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    *,
    state: Tensor | None = None,
    offsets: Tensor | None = None,
    form: str = "auto",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The recurrence above: q, k, a, b, log_decay (B,N,H,K), v (B,N,H,V) -> o (B,N,H,V), the last state (B,H,K,V).

    log_decay  <= 0; -inf forgets everything
    state      (B,H,K,V) the state before the first token; zeros where None. Its dtype is that of the last state
    offsets    (S+1,) bounds of S sequences packed in one row (B = 1): the state starts anew, and states are (S,H,K,V)
    form       "recurrent", "chunked", or "auto" (see `explain`)
    backend    "reference" computes the recurrent form; "torch" or "auto" the form chosen

    Everything is differentiable. Half precisions are computed in float32. Raises ValueError for what doesn't fit.
    """
    _check(q, k, v, a, b, log_decay, form, backend)
    bounds = [(0, q.shape[1])]
    if offsets is not None:
        if q.shape[0] != 1 or offsets[0] != 0 or offsets[-1] != q.shape[1]:
            raise ValueError(f"offsets must rise from 0 to N={q.shape[1]} in one row, but B={q.shape[0]}, {offsets}")
        bounds = list(itertools.pairwise(offsets.tolist()))
    rows = q.shape[0] if offsets is None else len(bounds)
    want = (rows, q.shape[2], q.shape[3], v.shape[3])
    if state is None:
        state = q.new_zeros(want)
    if state.shape != want:
        raise ValueError(f"state must be {want}, but is {tuple(state.shape)}")
    with torch.autocast(q.device.type, enabled=False):
        inputs = [t.to(compute_dtype(q.dtype)) for t in (q, k, v, a, b, log_decay)]
        s = state.to(inputs[0].dtype)
        if offsets is None:
            o, s = _run(inputs, s, form, backend)
        else:
            pieces = zip(*(t.split([j - i for i, j in bounds], 1) for t in inputs), strict=True)
            runs = [
                _run(piece, first, form, backend) if piece[0].shape[1] else (piece[2], first)
                for piece, first in zip(pieces, s.split(1), strict=True)
            ]
            o, s = torch.cat([o for o, _ in runs], 1), torch.cat([s for _, s in runs])
    return o.to(v.dtype), s.to(state.dtype)


def reference(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, **options):
    """dplr_recurrence by its definition, token by token; `options` are those of dplr_recurrence."""
    return dplr_recurrence(q, k, v, a, b, log_decay, backend="reference", **options)


def explain(tokens: int, *, form: str = "auto", backend: str = "auto") -> str:
    """What dplr_recurrence computes for N = tokens and why."""
    if backend == "reference":
        return "recurrent: backend='reference' asks for the definition, one token after another"
    if form != "auto":
        return f"{form} in PyTorch: form={form!r} was asked for"
    if tokens == 1:
        return "recurrent in PyTorch: a single token needs one step of the definition"
    return f"chunked in PyTorch: chunks of {CHUNK} tokens are matrix products and one triangular system each"


def macs(
    batch: int, tokens: int, heads: int, key: int, value: int, *, form: str = "auto", lengths: list[int] | None = None
) -> int:
    """Multiply-adds of one forward's matrix products, as torch's FlopCounterMode counts them (it leaves out triangular
    systems, see `flops`). lengths are those of packed sequences (batch 1), where packed."""
    total = 0
    for length in [tokens] if lengths is None else lengths:
        if form == "recurrent" or (form == "auto" and length == 1):
            total += 2 * length * key * value
        else:
            size = min(CHUNK, padded_size(length))
            chunk = 2 * size * key * (size - 1) + 3 * size * size * value + 4 * size * key * value
            total += -(-length // size) * chunk
    return batch * heads * total


def flops(batch: int, tokens: int, heads: int, key: int, value: int) -> int:
    """Operations of the triangular systems, for Cost.other_flops."""
    return 0 if tokens == 1 else batch * heads * tokens * min(CHUNK, padded_size(tokens)) * (key + value)


def _run(inputs: Sequence[Tensor], s: Tensor, form: str, backend: str) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, width = inputs[0].shape
    if backend == "reference" or form == "recurrent" or (form == "auto" and tokens == 1):
        return _steps(*inputs, s)
    together = tokens
    if inputs[0].device.type == "cpu":
        together = CHUNK * max(1, CACHED_ELEMENTS // (batch * heads * width * CHUNK))
    outs = []
    # Backward of split and unbind joins pieces; that of indices would fill all N tokens with zeros for each.
    for piece in zip(*(t.split(together, 1) for t in inputs), strict=True):
        o, s = _chunks(*piece, s, min(CHUNK, padded_size(tokens)))
        outs.append(o)
    return torch.cat(outs, 1), s


def _steps(q, k, v, a, b, log_decay, s):
    decay, outs = log_decay.exp(), []
    for t in range(q.shape[1]):
        read = torch.matmul(a[:, t, :, None], s)
        s = decay[:, t, :, :, None] * s + b[:, t, :, :, None] * read + k[:, t, :, :, None] * v[:, t, :, None]
        outs.append(torch.matmul(q[:, t, :, None], s).squeeze(2))
    return torch.stack(outs, 1), s


def _chunks(q, k, v, a, b, log_decay, s, size):
    tokens = q.shape[1]
    missing = -tokens % size
    # (B,H,chunks,C,...); a token of zeros neither reads, writes nor forgets.
    q, k, v, a, b, log_decay = (
        F.pad(t, (0, 0, 0, 0, 0, missing)).unflatten(1, (-1, size)).permute(0, 3, 1, 2, 4)
        for t in (q, k, v, a, b, log_decay)
    )
    # Below the bound a decay is 0 anyway; -inf would make differences of running sums NaN, and sums of strong decays
    # are so large that their differences would be coarse in float32.
    log_decay = log_decay.clamp(min=-750.0 if log_decay.dtype == torch.float64 else -110.0)
    g = log_decay.double().cumsum(-2)
    reads = torch.stack((a, q), -3)
    since = torch.stack((g - log_decay, g), -3)
    writes = torch.stack((b, k), -3)
    own = torch.stack((torch.zeros_like(q), q), -3)
    by_a, by_q = _scores(reads, since, writes, g, own).unbind(-4)
    (ab, ak), (qb, qk) = by_a.unbind(-2), by_q.unbind(-2)
    ae, qe = (reads * since.to(q.dtype).exp()).unbind(-3)
    be, ke = (writes * (g[..., -1:, :] - g).to(q.dtype).exp().unsqueeze(-3)).unbind(-3)
    right = torch.cat([ae, ak @ v], -1)
    unit = torch.eye(size, dtype=q.dtype, device=q.device) - ab
    solved = torch.linalg.solve_triangular(unit, right, upper=False, unitriangular=True)
    w, p = solved.split([q.shape[-1], v.shape[-1]], -1)
    total = g[..., -1, :].to(q.dtype).exp().unsqueeze(-1)
    states, us = [], []
    for w_c, p_c, b_c, total_c, wrote_c in zip(*(t.unbind(2) for t in (w, p, be.mT, total, ke.mT @ v)), strict=True):
        states.append(s)
        us.append(p_c + w_c @ s)
        s = total_c * s + b_c @ us[-1] + wrote_c
    u, before = torch.stack(us, 2), torch.stack(states, 2)
    o = qe @ before + qb @ u + qk @ v
    return o.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :tokens], s


def _scores(reads: Tensor, since: Tensor, writes: Tensor, g: Tensor, own: Tensor) -> Tensor:
    """reads (...,R,C,K) against writes (...,W,C,K) -> (...,R,C,W,C), read i scaled by exp(since_i - g_j) of every write
    j < i; on the diagonal own (...,R,C,K) against writes as they are. since (...,R,C,K) and g (...,C,K) are sums of log
    decays from the chunk's start."""
    size, dtype = g.shape[-2], reads.dtype
    # Blocks of b tokens hold (..., C/b, R, b, W, b).
    result = (own.unsqueeze(-3) * writes.unsqueeze(-4)).sum(-1).movedim(-1, -3)[..., None, :, None]
    edge = F.pad(g, (0, 0, 1, 0))
    block = 1
    while block < size:
        # What stands before each later half: the sum at its start, and the sum at the earlier half's end, are one.
        middle = edge[..., block : size : 2 * block, :]
        middle = middle[..., None, :, None, :]
        late = _half(reads, block, 1) * (_half(since, block, 1) - middle).to(dtype).exp()
        early = _half(writes, block, 0) * (middle - _half(g.unsqueeze(-3), block, 0)).to(dtype).exp()
        late, early = late.transpose(-4, -3), early.transpose(-4, -3)
        joined = late.flatten(-3, -2) @ early.flatten(-3, -2).mT
        joined = joined.unflatten(-2, late.shape[-3:-1]).unflatten(-1, early.shape[-3:-1])
        first, second = result[..., ::2, :, :, :, :], result[..., 1::2, :, :, :, :]
        top = torch.cat([first, torch.zeros_like(joined)], -1)
        result = torch.cat([top, torch.cat([joined, second], -1)], -3)
        block *= 2
    return result.squeeze(-5)


def _half(t: Tensor, block: int, which: int) -> Tensor:
    """The earlier (0) or later (1) half of each block of 2b tokens: (...,R,C,K) -> (...,R,C/2b,b,K)."""
    return t.unflatten(-2, (-1, 2, block)).unbind(-3)[which]


def _check(q, k, v, a, b, log_decay, form, backend) -> None:
    if form not in FORMS:
        raise ValueError(f"form is one of {', '.join(FORMS)}, not {form!r}")
    if backend not in BACKENDS:
        raise ValueError(f"backend is one of {', '.join(BACKENDS)}, not {backend!r}")
    if q.ndim != 4 or v.ndim != 4 or q.shape[1] < 1 or v.shape[:3] != q.shape[:3]:
        raise ValueError(f"q must be (B,N,H,K) and v (B,N,H,V), N >= 1, but are {tuple(q.shape)}, {tuple(v.shape)}")
    for name, t in (("k", k), ("a", a), ("b", b), ("log_decay", log_decay)):
        if t.shape != q.shape:
            raise ValueError(f"{name} must be as q, {tuple(q.shape)}, but is {tuple(t.shape)}")
