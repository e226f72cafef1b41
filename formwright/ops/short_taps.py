"""The sums of ops.convolution's causal short filter, block by block, so that what a sum of taps touches stays in cache.

    y_t = b + sum_{j<W} w_j u_{t-(W-1)+j},    du_t = sum_j w_j dy_{t+(W-1)-j},    dw_j = sum_t dy_t u_{t-(W-1)+j}

Every tap reads and writes all of y: over a long sequence that is W passes over memory, here one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 2**16  # elements of one block
LEAST = 32  # tokens below which one pass is no longer than the blocks' overhead
LEAST_ROW = 2**15  # elements of a row, likewise


def pays(x: Tensor) -> bool:
    """Whether blocks are faster than whole tensors for x (B, N, D)."""
    long = x.shape[1] >= LEAST and x.shape[1] * x.shape[2] >= LEAST_ROW and x.numel() > BLOCK
    return x.device.type == "cpu" and long and not torch.compiler.is_compiling()


def short_taps(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> Tensor:
    """x (B,N,D), weight (D,W), bias (D,), state (B,W-1,D) the inputs before x -> y (B,N,D), N >= W."""
    inputs = x, weight, bias, state
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return _ShortTaps.apply(*inputs)
    return _forward(*inputs)


class _ShortTaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, state):
        ctx.save_for_backward(x, weight, bias, state)
        return _forward(x, weight, bias, state)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return _backward(dy.contiguous(), *ctx.saved_tensors)


def _spans(start: int, stop: int, dim: int) -> list[tuple[int, int]]:
    rows = max(1, BLOCK // dim)
    return [(a, min(a + rows, stop)) for a in range(start, stop, rows)]


def _sum_taps(out: Tensor, source: Tensor, start: int, taps: list[Tensor], bias: Tensor | None = None) -> None:
    """out (T, D) = bias + sum_j taps[j] source[start + j : start + j + T]."""
    size = out.shape[0]
    if bias is None:
        torch.mul(source[start : start + size], taps[0], out=out)
    else:
        torch.addcmul(bias, source[start : start + size], taps[0], out=out)
    for j, tap in enumerate(taps[1:], 1):
        out.addcmul_(source[start + j : start + j + size], tap)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> Tensor:
    (batch, tokens, dim), before = x.shape, weight.shape[1] - 1
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    taps = list(weight.mT.contiguous())
    for row in range(batch):
        first = torch.cat([state[row], x[row, :before]])
        _sum_taps(y[row, :before], first, 0, taps, bias)
        for start, stop in _spans(before, tokens, dim):
            _sum_taps(y[row, start:stop], x[row], start - before, taps, bias)
    return y


def _backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor | None, ...]:
    (batch, tokens, dim), before = x.shape, weight.shape[1] - 1
    dx, d_state = torch.empty_like(dy), torch.empty_like(state, memory_format=torch.contiguous_format)
    d_taps = [torch.zeros(dim, dtype=dy.dtype, device=dy.device) for _ in range(before + 1)]
    d_bias = None if bias is None else torch.zeros_like(bias)
    reversed_taps = list(weight.mT.flip(0).contiguous())
    nothing = dy.new_zeros(before, dim)
    product = dy.new_empty(max(before, max(1, BLOCK // dim)), dim)
    for row in range(batch):
        # State and tokens in one line: a place's gradient is that of the `before` tokens after it and its own.
        _sum_taps(d_state[row], torch.cat([nothing, dy[row, :before]]), 0, reversed_taps)
        for start, stop in _spans(0, tokens - before, dim):
            _sum_taps(dx[row, start:stop], dy[row], start, reversed_taps)
        last = torch.cat([dy[row, tokens - before :], nothing])
        _sum_taps(dx[row, tokens - before :], last, 0, reversed_taps)
        first = torch.cat([state[row], x[row, :before]])
        for source, shift, spans in ((first, 0, [(0, before)]), (x[row], before, _spans(before, tokens, dim))):
            for start, stop in spans:
                for j, total in enumerate(d_taps):
                    met = product[: stop - start]
                    torch.mul(dy[row, start:stop], source[start - shift + j : stop - shift + j], out=met)
                    total += met.sum(0)
        if d_bias is not None:
            d_bias += dy[row].sum(0)
    return dx, torch.stack(d_taps, 1), d_bias, d_state
