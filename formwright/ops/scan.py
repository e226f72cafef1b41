"""Element-wise linear recurrences: h_t = a_t h_{t-1} + b_t, real or complex.

"recurrent" is this definition, token by token. "parallel" joins neighbours: (a', b') = (a_{2i+1} a_{2i},
a_{2i+1} b_{2i} + b_{2i+1}) is the same recurrence over half the tokens; its solution gives every second h, and one
more step the others: some 5 N operations in log2 N rounds (Prefix Sums and Their Applications, Blelloch, 1990).
"chunked" does so chunk after chunk, so that each stays in cache. Nothing is ever divided, so a_t = 0 is exact.

Backward is a scan too: g_t = dh_t + conj(a_{t+1}) g_{t+1}; db = g, da_t = g_t conj(h_{t-1}).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FORMS = ("auto", "recurrent", "parallel", "chunked")
BACKENDS = ("auto", "reference", "torch")
# Elements of one operand in a chunk: a few such operands fit a CPU's last-level cache.
CACHED_ELEMENTS = 128 * 1024


def linear_scan(
    a: Tensor, b: Tensor, *, state: Tensor | None = None, form: str = "auto", backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + b_t along dimension 1: b (B,N,...), a broadcast to it -> h (B,N,...) and the last h (B,...).

    state    (B,...) is h before the first token; zeros where None
    form     "recurrent", "parallel", "chunked", or "auto" (see `explain`)
    backend  "reference" computes the recurrent form by plain autograd; "torch" or "auto" the form chosen

    Everything is differentiable, states included; half precisions are computed in float32. Sequences packed in one row
    start anew where a_t = 0. Raises ValueError for shapes, forms or backends that do not fit.
    """
    if form not in FORMS:
        raise ValueError(f"form is one of {', '.join(FORMS)}, not {form!r}")
    if backend not in BACKENDS:
        raise ValueError(f"backend is one of {', '.join(BACKENDS)}, not {backend!r}")
    if b.ndim < 2 or b.shape[1] < 1:
        raise ValueError(f"linear_scan needs (B,N,...) with at least one token, but b is {tuple(b.shape)}")
    if a.ndim > b.ndim or any(m not in (1, n) for m, n in zip(a.shape[::-1], b.shape[::-1], strict=False)):
        raise ValueError(f"a {tuple(a.shape)} must broadcast to b's shape {tuple(b.shape)}")
    if state is not None and state.shape != (b.shape[0], *b.shape[2:]):
        raise ValueError(f"state must be (B,...) = {(b.shape[0], *b.shape[2:])}, but is {tuple(state.shape)}")
    out = torch.promote_types(a.dtype, b.dtype)
    work = torch.promote_types(out, torch.float32)
    last = torch.zeros_like(b[:, 0], dtype=out) if state is None else state
    a, b, state = a.to(work).expand(b.shape), b.to(work), last.to(work)
    chosen = "recurrent" if backend == "reference" else _choose(form, b.shape[1])[0]
    if chosen == "recurrent":
        h = _steps(a, b, state)
    else:
        h = _Scan.apply(a, b, state, b.shape[1] if chosen == "parallel" else _chunk(b))
    return h.to(out), h[:, -1].to(last.dtype)


def reference(a: Tensor, b: Tensor, *, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """linear_scan by its definition, token by token."""
    return linear_scan(a, b, state=state, backend="reference")


def explain(tokens: int, *, form: str = "auto", backend: str = "auto") -> str:
    """What linear_scan computes for N = tokens and why."""
    if backend == "reference":
        return "recurrent: backend='reference' asks for the definition, one token after another"
    chosen, why = _choose(form, tokens)
    return f"{chosen} in PyTorch: {why}"


def macs(*shape: int) -> int:
    """Multiply-adds as FlopCounterMode counts them: none, for there are no matrix products. See `flops`."""
    return 0


def flops(*shape: int) -> int:
    """Floating-point operations of one forward over real (B,N,...) = shape, for Cost.other_flops: 3 N to join
    neighbours and 2 N to take the last step."""
    return 5 * math.prod(shape)


def _choose(form: str, tokens: int) -> tuple[str, str]:
    if form != "auto":
        return form, f"form={form!r} was asked for"
    if tokens == 1:
        return "recurrent", "a single token needs one step of the definition"
    return "chunked", "neighbours are joined in log2 rounds inside chunks that stay in cache"


def _chunk(b: Tensor) -> int:
    if b.device.type != "cpu":
        return b.shape[1]
    row = max(1, b.numel() // b.shape[1])
    return min(b.shape[1], max(16, CACHED_ELEMENTS // row))


def _steps(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    outs = []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        outs.append(h)
    return torch.stack(outs, 1)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, state, chunk):
        h, carry = torch.empty_like(b, memory_format=torch.contiguous_format), state
        for start in range(0, b.shape[1], chunk):
            part = b[:, start : start + chunk].clone()
            part[:, 0] += a[:, start] * carry
            h[:, start : start + chunk] = part = _join(a[:, start : start + chunk], part)
            carry = part[:, -1]
        ctx.save_for_backward(a, h, state)
        ctx.chunk = chunk
        return h

    @staticmethod
    def backward(ctx, d_h):
        a, h, state = ctx.saved_tensors
        d_a, d_b = torch.empty_like(h), torch.empty_like(h)
        carry = torch.zeros_like(state)
        for start in reversed(range(0, h.shape[1], ctx.chunk)):
            stop = min(start + ctx.chunk, h.shape[1])
            factors = a[:, start:stop].conj().resolve_conj()
            part = d_h[:, start:stop].flip(1)
            part[:, 0] += carry
            # The first factor meets the carry, which is in `part` already.
            grad = _join(factors.roll(-1, 1).flip(1), part).flip(1)
            d_b[:, start:stop] = grad
            d_a[:, start] = grad[:, 0] * (state if start == 0 else h[:, start - 1]).conj()
            d_a[:, start + 1 : stop] = grad[:, 1:] * h[:, start : stop - 1].conj()
            carry = factors[:, 0] * grad[:, 0]
        return d_a, d_b, carry, None


def _join(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t from h = 0, in rounds; the first a is not used."""
    tokens = b.shape[1]
    if tokens == 1:
        return b
    pairs = tokens // 2
    early, late = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    odd = _join(a[:, early] * a[:, late], torch.addcmul(b[:, late], a[:, late], b[:, early]))
    h = torch.empty_like(b, memory_format=torch.contiguous_format)
    h[:, late] = odd
    h[:, 0] = b[:, 0]
    if tokens > 2:
        h[:, 2::2] = torch.addcmul(b[:, 2::2], a[:, 2::2], odd[:, : (tokens - 1) // 2])
    return h
