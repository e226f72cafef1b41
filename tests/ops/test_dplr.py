"""ops.dplr: the chunked form against the definition, strong decays, states, packed sequences, counted costs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from formwright.ops import dplr
from formwright.ops.dplr import dplr_recurrence
from formwright.ops.recurrence import linear_recurrence

B, H, K, V = 2, 3, 5, 7


def made(n, strong=0.6, dtype=torch.float64, batch=B):
    """q, k, v, a, b, log_decay: a transition like RWKV-7's, decays of up to exp(-strong) a token."""
    draw = torch.Generator().manual_seed(n)
    q, k, v, kappa = (torch.randn(batch, n, H, e, generator=draw, dtype=dtype) for e in (K, K, V, K))
    kappa = kappa / kappa.norm(dim=-1, keepdim=True)
    rate, decay = (torch.rand(batch, n, H, K, generator=draw, dtype=dtype) for _ in range(2))
    return [q, k, v, -kappa, kappa * rate, -strong * decay]


def first_state(rows=B):
    return torch.randn(rows, H, K, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_definition_as_matrices():
    q, k, v, a, b, g = made(9)
    o, last = dplr.reference(q, k, v, a, b, g, state=first_state())
    s = first_state().mT
    for t in range(9):
        transition = torch.diag_embed(g[:, t].exp()) + a[:, t, :, :, None] * b[:, t, :, None]
        s = s @ transition + v[:, t, :, :, None] * k[:, t, :, None]
        torch.testing.assert_close(o[:, t], (s @ q[:, t, :, :, None]).squeeze(-1))
    torch.testing.assert_close(last, s.mT)


@pytest.mark.parametrize("strong", [0.0, 0.6, 300.0])
@pytest.mark.parametrize("n", [1, 2, 3, 31, 32, 33, 65, 130])
def test_chunked_is_the_definition(n, strong):
    inputs = [t.requires_grad_() for t in [*made(n, strong), first_state()]]
    weights = torch.randn(B, n, H, V, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = []
    for options in ({"form": "chunked"}, {"backend": "reference"}):
        o, last = dplr_recurrence(*inputs[:6], state=inputs[6], **options)
        found.append([o, last, *torch.autograd.grad((o * weights).sum() + last.square().sum(), inputs)])
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("n", [64, 129, 200])
def test_chunks_computed_apart_are_chunks_computed_together(n, monkeypatch):
    inputs = [t.requires_grad_() for t in [*made(n), first_state()]]
    found = []
    for elements in (10**9, 1):
        monkeypatch.setattr(dplr, "CACHED_ELEMENTS", elements)
        with FlopCounterMode(display=False) as counter:
            o, last = dplr_recurrence(*inputs[:6], state=inputs[6])
        assert counter.get_total_flops() == 2 * dplr.macs(B, n, H, K, V)
        found.append([o, last, *torch.autograd.grad(o.sum() + last.square().sum(), inputs)])
    torch.testing.assert_close(found[0], found[1])


def test_the_gated_delta_rule_is_a_special_case():
    q, k, v, _, _, g = made(70)
    k = k / k.norm(dim=-1, keepdim=True)
    beta = torch.sigmoid(v[..., 0])
    expected, last = linear_recurrence(q, k, v, log_decay=g, beta=beta)
    written = beta[..., None] * k
    o, s = dplr_recurrence(q, written, v, g.exp() * k, -written, g)
    torch.testing.assert_close((o, s), (expected, last))


def test_forgetting_everything_and_float32():
    inputs = made(100, 3.0)
    inputs[5][:, 40] = -math.inf
    o, last = dplr_recurrence(*inputs, state=first_state())
    expected, expected_last = dplr.reference(*inputs, state=first_state())
    torch.testing.assert_close((o, last), (expected, expected_last))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        rounded = [t.to(dtype) for t in made(200, 60.0)]
        o, last = dplr_recurrence(*rounded)
        exact = dplr.reference(*(t.double() for t in rounded))[0]
        assert o.dtype == last.dtype == dtype
        assert (o.double() - exact).norm() < tolerance * exact.norm()


def test_pieces_join_and_packed_sequences_are_alone():
    inputs, state, outs = made(80), first_state(), []
    whole, last = dplr_recurrence(*inputs, state=state)
    for start, stop in ((0, 1), (1, 40), (40, 80)):
        o, state = dplr_recurrence(*(t[:, start:stop] for t in inputs), state=state)
        outs.append(o)
    torch.testing.assert_close((torch.cat(outs, 1), state), (whole, last))
    one = [t[:1] for t in inputs]
    bounds = [0, 1, 1, 50, 80]
    o, states = dplr_recurrence(*one, state=first_state(4), offsets=torch.tensor(bounds))
    torch.testing.assert_close(states[1], first_state(4)[1])
    for i in (0, 2, 3):
        a, b = bounds[i : i + 2]
        alone, s = dplr_recurrence(*(t[:, a:b] for t in one), state=first_state(4)[i : i + 1])
        torch.testing.assert_close((o[:, a:b], states[i : i + 1]), (alone, s))


@pytest.mark.parametrize("n", [1, 2, 20, 32, 33, 100])
def test_macs_are_those_counted(n):
    with FlopCounterMode(display=False) as counter:
        dplr_recurrence(*made(n))
    assert counter.get_total_flops() == 2 * dplr.macs(B, n, H, K, V)
    bounds = [0, n // 3, n]
    with FlopCounterMode(display=False) as counter:
        dplr_recurrence(*made(n, batch=1), offsets=torch.tensor(bounds))
    assert counter.get_total_flops() == 2 * dplr.macs(1, n, H, K, V, lengths=[n // 3, n - n // 3])


def test_mistakes_and_explanations():
    inputs = made(4)
    with pytest.raises(ValueError, match="form is one of"):
        dplr_recurrence(*inputs, form="parallel")
    with pytest.raises(ValueError, match="backend is one of"):
        dplr_recurrence(*inputs, backend="fast")
    with pytest.raises(ValueError, match="log_decay must be as q"):
        dplr_recurrence(*inputs[:5], inputs[5][..., 0])
    with pytest.raises(ValueError, match="state must be"):
        dplr_recurrence(*inputs, state=first_state()[:1])
    with pytest.raises(ValueError, match="one row"):
        dplr_recurrence(*inputs, offsets=torch.tensor([0, 4]))
    assert "chunked" in dplr.explain(100) and "single token" in dplr.explain(1)
    assert "definition" in dplr.explain(9, backend="reference") and "asked" in dplr.explain(9, form="chunked")
