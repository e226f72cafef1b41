"""ops.selective_scan: tiles against the definition, forward and backward, whatever cuts the tiles."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from formwright.ops import selective_scan as module
from formwright.ops.selective_scan import explain, flops, macs, selective_scan


def make(batch, tokens, dim, size, dtype=torch.float64, states=None):
    g = torch.Generator().manual_seed(tokens)
    u, delta, a, b, c, state = (
        torch.randn(*shape, generator=g, dtype=dtype)
        for shape in (
            *[(batch, tokens, dim)] * 2,
            (dim, size),
            *[(batch, tokens, size)] * 2,
            (states or batch, dim, size),
        )
    )
    return [t.requires_grad_() for t in (u, F.softplus(delta).detach(), -a.exp().detach(), b, c, state)]


def run(inputs, **options):
    y, last = selective_scan(*inputs[:5], state=inputs[5], **options)
    return [y, last, *torch.autograd.grad(y.sin().sum() + (last**3).sum(), inputs)]


def compare(found, expected, tolerance=1e-10):
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=tolerance, atol=tolerance)


# (ROW, CACHED_ELEMENTS): one tile; blocks of 16 channels; tiles of 8 tokens; a row of the batch at a time
CUTS = [(1 << 14, 1 << 19), (48, 1 << 19), (1 << 14, 1), (48, 1), (60, 600)]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 33])
def test_tiles_equal_the_definition(monkeypatch, tokens, cut):
    inputs = make(3, tokens, 20, 3)
    expected = run(inputs, backend="reference")
    monkeypatch.setattr(module, "ROW", cut[0])
    monkeypatch.setattr(module, "CACHED_ELEMENTS", cut[1])
    compare(run(inputs), expected)
    with torch.no_grad():
        compare(selective_scan(*inputs[:5], state=inputs[5]), expected[:2])


def test_gradcheck(monkeypatch):
    monkeypatch.setattr(module, "CACHED_ELEMENTS", 1)
    inputs = make(2, 11, 3, 2)
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t[:5], state=t[5]), inputs)


def test_rounds_equal_steps(monkeypatch):
    inputs = make(2, 37, 6, 4)
    expected = run(inputs)
    torch._dynamo.reset()
    graph = torch.compile(lambda *t: selective_scan(*t[:5], state=t[5]), fullgraph=True, backend="aot_eager")
    y, last = graph(*inputs)
    compare([y, last, *torch.autograd.grad(y.sin().sum() + (last**3).sum(), inputs)], expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("bounds", [[0, 5, 6, 30], [0, 0, 17, 17, 30]])
def test_packed_sequences_are_alone(bounds):
    inputs = make(1, 30, 5, 3, states=len(bounds) - 1)
    offsets = torch.tensor(bounds)
    found = run(inputs, offsets=offsets)
    compare(found, run(inputs, offsets=offsets, backend="reference"))
    u, delta, a, b, c, state = inputs
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if stop > start:
            piece = [t[:, start:stop] for t in (u, delta)], [t[:, start:stop] for t in (b, c)]
            y, last = selective_scan(*piece[0], a, *piece[1], state=state[[i]])
            torch.testing.assert_close(found[0][:, start:stop], y)
            torch.testing.assert_close(found[1][[i]], last)


def test_pieces_join_and_half_precision():
    u, delta, a, b, c, state = (t.detach() for t in make(2, 40, 6, 4))
    y, last = selective_scan(u, delta, a, b, c, state=state)
    first, middle = selective_scan(*(t[:, :13] for t in (u, delta)), a, b[:, :13], c[:, :13], state=state)
    second, end = selective_scan(*(t[:, 13:] for t in (u, delta)), a, b[:, 13:], c[:, 13:], state=middle)
    compare([torch.cat([first, second], 1), end], [y, last])
    half = [t.bfloat16() for t in (u, delta, a, b, c, state)]
    found, end = selective_scan(*half[:5], state=half[5])
    assert found.dtype == end.dtype == torch.bfloat16
    exact = selective_scan(*(t.double() for t in half[:5]), state=half[5].double())
    compare([found.double(), end.double()], exact, 2e-2)


def test_strong_decays_and_long_sequences_stay_finite():
    u, delta, a, b, c, _ = make(1, 3000, 4, 2, torch.float32)
    inputs = [u, delta, a, b, c]
    y, _ = selective_scan(u, 1e4 * delta, a, b, c)
    assert all(t.isfinite().all() for t in (y, *torch.autograd.grad(y.sum(), inputs)))


def test_memory_holds_no_state_of_every_token():
    u, delta, a, b, c, _ = make(1, 512, 8, 16, torch.float32)
    y, _ = selective_scan(u, delta, a, b, c)
    kept = sum(t.numel() for t in y.grad_fn.saved_tensors)
    assert kept < 0.2 * 512 * 8 * 16 + sum(t.numel() for t in (u, delta, a, b, c))


def test_macs_are_those_counted():
    inputs = make(2, 50, 6, 4, torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        selective_scan(*inputs[:5])
    assert counter.get_total_flops() == 2 * macs(2, 50, 6, 4)
    assert flops(2, 50, 6, 4) > 0
    assert "tiles" in explain(50) and "one step" in explain(1) and "reference" in explain(50, backend="reference")


def test_mistakes_are_told():
    u, delta, a, b, c, state = make(2, 5, 4, 3)
    for change, options, word in (
        ((u, delta[:, 1:], a, b, c), {}, "u and delta"),
        ((u, delta, a.mT, b, c), {}, r"a must be \(D,S\)"),
        ((u, delta, a, b[..., 1:], c), {}, "b and c"),
        ((u, delta, a, b, c), {"state": state[:1]}, "state must be"),
        ((u, delta, a, b, c), {"backend": "fast"}, "backend is one of"),
        ((u, delta, a, b, c), {"offsets": torch.tensor([0, 5])}, "offsets must rise"),
    ):
        with pytest.raises(ValueError, match=word):
            selective_scan(*change, **options)
