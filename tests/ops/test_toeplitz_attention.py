"""Attention weighted by distance: transforms against scores, backward against autograd's, costs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from formwright.ops import toeplitz_attention as toeplitz
from formwright.ops.toeplitz_attention import explain, flops, macs, toeplitz_attention

H, F, V = 2, 3, 5
SIZES = [(1, 1), (2, 7), (64, 64), (65, 65), (97, 97), (130, 200), (3, 200), (300, 300)]


def tensors(n, m, batch=2, causal=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n + m)
    shapes = (batch, n, H, F), (batch, m, H, F), (batch, m, H, V), (H, n + m - 1)
    q, k, v, weights = (torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    weights = weights.exp()
    if causal:
        weights[:, : n - 1] = 0
    return tuple(t.requires_grad_() for t in (q, k, v, weights))


def test_the_reference_is_the_sum_it_says():
    q, k, v, weights = tensors(3, 5, batch=1)
    o = toeplitz_attention(q, k, v, weights, backend="reference")
    for i in range(3):
        for h in range(H):
            place = 5 - 3 + i
            terms = [weights[h, place - j + 3 - 1] * (q[0, i, h] @ k[0, j, h]) * v[0, j, h] for j in range(5)]
            torch.testing.assert_close(o[0, i, h], sum(terms))


@pytest.mark.parametrize("backend", ["dense", "fft"])
@pytest.mark.parametrize("n, m", SIZES)
@pytest.mark.parametrize("causal", [False, True])
def test_all_forms_are_the_reference_with_gradients(n, m, causal, backend):
    inputs = tensors(n, m, causal=causal)
    out, expected = (toeplitz_attention(*inputs, backend=b) for b in (backend, "reference"))
    torch.testing.assert_close(out, expected, atol=1e-9 * float(expected.detach().abs().max()), rtol=0)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)
    found, wanted = (torch.autograd.grad((o * direction).sum(), inputs) for o in (out, expected))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9 * float(b.abs().max()), rtol=0)


@pytest.mark.parametrize("tile", [1, 700, 1 << 30])
def test_any_blocks_give_the_same(monkeypatch, tile):
    monkeypatch.setattr(toeplitz, "TILE", tile)
    inputs = tensors(70, 90)
    out, expected = (toeplitz_attention(*inputs, backend=b) for b in ("fft", "reference"))
    torch.testing.assert_close(out, expected)
    found, wanted = (torch.autograd.grad(o.square().sum(), inputs) for o in (out, expected))
    torch.testing.assert_close(found, wanted)


def test_half_precision_is_computed_in_float32():
    inputs = tensors(130, 130, dtype=torch.bfloat16)
    o = toeplitz_attention(*inputs)
    assert o.dtype == torch.float32
    expected = toeplitz_attention(*(t.double() for t in inputs), backend="reference")
    torch.testing.assert_close(o.double(), expected, atol=1e-5 * float(expected.detach().abs().max()), rtol=0)


@pytest.mark.parametrize("n, m", [(5, 9), (64, 64), (65, 65), (3, 200)])
def test_multiply_adds_are_those_counted(n, m):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        toeplitz_attention(*tensors(n, m))
    sizes = {"heads": H, "features": F, "value_dim": V, "batch": 2}
    assert counter.get_total_flops() // 2 == macs(n, m, **sizes)
    assert flops(n, m, **sizes) > 0


def test_transforms_grow_by_little_more_than_n():
    sizes = {"heads": 1, "features": 32, "value_dim": 65}
    assert flops(16384, 16384, **sizes) < 16**1.15 * flops(1024, 1024, **sizes)


def test_what_it_says():
    assert explain(10).startswith("dense") and explain(100).startswith("fft")
    assert explain(10, backend="fft") == "fft: it was asked for"
    with pytest.raises(ValueError, match="backend is one of"):
        toeplitz_attention(*tensors(2, 2), backend="sdpa")
    q, k, v, weights = tensors(4, 4)
    with pytest.raises(ValueError, match=r"weights must be \(H, N\+M-1\)"):
        toeplitz_attention(q, k, v, weights[:, 1:])
    with pytest.raises(ValueError, match="takes q"):
        toeplitz_attention(q[..., 1:], k, v, weights)
