from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from formwright.ops.convolution import explain, fft_size, long_convolution, short_convolution


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("taps", [1, 2, 3, 4])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_short_convolution_is_conv1d(taps, backend):
    x, weight, bias = randn(2, 13, 6), randn(6, taps), randn(6, seed=1)
    padded = F.pad(x.transpose(1, 2), (taps - 1, 0))
    expected = F.conv1d(padded, weight[:, None], bias, groups=6).transpose(1, 2)
    y, state = short_convolution(x, weight, bias, backend=backend)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, padded.transpose(1, 2)[:, 13:])
    both = F.pad(x.transpose(1, 2), ((taps - 1) // 2, taps // 2))
    expected = F.conv1d(both, weight[:, None], groups=6).transpose(1, 2)
    y, state = short_convolution(x, weight, causal=False, backend=backend)
    torch.testing.assert_close(y, expected)
    assert state is None


@pytest.mark.parametrize("cuts", [[1] * 11, [2, 1, 8], [10, 1], [1, 10], [3, 3, 5]])
def test_short_convolution_joins_pieces_shorter_than_its_taps(cuts):
    x, weight, bias = randn(2, 11, 3), randn(3, 5), randn(3, seed=2)
    whole, last = short_convolution(x, weight, bias)
    state, pieces = None, []
    for piece in x.split(cuts, 1):
        y, state = short_convolution(piece, weight, bias, state=state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_short_convolution_restarts_at_packed_sequences(causal, backend):
    x, weight, bias = randn(1, 12, 3), randn(3, 4), randn(3, seed=2)
    offsets = [0, 1, 3, 10, 12]
    packed, state = short_convolution(x, weight, bias, causal=causal, offsets=torch.tensor(offsets), backend=backend)
    alone = [short_convolution(x[:, a:b], weight, bias, causal=causal) for a, b in itertools.pairwise(offsets)]
    torch.testing.assert_close(packed, torch.cat([y for y, _ in alone], 1))
    if causal:
        torch.testing.assert_close(state, alone[-1][1])


def test_short_convolution_differentiates_through_its_state():
    x, weight, bias, state = (
        t.requires_grad_() for t in (randn(2, 3, 2), randn(2, 4), randn(2, seed=3), randn(2, 3, 2))
    )
    assert torch.autograd.gradcheck(lambda a, w, b, s: short_convolution(a, w, b, state=s), (x, weight, bias, state))


def test_short_convolution_sums_bfloat16_in_float32():
    x, weight = randn(2, 64, 8), randn(8, 4)
    half = short_convolution(x.bfloat16(), weight.bfloat16())[0]
    exact = short_convolution(x.bfloat16().double(), weight.bfloat16().double())[0]
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, exact.float().bfloat16())


GRIDS = [
    ((1,), (1,), True),
    ((7,), (7,), True),
    ((7,), (3,), True),
    ((7,), (20,), True),
    ((7,), (13,), False),
    ((7,), (3,), False),
    ((7,), (21,), False),
    ((5, 4), (5, 4), True),
    ((5, 4), (9, 7), False),
    ((3, 4, 2), (3, 4, 2), True),
    ((3, 4, 2), (5, 7, 3), False),
]


@pytest.mark.parametrize(("grid", "extents", "causal"), GRIDS)
def test_long_convolution_equals_its_reference(grid, extents, causal):
    u, h = randn(2, *grid, 3).requires_grad_(), randn(*extents, 3).requires_grad_()
    fast, slow = (long_convolution(u, h, causal=causal, backend=b) for b in ("torch", "reference"))
    torch.testing.assert_close(fast, slow, rtol=1e-11, atol=1e-11)
    weights = randn(*fast.shape, seed=5)
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), (u, h)) for y in (fast, slow)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_long_convolution_reference_is_the_sum_by_hand():
    u, h = randn(1, 6, 1)[0, :, 0], randn(11, 1)[:, 0]
    causal = [sum(h[t - s] * u[s] for s in range(t + 1)) for t in range(6)]
    both = [sum(h[t - s + 5] * u[s] for s in range(6)) for t in range(6)]
    for mode, expected in ((True, causal), (False, both)):
        y = long_convolution(u[None, :, None], h[:, None], causal=mode, backend="reference")
        torch.testing.assert_close(y[0, :, 0], torch.stack(expected))


@pytest.mark.parametrize(("start", "end"), [(8, 9), (3, 4), (1, 9), (6, 8)])
def test_long_convolution_continues_a_history(start, end):
    u, h = randn(2, 9, 3), randn(9, 3)
    whole = long_convolution(u, h)[:, start:end]
    for backend in ("torch", "reference"):
        piece = long_convolution(u[:, start:end], h, history=u[:, :start], backend=backend)
        torch.testing.assert_close(piece, whole)


def test_long_convolution_keeps_half_precision_outside():
    u, h = randn(2, 50, 4).bfloat16(), randn(50, 4).bfloat16()
    y = long_convolution(u, h)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), long_convolution(u.double(), h.double()), rtol=1e-2, atol=2e-2)


def test_fft_sizes_are_even_smooth_and_long_enough():
    for n in range(1, 2000, 7):
        size = rest = fft_size(n)
        assert n <= size <= max(2, 1.2 * n + 1)
        assert size % 2 == 0
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        assert rest == 1


def test_refusals():
    x = randn(1, 5, 2)
    with pytest.raises(ValueError, match="two-directional filter has no state"):
        short_convolution(x, randn(2, 3), causal=False, state=randn(1, 2, 2))
    with pytest.raises(ValueError, match=r"state must be \(B, W-1, D\)"):
        short_convolution(x, randn(2, 3), state=randn(1, 3, 2))
    with pytest.raises(ValueError, match="weight"):
        short_convolution(x, randn(3, 3))
    with pytest.raises(ValueError, match="odd extents"):
        long_convolution(x, randn(4, 2), causal=False)
    with pytest.raises(ValueError, match="history"):
        long_convolution(x, randn(5, 2), causal=False, history=x)
    with pytest.raises(ValueError, match="backend is one of"):
        long_convolution(x, randn(5, 2), backend="cuda")


def test_explain_says_what_runs():
    assert "weighted sum" in explain(1, 9, history=True)
    assert "FFT" in explain(9, 9)
    assert explain(9, 9, backend="reference").startswith("reference")
