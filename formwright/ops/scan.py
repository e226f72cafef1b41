"""Element-wise linear recurrences: h_t = a_t h_{t-1} + b_t, real or complex.

"recurrent" is this definition, token by token. "parallel" joins neighbours: (a', b') = (a_{2i+1} a_{2i},
a_{2i+1} b_{2i} + b_{2i+1}) is the same recurrence over half the tokens; its solution gives every second h, and one
more step the others: some 5 N operations in log2 N rounds (Prefix Sums and Their Applications, Blelloch, 1990).
"chunked" cuts the tokens into blocks and walks through all blocks side by side, twice: first for what each block makes
of any h before it, then, those being known block after block, for all h. It reads and writes little more memory than
there is to read and write, and the wider a row, the fewer blocks are needed for a CPU; wide rows go token by token
in place. While a graph is traced and on other devices than CPUs "parallel" stands for it: fewer, larger operations.
Nothing is ever divided, so a_t = 0 is exact.

Backward is a scan too: g_t = dh_t + conj(a_{t+1}) g_{t+1}; db = g, da_t = g_t conj(h_{t-1}).
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from formwright.ops.kernel_trial import draws, kernels_refused, trial
from formwright.ops.scan_triton import LinearScan, scan_refusal

FORMS = ("auto", "recurrent", "parallel", "chunked")
BACKENDS = ("auto", "reference", "torch", "triton")
# Elements that go one token on together on a CPU, all blocks side by side (torch shares out operations of so many among
# two threads); tokens of a block; the fewest blocks that
# gain over going token by token.
ROW, BLOCK, FEWEST = 64 * 1024, 32, 8


def linear_scan(
    a: Tensor, b: Tensor, *, state: Tensor | None = None, form: str = "auto", backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + b_t along dimension 1: b (B,N,...), a broadcast to it -> h (B,N,...) and the last h (B,...).

    state    (B,...) is h before the first token; zeros where None
    form     "recurrent", "parallel", "chunked", or "auto" (see `explain`)
    backend  "reference" computes the recurrent form by plain autograd; "torch" the form chosen; "triton" a CUDA kernel;
             "auto" takes this on a GPU where it was right when it was first tried there, else the form chosen

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
    if _kernel_refused(b.device, out, b.shape[1], form, backend) is None:
        flat = [t.to(work).flatten(2) if b.ndim > 2 else t.to(work)[..., None] for t in (a.expand(b.shape), b)]
        h = LinearScan.apply(*flat, last.to(work).reshape(len(b), -1)).view(b.shape)
        return h.to(out), h[:, -1].to(last.dtype)
    a, b, state = a.to(work), b.to(work), last.to(work)
    if b.shape[1] == 1 and form == "auto":
        h = torch.addcmul(b, a, state.unsqueeze(1))
        return h.to(out), h[:, 0].to(last.dtype)
    a = a.expand(b.shape)
    chosen = "recurrent" if backend == "reference" else _choose(form, b.shape[1], b.device.type)[0]
    h = _steps(a, b, state) if chosen == "recurrent" else _Scan.apply(a, b, state, chosen == "parallel")
    return h.to(out), h[:, -1].to(last.dtype)


def reference(a: Tensor, b: Tensor, *, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """linear_scan by its definition, token by token."""
    return linear_scan(a, b, state=state, backend="reference")


def explain(
    tokens: int,
    *,
    form: str = "auto",
    backend: str = "auto",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> str:
    """What linear_scan computes for N = tokens on a device and why."""
    if backend == "reference":
        return "recurrent: backend='reference' asks for the definition, one token after another"
    refused = _kernel_refused(torch.device(device), dtype, tokens, form, backend)
    if refused is None:
        why = "it was right when tried on this GPU" if backend == "auto" else "backend='triton' asks for it"
        return f"a Triton kernel: {why}"
    chosen, why = _choose(form, tokens, device)
    return f"{chosen} in PyTorch: {why}; not in Triton: {refused}"


def macs(*shape: int) -> int:
    """Multiply-adds as FlopCounterMode counts them: none, for there are no matrix products. See `flops`."""
    return 0


def flops(*shape: int) -> int:
    """Floating-point operations of one forward over real (B,N,...) = shape, for Cost.other_flops: 3 N to join
    neighbours and 2 N to take the last step."""
    return 5 * math.prod(shape)


def _kernel_refused(device: torch.device, dtype: torch.dtype, tokens: int, form: str, backend: str) -> str | None:
    """Why Triton's kernel doesn't compute this, None where it does."""
    able = functools.partial(scan_refusal, device, dtype, form)
    tried = functools.partial(kernel_tried, device, dtype, torch.is_grad_enabled())
    return kernels_refused(backend, tokens, device, able, tried)


@functools.cache
def kernel_tried(device: torch.device, dtype: torch.dtype, gradients: bool) -> str | None:
    """What was wrong with Triton's kernel when it was tried on this device, None where nothing was."""
    draw = draws()
    a, b, state = (draw(shape) for shape in ((2, 130, 33), (2, 130, 33), (2, 33)))

    def op(a: Tensor, b: Tensor, state: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        return linear_scan(a, b, state=state, backend=backend)

    return trial(f"linear_scan ({dtype})", op, [a.sigmoid(), b, state], device, dtype, gradients)


def _choose(form: str, tokens: int, device: str) -> tuple[str, str]:
    if tokens == 1 and form == "auto":
        return "recurrent", "a single token needs one step of the definition"
    if form == "chunked" and (device != "cpu" or torch.compiler.is_compiling()):
        return "parallel", "blocks side by side are for CPUs and no graph; log2 rounds stand for them"
    if form != "auto":
        return form, f"form={form!r} was asked for"
    if device != "cpu" or torch.compiler.is_compiling():
        return "parallel", "neighbours are joined in log2 rounds, few and large operations"
    return "chunked", "on a CPU blocks of tokens go side by side, and wide rows token by token, in place"


def _steps(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    outs = []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        outs.append(h)
    return torch.stack(outs, 1)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, state, rounds):
        if rounds:
            h = _join(a, torch.cat([torch.addcmul(b[:, :1], a[:, :1], state.unsqueeze(1)), b[:, 1:]], 1))
        else:
            h = torch.empty_like(b, memory_format=torch.contiguous_format)
            fill(h, a, b, state)
        ctx.save_for_backward(a, h, state)
        ctx.rounds = rounds
        return h

    @staticmethod
    def backward(ctx, d_h):
        a, h, state = ctx.saved_tensors
        factors = a.conj().resolve_conj()
        # A backward that is differentiated itself has to leave a graph.
        if ctx.rounds or torch.is_grad_enabled():
            # The first factor of the reversed recurrence is not used.
            d_b = _join(factors.roll(-1, 1).flip(1), d_h.flip(1)).flip(1)
            before = torch.cat([state.unsqueeze(1), h[:, :-1]], 1)
            return d_b * before.conj(), d_b, factors[:, 0] * d_b[:, 0], None
        d_b = torch.empty_like(h)
        d_b[:, -1] = d_h[:, -1]
        fill(d_b[:, :-1], factors[:, 1:], d_h[:, :-1], d_h[:, -1], backwards=True)
        d_a = None
        if ctx.needs_input_grad[0]:
            d_a = torch.empty_like(h)
            torch.mul(d_b[:, 1:], h[:, :-1].conj(), out=d_a[:, 1:])
            torch.mul(d_b[:, 0], state.conj(), out=d_a[:, 0])
        return d_a, d_b, factors[:, 0] * d_b[:, 0], None


def fill(out: Tensor, a: Tensor, b: Tensor, carry: Tensor, *, backwards: bool = False) -> None:
    """out_t = a_t out_{t-1} + b_t over out, a and b (B,T,...) with T >= 0 from out_{-1} = carry (B,...); backwards,
    t + 1 stands for t - 1. For CPUs and without a graph; out must not share memory with a; it may be b."""
    tokens, row = b.shape[1], max(1, b[:, :1].numel())
    buffers = ()
    done = 0
    while done < tokens:
        left = tokens - done
        # About what makes the 3 size + count operations over size * count tokens fewest.
        count = min(ROW // row, math.isqrt(3 * left))
        size = 1 if count < FEWEST else min(BLOCK, left // count)
        part = count * size if size > 1 else left
        at = slice(tokens - done - part, tokens - done) if backwards else slice(done, done + part)
        now = out[:, at], a[:, at], b[:, at]
        if size == 1:
            _walk([t.unbind(1) for t in now], carry, backwards)
        else:
            if not buffers or buffers[0].shape[1] != count:
                buffers = tuple(b.new_empty(b.shape[0], count, *b.shape[2:]) for _ in range(3))
            _walk_blocks([t.unflatten(1, (count, size)).unbind(2) for t in now], carry, buffers, backwards)
        carry = out[:, at.start if backwards else at.stop - 1]
        done += part


def _walk(rows: list[tuple[Tensor, ...]], h: Tensor, backwards: bool) -> None:
    for out, a, b in zip(*(r[::-1] if backwards else r for r in rows), strict=True):
        h = torch.addcmul(b, a, h, out=out)


def _walk_blocks(rows: list[tuple[Tensor, ...]], carry: Tensor, buffers: tuple[Tensor, ...], backwards: bool) -> None:
    """The rows (B,count,...) of all blocks at once. Each block ends in factor * (h before it) + end."""
    _, a, b = rows = [r[::-1] if backwards else r for r in rows]
    factor, end, before = buffers
    factor.copy_(a[0])
    end.copy_(b[0])
    for f, x in zip(a[1:], b[1:], strict=True):
        torch.addcmul(x, f, end, out=end)
        factor.mul_(f)
    factors, ends, befores = (t.unbind(1)[::-1] if backwards else t.unbind(1) for t in buffers)
    befores[0].copy_(carry)
    for f, x, h, after in zip(factors, ends, befores, befores[1:], strict=False):
        torch.addcmul(x, f, h, out=after)
    _walk(rows, before, False)


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
