"""Convolutions along the token axes, one filter for each channel (depthwise).

    short    y_t = b + sum_{j<W} w_j u_{t-(W-1)+j}            a filter of few taps, summed tap by tap
    long     y_t = sum_s h_{t-s} u_s                          a filter as long as the sequence, by FFT

Both are linear, never circular: the FFT is padded so that nothing wraps around. Long convolutions follow
Hyena Hierarchy: Towards Larger Convolutional Language Models, arXiv 2302.10866, 2023; their N-D form
Multi-Dimensional Hyena for Spatial Inductive Bias, arXiv 2309.13600, 2023.

Neither form runs a matrix product or a library convolution, so FlopCounterMode counts nothing: their work is stated
by `short_flops` and `long_flops` for Cost.other_flops. bfloat16 and float16 inputs are computed in float32 and
rounded once at the end, FFTs and sums of taps alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from formwright.ops import short_taps

BACKENDS = ("auto", "reference", "torch")
HALF = (torch.bfloat16, torch.float16)


def short_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    causal: bool = True,
    state: Tensor | None = None,
    offsets: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Depthwise convolution with W taps: x (B, N, D), weight (D, W), bias (D,) -> y (B, N, D) and the new state.

    The last tap, weight[:, W-1], meets the token itself, as in torch's conv1d. `state` (B, W-1, D) holds the inputs
    before x (zeros at the start), and the state returned holds those before the next token, so that pieces of any
    length, shorter than W too, join exactly. causal=False centres the filter (as torch's padding="same"); it has no
    state and returns None for it. `offsets` (S+1,) are the bounds of packed sequences (B = 1), each of which starts
    afresh. half-precision inputs are summed in float32.

    Raises ValueError for shapes that don't fit and for a state where there can be none.
    """
    _check_short(x, weight, causal, state, offsets, backend)
    (batch, tokens, dim), taps = x.shape, weight.shape[1]
    if state is None:
        state = x.new_zeros(batch, taps - 1, dim)
    after = 0 if causal else taps // 2
    before = taps - 1 - after
    if causal and offsets is None and 1 < taps <= tokens and backend != "reference" and _in_one_dtype(x, weight, bias):
        return short_taps.short_taps(x, weight, bias, state.to(x.dtype)), x[:, 1 - taps :].clone()
    if causal:
        padded = torch.cat([state.to(x.dtype), x], 1)
    else:
        padded = F.pad(x, (0, 0, before, after))
    ids = None
    if offsets is not None:
        steps = torch.arange(tokens, device=x.device)
        ids = F.pad(torch.bucketize(steps, offsets.to(x.device)[1:], right=True), (before, after), value=-1)
    run = _short_reference if backend == "reference" else _short_taps
    y = run(padded, weight, bias, tokens, before, ids).to(x.dtype)
    if not causal:
        return y, None
    last = padded[:, tokens:]
    if ids is not None:
        last = torch.where((ids[tokens:] == ids[-1])[:, None], last, 0)
    # A view would keep all of a long prefix in memory; one token more costs less than its copy.
    return y, last if tokens == 1 else last.clone()


def _in_one_dtype(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether taps may be summed block by block: nothing to convert, and enough to sum."""
    same = x.dtype == weight.dtype and x.dtype not in HALF and (bias is None or bias.dtype == x.dtype)
    return same and short_taps.pays(x)


def _short_taps(
    padded: Tensor, weight: Tensor, bias: Tensor | None, tokens: int, before: int, ids: Tensor | None
) -> Tensor:
    if padded.dtype in HALF:
        padded, weight, bias = padded.float(), weight.float(), None if bias is None else bias.float()
    if tokens == 1:
        y = (padded * weight.mT).sum(1, keepdim=True)
        return y if bias is None else y + bias
    y = torch.zeros_like(padded[:, :tokens]) if bias is None else bias.expand(padded.shape[0], tokens, -1)
    for j in range(weight.shape[1]):
        piece = padded[:, j : j + tokens]
        if ids is not None:
            piece = torch.where((ids[j : j + tokens] == ids[before : before + tokens])[:, None], piece, 0)
        y = torch.addcmul(y, piece, weight[:, j])
    return y


def _short_reference(
    padded: Tensor, weight: Tensor, bias: Tensor | None, tokens: int, before: int, ids: Tensor | None
) -> Tensor:
    rows = []
    for t in range(tokens):
        y = torch.zeros_like(padded[:, 0]) if bias is None else bias.expand(padded.shape[0], -1)
        for j in range(weight.shape[1]):
            if ids is None or ids[t + j] == ids[t + before]:
                y = y + weight[:, j] * padded[:, t + j]
        rows.append(y)
    return torch.stack(rows, 1)


def short_flops(tokens: int, dim: int, taps: int, batch: int = 1) -> int:
    """Element-wise operations of short_convolution, for Cost.other_flops (its multiply-adds are counted as none)."""
    return 2 * batch * tokens * dim * taps


def _check_short(
    x: Tensor, weight: Tensor, causal: bool, state: Tensor | None, offsets: Tensor | None, backend: str
) -> None:
    _check_backend("short_convolution", backend)
    if x.ndim != 3 or weight.ndim != 2 or weight.shape[0] != x.shape[2]:
        raise ValueError(
            f"short_convolution takes x (B, N, D) and weight (D, W), but got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if state is not None and not causal:
        raise ValueError("short_convolution: a two-directional filter has no state; leave out state or set causal=True")
    if state is not None and offsets is not None:
        raise ValueError("short_convolution: packed sequences start afresh; give state or offsets, not both")
    if state is not None and state.shape != (x.shape[0], weight.shape[1] - 1, x.shape[2]):
        want = (x.shape[0], weight.shape[1] - 1, x.shape[2])
        raise ValueError(f"short_convolution: state must be (B, W-1, D) = {want}, but is {tuple(state.shape)}")
    if offsets is not None and x.shape[0] != 1:
        raise ValueError(f"short_convolution: packed sequences lie in one row, but x has {x.shape[0]} rows")


def long_convolution(
    u: Tensor, filter: Tensor, *, causal: bool = True, history: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Depthwise convolution with a filter as long as the grid: u (B, *grid, D), filter (*extents, D) -> (B, *grid, D).

    causal=True: the filter's taps are the lags 0, 1, ... along every axis, so each token sees what stands before it on
    all axes. causal=False: the filter is centred, each extent 2L-1 holding the lags -(L-1) ... L-1. Extents need not
    match the grid: lags that reach outside it meet zeros. `history` (B, M, D) are the inputs before u, on one axis and
    causal alone; the outputs are those of u. backend "torch" is the FFT (float32 for half-precision inputs, float64
    for float64), or for one token after a history the plain weighted sum; "reference" sums lag by lag.

    Raises ValueError for shapes that don't fit, centred filters of even extent, and histories where there can be none.
    """
    _check_long(u, filter, causal, history, backend)
    dtype = u.dtype
    if dtype in HALF:
        u, history = u.float(), None if history is None else history.float()
    filter = filter.to(u.dtype)
    tokens = u.shape[1]
    if history is not None:
        u = torch.cat([history.to(u.dtype), u], 1)
    if backend == "reference":
        y = _long_reference(u, filter, causal)
    elif history is not None and tokens == 1:
        reach = min(filter.shape[0], u.shape[1])
        y = (u[:, -reach:] * filter[:reach].flip(0)).sum(1, keepdim=True)
    else:
        y = _long_fft(u, filter, causal)
    return (y[:, -tokens:] if history is not None else y).to(dtype)


def _long_fft(u: Tensor, filter: Tensor, causal: bool) -> Tensor:
    grid, extents = u.shape[1:-1], filter.shape[:-1]
    axes = list(range(len(grid)))
    # Lags beyond the grid meet nothing: dropping them keeps the transforms short.
    for a, (n, extent) in enumerate(zip(grid, extents, strict=True)):
        if causal:
            filter = filter.narrow(a, 0, min(n, extent))
        else:
            reach = min(n - 1, extent // 2)
            filter = filter.narrow(a, extent // 2 - reach, 2 * reach + 1)
    starts = [0 if causal else e // 2 for e in filter.shape[:-1]]
    sizes = [fft_size(n + e - 1 - s) for n, e, s in zip(grid, filter.shape[:-1], starts, strict=True)]
    product = torch.fft.rfftn(u, sizes, dim=[a + 1 for a in axes]) * torch.fft.rfftn(filter, sizes, dim=axes)
    y = torch.fft.irfftn(product, sizes, dim=[a + 1 for a in axes])
    for a, (n, s) in enumerate(zip(grid, starts, strict=True)):
        y = y.narrow(a + 1, s, n)
    return y


def _long_reference(u: Tensor, filter: Tensor, causal: bool) -> Tensor:
    grid, extents = u.shape[1:-1], filter.shape[:-1]
    y = torch.zeros_like(u)
    for tap in itertools.product(*(range(e) for e in extents)):
        lags = [t if causal else t - e // 2 for t, e in zip(tap, extents, strict=True)]
        if all(abs(lag) < n for lag, n in zip(lags, grid, strict=True)):
            to = tuple(slice(max(lag, 0), n + min(lag, 0)) for lag, n in zip(lags, grid, strict=True))
            source = tuple(slice(max(-lag, 0), n - max(lag, 0)) for lag, n in zip(lags, grid, strict=True))
            y[:, *to] = y[:, *to] + filter[tap] * u[:, *source]
    return y


def fft_size(n: int) -> int:
    """The least even length >= n without prime factors above 5: other lengths transform several times slower."""
    size = max(2, n + n % 2)
    while _rough(size) != 1:
        size += 2
    return size


def _rough(n: int) -> int:
    for prime in (2, 3, 5):
        while n % prime == 0:
            n //= prime
    return n


def long_flops(grid: Sequence[int], dim: int, *, causal: bool = True, batch: int = 1) -> int:
    """Floating-point operations of long_convolution by FFT with a filter that covers the grid, for Cost.other_flops:
    5/2 S log2 S for each real transform of S points, six for each complex product."""
    points = math.prod(fft_size(2 * n - 1) for n in grid)
    transforms = (2 * batch + 1) * dim
    return int(transforms * 2.5 * points * math.log2(points)) + 6 * batch * dim * (points // 2 + 1)


def explain(tokens: int, extent: int, *, history: bool = False, backend: str = "auto") -> str:
    """A sentence on how long_convolution computes `tokens` outputs with `extent` taps."""
    _check_backend("long_convolution", backend)
    if backend == "reference":
        return f"reference: {extent} lags summed one after another, as asked"
    if history and tokens == 1:
        return f"torch: one token is a weighted sum over {extent} taps, cheaper than an FFT"
    return f"torch: FFT, {tokens} tokens and {extent} taps, padded so that nothing wraps around"


def _check_long(u: Tensor, filter: Tensor, causal: bool, history: Tensor | None, backend: str) -> None:
    _check_backend("long_convolution", backend)
    if u.ndim < 3 or filter.ndim != u.ndim - 1 or filter.shape[-1] != u.shape[-1]:
        raise ValueError(
            "long_convolution takes u (B, *grid, D) and filter (*extents, D) on the same axes, but got "
            f"{tuple(u.shape)} and {tuple(filter.shape)}"
        )
    if not causal and any(e % 2 == 0 for e in filter.shape[:-1]):
        raise ValueError(f"long_convolution: a centred filter has odd extents, but got {tuple(filter.shape[:-1])}")
    if history is not None and (not causal or u.ndim != 3):
        raise ValueError("long_convolution: a history is for causal filters along one axis alone")


def _check_backend(op: str, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend is one of {', '.join(BACKENDS)}, not {backend!r}")
