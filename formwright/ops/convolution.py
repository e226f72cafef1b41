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

import torch
import torch.nn.functional as F
from torch import Tensor

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
    return y, last.clone()


def _short_taps(
    padded: Tensor, weight: Tensor, bias: Tensor | None, tokens: int, before: int, ids: Tensor | None
) -> Tensor:
    if padded.dtype in HALF:
        padded, weight, bias = padded.float(), weight.float(), None if bias is None else bias.float()
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


def _check_backend(op: str, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend is one of {', '.join(BACKENDS)}, not {backend!r}")
