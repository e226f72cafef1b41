"""The short convolution's blocks beside its definition: outputs, states and all gradients, at sizes that cut blocks."""

import pytest
import torch

from formwright.ops import short_taps
from formwright.ops.convolution import short_convolution


def inputs(batch, tokens, dim, taps, with_bias):
    draw = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()  # noqa: E731
    x, weight, state = make(batch, tokens, dim), make(dim, taps), make(batch, taps - 1, dim)
    return x, weight, make(dim) if with_bias else None, state


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("batch", "tokens", "dim", "taps"), [(2, 67, 5, 4), (1, 33, 16, 2), (3, 32, 7, 6)])
def test_blocks_equal_the_definition_forward_and_backward(monkeypatch, batch, tokens, dim, taps, with_bias):
    monkeypatch.setattr(short_taps, "BLOCK", 11 * dim)
    monkeypatch.setattr(short_taps, "LEAST_ROW", 11 * dim)
    x, weight, bias, state = inputs(batch, tokens, dim, taps, with_bias)
    assert short_taps.pays(x)
    leaves = [t for t in (x, weight, bias, state) if t is not None]
    results = []
    for backend in ("reference", "torch"):
        y, last = short_convolution(x, weight, bias, state=state, backend=backend)
        loss = (y * torch.arange(y.numel()).view_as(y).cos()).sum() + last.square().sum()
        results.append((y, last, *torch.autograd.grad(loss, leaves)))
    for slow, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-11, atol=1e-11)


def test_blocks_take_strided_gradients_and_inputs(monkeypatch):
    monkeypatch.setattr(short_taps, "BLOCK", 64)
    x, weight, bias, state = inputs(2, 40, 6, 3, True)
    wide = torch.cat([x, x], -1).detach().requires_grad_()
    y = short_taps.short_taps(wide[..., 6:], weight, bias, state)
    (gradient,) = torch.autograd.grad(y.mT.sum(1).sin().sum(), wide)
    plain = short_convolution(x, weight, bias, state=state, backend="reference")[0]
    (wanted,) = torch.autograd.grad(plain.mT.sum(1).sin().sum(), x)
    torch.testing.assert_close(gradient[..., 6:], wanted, rtol=1e-11, atol=1e-11)
    assert not gradient[..., :6].any()


def test_few_tokens_and_traced_graphs_take_whole_tensors():
    assert not short_taps.pays(torch.zeros(64, short_taps.LEAST - 1, 512))
    assert not short_taps.pays(torch.zeros(1, 64, 8))
    assert not short_taps.pays(torch.zeros(64, 32, 256))  # many rows, each soon done
    assert short_taps.pays(torch.zeros(4, 128, 256))
