"""ops.gated_scan: tiles, and the single token, against the definition."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from formwright.ops import gated_scan as module
from formwright.ops.gated_scan import explain, gated_scan, macs

H, K = 2, 3
D = H * K


def make(batch, tokens, states=None, dtype=torch.float64):
    g = torch.Generator().manual_seed(tokens)
    shapes = [(batch, tokens, D), (batch, tokens, D), (H, K, 2 * K), (H, 1, 2 * K), (D,), (states or batch, D)]
    x, z, weight, bias, rate, state = (torch.randn(*s, generator=g, dtype=dtype) for s in shapes)
    return [t.requires_grad_() for t in (x, z, weight, bias, -rate.exp().detach(), state)]


def run(inputs, **options):
    y, last = gated_scan(*inputs[:5], state=inputs[5], **options)
    return [y, last, *torch.autograd.grad(y.sin().sum() + (last**3).sum(), inputs)]


def compare(found, expected, tolerance=1e-10):
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("elements", [1, 60 * D, 1 << 18])
@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 50])
def test_tiles_equal_the_definition(monkeypatch, tokens, elements, fresh):
    monkeypatch.setattr(module, "CACHED_ELEMENTS", elements)
    inputs = make(3, tokens)
    expected = run(inputs, fresh=fresh, backend="reference")
    compare(run(inputs, fresh=fresh), expected)
    with torch.no_grad():
        compare(gated_scan(*inputs[:5], state=inputs[5], fresh=fresh), expected[:2])


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("bounds", [[0, 40], [0, 1, 18, 18, 40]])
def test_packed_sequences_stand_alone(monkeypatch, bounds, fresh):
    monkeypatch.setattr(module, "CACHED_ELEMENTS", 1)
    inputs, offsets = make(1, 40, len(bounds) - 1), torch.tensor(bounds)
    found = run(inputs, fresh=fresh, offsets=offsets)
    compare(run(inputs, fresh=fresh, offsets=offsets, backend="reference"), found)
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if start == stop:
            torch.testing.assert_close(found[1][number], inputs[5][number])
            continue
        alone = gated_scan(
            *(t[:, start:stop] for t in inputs[:2]), *inputs[2:5], state=inputs[5][[number]], fresh=fresh
        )
        compare(alone, (found[0][:, start:stop], found[1][[number]]))


def test_gradcheck(monkeypatch):
    monkeypatch.setattr(module, "CACHED_ELEMENTS", 1)
    inputs = make(1, 18)
    assert torch.autograd.gradcheck(lambda *t: gated_scan(*t[:5], state=t[5]), inputs)


def test_shut_gates_and_half_precision_stay_finite():
    x, z, weight, bias, rate, state = make(2, 20, dtype=torch.float32)
    for size in (0.0, 1e4):
        found = run([x, z, weight, (bias - size).detach().requires_grad_(), rate, state])
        assert all(t.isfinite().all() for t in found)
    half = [t.bfloat16() for t in (x, z, weight, bias, rate, state)]
    y, last = gated_scan(*half[:5], state=half[5])
    assert y.dtype == last.dtype == torch.bfloat16
    exact = gated_scan(*(t.double() for t in half[:5]), state=half[5].double())[0]
    torch.testing.assert_close(y.double(), exact, rtol=5e-2, atol=5e-2)


def test_compile_and_cost():
    inputs = make(2, 20)
    torch._dynamo.reset()
    compiled = torch.compile(gated_scan, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(f(*inputs[:5])[0].sin().sum(), inputs[:5]) for f in (compiled, gated_scan))
    compare(found, expected)
    with FlopCounterMode(display=False) as counter:
        gated_scan(*inputs[:5])
    assert counter.get_total_flops() == 2 * macs(2, 20, H, K)


def test_words_and_mistakes():
    assert explain(1).startswith("one step")
    assert explain(9).startswith("tiles")
    assert explain(9, device="cuda").startswith("definition in PyTorch")
    assert explain(9, backend="reference").startswith("definition:")
    x, z, weight, bias, rate, state = make(2, 5)
    for given, word in (
        ((x, z[:, 1:], weight, bias, rate), "x and z"),
        ((x, z, weight[..., 1:], bias, rate), "weight"),
        ((x, z, weight, bias[0], rate), "bias"),
    ):
        with pytest.raises(ValueError, match=word):
            gated_scan(*given)
    for options, word in (
        ({"backend": "x"}, "backend"),
        ({"state": state[:1]}, "state"),
        ({"offsets": torch.tensor([0, 5])}, "rows"),
    ):
        with pytest.raises(ValueError, match=word):
            gated_scan(x, z, weight, bias, rate, **options)
