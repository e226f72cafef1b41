"""ops.linear_scan and ops.selective_scan on CUDA: launches scan_triton_kernels.py, forward and backward.

Memory is linear in N: kept for backward are the inputs and, of the linear scan, h; of the selective scan one state
every 64 tokens. With TRITON_INTERPRET=1 Triton runs the kernels on the CPU, slowly: that is for tests.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from formwright.ops.recurrence_triton import missing, power_of_two

KEPT = 64  # tokens between two states that the selective scan keeps
WIDEST = 256  # states a channel that a program holds
HELD = 1024  # numbers of a program's states


def scan_refusal(device: torch.device, dtype: torch.dtype, form: str = "auto") -> str | None:
    """Why the kernel can't compute a linear_scan of that dtype, as the end of a sentence; None where it can."""
    if form != "auto":
        return f"the kernel is a form of its own, not form={form!r}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the kernel computes float32, bfloat16 and float16, not {dtype}"
    return missing(device)


def selective_refusal(device: torch.device, dtype: torch.dtype, states: int) -> str | None:
    """Why the kernels can't compute a selective_scan with so many states a channel; None where they can."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the kernels compute float32, bfloat16 and float16, not {dtype}"
    if states > WIDEST:
        return f"the kernels hold up to {WIDEST} states a channel, not {states}"
    return missing(device)


class LinearScan(torch.autograd.Function):
    """a and b (B, N, D), state (B, D), all float32 -> h (B, N, D)."""

    @staticmethod
    def forward(ctx, a, b, state):
        from formwright.ops import scan_triton_kernels as kernels  # here, for triton is optional

        a, b, state = a.contiguous(), b.contiguous(), state.contiguous()
        h = torch.empty_like(b)
        grid, sizes = _scan_tiles(*b.shape)
        with torch.cuda.device_of(b):
            kernels.scan_forward[grid](a, b, state, h, *b.shape[1:], **sizes)
        ctx.save_for_backward(a, h, state)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, d_h):
        from formwright.ops import scan_triton_kernels as kernels

        a, h, state = ctx.saved_tensors
        d_h = d_h.contiguous()
        d_a, d_b, d_state = torch.empty_like(h), torch.empty_like(h), torch.empty_like(state)
        grid, sizes = _scan_tiles(*h.shape)
        with torch.cuda.device_of(h):
            kernels.scan_backward[grid](a, h, state, d_h, d_a, d_b, d_state, *h.shape[1:], **sizes)
        return d_a, d_b, d_state


def _scan_tiles(batch: int, tokens: int, dim: int) -> tuple[tuple[int, int], dict[str, int]]:
    width = power_of_two(dim, 1, 32)
    return (batch, -(-dim // width)), {"T": power_of_two(tokens, 2, 64), "W": width, "num_warps": 4}


class SelectiveScan(torch.autograd.Function):
    """selective_scan over sequences [(start, stop), ...] of the rows laid end to end -> y and the last states."""

    @staticmethod
    def forward(ctx, u, delta, a, b, c, state, bounds):
        from formwright.ops import scan_triton_kernels as kernels

        inputs = [t.contiguous() for t in (u, delta, a, b, c)]
        counts = [-(-(stop - start) // KEPT) for start, stop in bounds]
        table = torch.tensor([0, *(stop for _, stop in bounds)], device=u.device)
        first = torch.tensor([0, *counts], device=u.device).cumsum(0)
        kept = torch.empty(sum(counts), *a.shape, dtype=torch.float32, device=u.device)
        y, final = torch.empty_like(inputs[0]), torch.empty_like(state, memory_format=torch.contiguous_format)
        grid, sizes = _selective_tiles(len(bounds), *a.shape)
        with torch.cuda.device_of(u):
            kernels.selective_forward[grid](
                *inputs, state.contiguous(), y, final, kept, table, first, *a.shape, **sizes
            )
        ctx.save_for_backward(*inputs, kept, table, first)
        ctx.state_dtype = state.dtype
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y, d_final):
        from formwright.ops import scan_triton_kernels as kernels

        *inputs, kept, table, first = ctx.saved_tensors
        u, delta, a, b, c = inputs
        sequences, tokens = len(table) - 1, u.shape[0] * u.shape[1]
        grid, sizes = _selective_tiles(sequences, *a.shape)
        wide = {"dtype": torch.float32, "device": u.device}
        d_u, d_delta = torch.empty_like(u), torch.empty_like(delta)
        d_a, d_state = torch.empty(sequences, *a.shape, **wide), torch.empty(sequences, *a.shape, **wide)
        d_b, d_c = (torch.empty(grid[1], tokens, a.shape[1], **wide) for _ in range(2))
        work = torch.empty(grid[0] * grid[1], KEPT, sizes["W"], sizes["SS"], **wide)
        gradients = (d_y.contiguous(), d_final.contiguous(), d_u, d_delta, d_a, d_b, d_c, d_state)
        with torch.cuda.device_of(u):
            kernels.selective_backward[grid](*inputs, kept, *gradients, work, table, first, *a.shape, tokens, **sizes)
        d_b, d_c = (t.sum(0).view(like.shape).to(like.dtype) for t, like in ((d_b, b), (d_c, c)))
        return d_u, d_delta, d_a.sum(0).to(a.dtype), d_b, d_c, d_state.to(ctx.state_dtype), None


def _selective_tiles(sequences: int, dim: int, states: int) -> tuple[tuple[int, int], dict[str, int]]:
    held = power_of_two(states, 1, WIDEST)
    width = power_of_two(dim, 1, max(1, HELD // held))
    return (sequences, -(-dim // width)), {"W": width, "SS": held, "KEPT": KEPT, "num_warps": 4}
