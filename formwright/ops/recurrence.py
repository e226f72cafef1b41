"""Linear recurrences with a matrix state: linear attention, retention, state-space duality, gated and delta rules.

    S_t = diag(exp(log_decay_t)) S_{t-1}
    without beta:  S_t += k_t v_t^T
    with beta:     S_t += beta_t k_t (v_t - S_t^T k_t)^T                      (the delta rule)
    o_t = scale S_t^T q_t

Three forms: "recurrent" is this definition, token by token; "parallel" is quadratic in N, all tokens one chunk;
"chunked" is blocks of matrix products with a state between them, linear in N in time and memory. recurrence_chunked.py
holds the last two; recurrence_triton.py the chunked form in kernels for CUDA.
"""

from __future__ import annotations

import functools
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from formwright.ops.kernel_trial import draws, kernels_refused, trial
from formwright.ops.recurrence_chunked import ChunkedRecurrence, forward_tiles
from formwright.ops.recurrence_triton import refusal, triton_recurrence
from formwright.ops.tiles import compute_dtype, padded_size, tile_plan

FORMS = ("auto", "recurrent", "parallel", "chunked")
BACKENDS = ("auto", "reference", "torch", "triton")
# What the chunks computed together touch should stay in a CPU's caches: elements of one operand.
CACHED_ELEMENTS = 64 * 64 * 64


def linear_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    state: Tensor | None = None,
    offsets: Tensor | None = None,
    form: str = "auto",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The recurrence above: q, k (B,N,H,K), v (B,N,H,V) -> o (B,N,H,V) and the last state (B,H,K,V).

    log_decay  (B,N,H), or (B,N,H,K) for a decay per key channel; <= 0, -inf forgets everything; None: no decay
    beta       (B,N,H) turns on the delta rule
    scale      multiplies o; 1 where None
    state      (B,H,K,V) the state before the first token; zeros where None. Its dtype is that of the last state
    offsets    (S+1,) bounds of S sequences packed in one row (B = 1): the state starts anew at each bound, and states
               are (S,H,K,V)
    form       "recurrent", "parallel", "chunked", or "auto" (see `explain`)
    backend    "reference" computes the recurrent form by plain autograd; "torch" the form chosen; "triton" the
               chunked form's CUDA kernels; "auto" takes these on a GPU where they were right when they were first
               tried there (kernel_trial.py), and the form in PyTorch elsewhere (see `explain`)

    Everything is differentiable, states included. Half precisions are computed in float32 (in the kernels with products
    in TF32). Raises ValueError for shapes, forms or backends that do not fit, and where backend="triton" can't compute
    what is asked.
    """
    _check(q, k, v, log_decay, beta, state, offsets, form, backend)
    scale = 1.0 if scale is None else float(scale)
    bounds = _bounds(q.shape[1], offsets)
    if state is None:
        rows = q.shape[0] if offsets is None else len(bounds)
        state = q.new_zeros(rows, q.shape[2], q.shape[3], v.shape[3])
    kind = None if log_decay is None else "scalar" if log_decay.ndim == 3 else "diagonal"
    sizes = q.shape[1], q.shape[3], v.shape[3]
    if _kernels_refused(q.device, q.dtype, *sizes, kind, beta is not None, form, backend) is None:
        return triton_recurrence(q, k, v, log_decay, beta, state, scale, None if offsets is None else bounds)
    chosen = "recurrent" if backend == "reference" else _choose(form, q.shape[1])[0]
    with torch.autocast(q.device.type, enabled=False):
        if q.shape[1] == 1 and offsets is None and form == "auto" and backend != "reference":
            return _one_step(q, k, v, log_decay, beta, scale, state)
        if chosen == "recurrent":
            return _recurrent(q, k, v, log_decay, beta, scale, state, None if offsets is None else bounds)
        chunk = chunk_size(q.shape[3], v.shape[3], beta is not None) if chosen == "chunked" else q.shape[1]
        group, together = _together(q, v, chunk)
        tiles = tile_plan(q.shape[0], bounds, chunk, group, offsets is not None, together)
        inputs = (q, k, v, log_decay, beta, state, scale, tiles)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs[:6]):
            return ChunkedRecurrence.apply(*inputs)
        return forward_tiles(*inputs, keep=False)[:2]


def reference(q: Tensor, k: Tensor, v: Tensor, **options) -> tuple[Tensor, Tensor]:
    """linear_recurrence by its definition, token by token; `options` are those of linear_recurrence."""
    return linear_recurrence(q, k, v, backend="reference", **options)


def explain(
    tokens: int,
    *,
    log_decay: str | None = None,
    beta: bool = False,
    form: str = "auto",
    backend: str = "auto",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    key: int = 64,
    value: int = 64,
) -> str:
    """What linear_recurrence computes for N = tokens and why. log_decay is None, "scalar" or "diagonal"."""
    if backend == "reference":
        return "recurrent: backend='reference' asks for the definition, one token after another"
    refused = _kernels_refused(torch.device(device), dtype, tokens, key, value, log_decay, beta, form, backend)
    chosen, why = _choose(form, tokens)
    decay = {None: "no decay", "scalar": "one decay a head", "diagonal": "a decay per key channel"}[log_decay]
    rule = "the delta rule by its triangular system" if beta else "sums of outer products"
    if refused is None:
        took = "they were right when tried on this GPU" if backend == "auto" else "backend='triton' asks for them"
        return f"chunked ({decay}, {rule}) in Triton's kernels: {took}"
    size = f", {chunk_size(key, value, beta)} tokens a chunk" if chosen == "chunked" else ""
    return f"{chosen} ({decay}, {rule}{size}) in PyTorch: {why}; not in Triton: {refused}"


def macs(
    batch: int,
    tokens: int,
    heads: int,
    key: int,
    value: int,
    *,
    log_decay: str | None = None,
    beta: bool = False,
    form: str = "auto",
    lengths: list[int] | None = None,
) -> int:
    """Multiply-adds of one forward's matrix products, as torch's FlopCounterMode counts them.

    log_decay is None, "scalar" or "diagonal"; lengths are those of packed sequences (batch 1), where packed.
    """
    chosen = _choose(form, tokens)[0]
    if chosen == "recurrent":
        return batch * tokens * heads * key * value * (2 if beta else 1)
    chunk = chunk_size(key, value, beta) if chosen == "chunked" else tokens
    total = 0
    for length in [tokens] if lengths is None else lengths:
        whole, rest = divmod(length, chunk)
        total += whole * _chunk_macs(chunk, key, value, log_decay, beta)
        total += _chunk_macs(rest, key, value, log_decay, beta) if rest else 0
    return batch * heads * total


def chunk_size(key: int, value: int, beta: bool) -> int:
    """Tokens of a chunk on a CPU: the fewer, the less its scores and the delta rule's system cost, and the more states
    there are to pass on. Measured on two cores from K = V = 32 to 256."""
    return 32 if key * value <= (64 * 64 if beta else 32 * 64) else 64


def _chunk_macs(size: int, key: int, value: int, log_decay: str | None, beta: bool) -> int:
    if beta or log_decay == "diagonal":
        size = padded_size(size)
    reads = 2 if beta else 1
    joins = range(size.bit_length() - 1)
    scores = size * size * key * reads
    if log_decay == "diagonal":
        scores = sum(size // 2 * 2**j * key * reads for j in joins if j > 0)
    inverse = sum(size * 4**j for j in joins if j > 1) + size * size * value if beta else 0
    return scores + inverse + size * size * value + (reads + 1) * size * key * value


def _choose(form: str, tokens: int) -> tuple[str, str]:
    if form != "auto":
        return form, f"form={form!r} was asked for"
    if tokens == 1:
        return "recurrent", "a single token needs one step of the definition"
    return "chunked", "chunks of tokens are matrix products, and what they touch stays in cache"


def _kernels_refused(
    device: torch.device,
    dtype: torch.dtype,
    tokens: int,
    key: int,
    value: int,
    log_decay: str | None,
    beta: bool,
    form: str,
    backend: str,
) -> str | None:
    """Why Triton's kernels don't compute this, None where they do."""
    able = functools.partial(refusal, device, dtype, key, value, form)
    tried = functools.partial(kernels_tried, device, dtype, key, value, log_decay, beta, torch.is_grad_enabled())
    return kernels_refused(backend, tokens, device, able, tried)


@functools.cache
def kernels_tried(
    device: torch.device,
    dtype: torch.dtype,
    key: int,
    value: int,
    log_decay: str | None,
    beta: bool,
    gradients: bool,
) -> str | None:
    """What was wrong with Triton's kernels for such inputs when they were tried on this device, None where nothing was:
    two heads, three chunks of which the last is not full."""
    shape, draw = (1, 130, 2), draws()
    q, k, v, state = (draw(*shape, key), draw(*shape, key), draw(*shape, value), draw(1, 2, key, value))
    decays = {None: [], "scalar": [draw(shape)], "diagonal": [draw(*shape, key)]}[log_decay]
    inputs = [q, F.normalize(k, dim=-1), v, state, *(-t.abs() for t in decays), *([draw(shape).sigmoid()] * beta)]

    def op(q: Tensor, k: Tensor, v: Tensor, state: Tensor, *rest: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        options = dict(zip(("log_decay",) * len(decays) + ("beta",) * beta, rest, strict=True))
        return linear_recurrence(q, k, v, state=state, scale=0.3, backend=backend, **options)

    what = f"linear_recurrence ({dtype}, K={key}, V={value}, decay: {log_decay}, delta rule: {beta})"
    return trial(what, op, inputs, device, dtype, gradients)


def _together(q: Tensor, v: Tensor, chunk: int) -> tuple[int, int]:
    """How many rows of the batch, and how many of their chunks, are computed together: as many as stay in a CPU's
    caches; elsewhere all rows."""
    batch, _, heads, key = q.shape
    one = heads * chunk * max(key, v.shape[3])
    rows = max(1, min(batch, CACHED_ELEMENTS // one)) if q.device.type == "cpu" else batch
    return rows, max(1, CACHED_ELEMENTS // (rows * one))


def _bounds(tokens: int, offsets: Tensor | None) -> list[tuple[int, int]]:
    if offsets is None:
        return [(0, tokens)]
    bounds = offsets.tolist()
    if bounds[0] != 0 or bounds[-1] != tokens or bounds != sorted(bounds):
        raise ValueError(f"offsets must rise from 0 to N={tokens}, but are {bounds}")
    return list(itertools.pairwise(bounds))


def _recurrent(q, k, v, log_decay, beta, scale, state, bounds):
    dtype = compute_dtype(q.dtype)
    out_dtype, state_dtype = v.dtype, state.dtype
    q, k, v, state = (t.to(dtype) for t in (q, k, v, state))
    if bounds is not None:
        outs, states = [], []
        for number, (a, b) in enumerate(bounds):
            parts = [None if t is None else t[:, a:b] for t in (q, k, v, log_decay, beta)]
            o, s = _steps(*parts, scale, state[number : number + 1])
            outs, states = [*outs, o], [*states, s]
        o, s = torch.cat(outs, 1), torch.cat(states)
    else:
        o, s = _steps(q, k, v, log_decay, beta, scale, state)
    return o.to(out_dtype), s.to(state_dtype)


def _steps(q, k, v, log_decay, beta, scale, s):
    outs = []
    if log_decay is not None:
        decay = log_decay.to(q.dtype).exp()
        decay = decay[..., None, None] if decay.ndim == 3 else decay[..., None]
    for t in range(q.shape[1]):
        if log_decay is not None:
            s = decay[:, t] * s
        write = v[:, t]
        if beta is not None:
            write = beta[:, t, :, None].to(q.dtype) * (write - torch.matmul(k[:, t, :, None], s).squeeze(2))
        s = s + k[:, t, :, :, None] * write[:, :, None]
        outs.append(torch.matmul(scale * q[:, t, :, None], s).squeeze(2))
    return (torch.stack(outs, 1) if outs else v), s


def _one_step(q, k, v, log_decay, beta, scale, state):
    """The definition for a single token in as few operations as it takes: a decoding step's time is their number."""
    dtype, (batch, _, heads, _) = compute_dtype(q.dtype), q.shape
    rows = batch * heads
    s, write = state.flatten(0, 1).to(dtype), v.reshape(rows, 1, -1).to(dtype)
    key = k.reshape(rows, 1, -1).to(dtype)
    if log_decay is not None:
        s = s * log_decay.to(dtype).exp().reshape(rows, -1, 1)
    if beta is not None:
        write = torch.baddbmm(write, key, s, alpha=-1) * beta.reshape(rows, 1, 1).to(dtype)
    s = torch.addcmul(s, key.mT, write)
    # beta=0 leaves `write` out: it lends its shape to a product that is scaled as it is made.
    o = torch.baddbmm(write, q.reshape(rows, 1, -1).to(dtype), s, beta=0, alpha=scale)
    return o.view(batch, 1, heads, -1).to(v.dtype), s.view(state.shape).to(state.dtype)


def _check(q, k, v, log_decay, beta, state, offsets, form, backend) -> None:
    if form not in FORMS:
        raise ValueError(f"form is one of {', '.join(FORMS)}, not {form!r}")
    if backend not in BACKENDS:
        raise ValueError(f"backend is one of {', '.join(BACKENDS)}, not {backend!r}")
    if q.ndim != 4 or q.shape != k.shape or v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"q and k must be (B,N,H,K) and v (B,N,H,V), but are {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if q.shape[1] < 1:
        raise ValueError("linear_recurrence needs at least one token, but N is 0")
    if log_decay is not None and log_decay.shape not in (q.shape[:3], q.shape):
        raise ValueError(
            f"log_decay must be (B,N,H)={tuple(q.shape[:3])} or (B,N,H,K)={tuple(q.shape)}, "
            f"but is {tuple(log_decay.shape)}"
        )
    if beta is not None and beta.shape != q.shape[:3]:
        raise ValueError(f"beta must be (B,N,H)={tuple(q.shape[:3])}, but is {tuple(beta.shape)}")
    if offsets is not None and q.shape[0] != 1:
        raise ValueError(f"packed sequences (offsets) lie in one row, but B is {q.shape[0]}")
    rows = q.shape[0] if offsets is None else offsets.shape[0] - 1
    want = (rows, q.shape[2], q.shape[3], v.shape[3])
    if state is not None and state.shape != want:
        raise ValueError(f"state must be {want}, but is {tuple(state.shape)}")
