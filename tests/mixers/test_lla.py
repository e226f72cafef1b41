"""Local linear attention as a mixer: its equations written out, its limit, decoding, and what it refuses. What all
parts promise (extend, cost, isolation, gradients ...) is held by the laws."""

from __future__ import annotations

import pytest
import torch

from formwright.contract import Layout, Unsupported
from formwright.mixers.attention import Attention
from formwright.mixers.lla import LocalLinearAttention
from formwright.positions.alibi import Alibi
from formwright.positions.rope import Rope

N, D = 30, 24


@pytest.fixture
def x():
    return torch.randn(2, N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def built(cls=LocalLinearAttention, **options):
    """In float64, with every parameter moved from where it begins, so that none is zero or one by chance."""
    torch.manual_seed(0)
    mixer = cls(D, **{"heads": 3, **options}).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p += 0.1 * torch.randn_like(p)
    return mixer


def rms(x, scale):
    return scale * x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_equations(x, causal):
    m = built(causal=causal, ridge=0.5, bias=True)
    q, k, v = (linear(x).unflatten(-1, (3, 8)) for linear in (m.query, m.key, m.value))
    q, k = rms(q, m.query_norm.weight), rms(k, m.key_norm.weight)
    ridge = m.ridge(x).exp()
    o = torch.zeros_like(v)
    for b in range(2):
        for i in range(N):
            for h in range(3):
                seen = slice(0, i + 1 if causal else N)
                keys, values = k[b, seen, h], v[b, seen, h]
                w = torch.exp(keys @ q[b, i, h] / 8**0.5)
                rows = torch.cat([torch.ones_like(w)[:, None], keys - q[b, i, h]], 1)
                penalty = torch.diag(torch.tensor([0.0] + 8 * [1.0], dtype=x.dtype)) * ridge[b, i, h]
                fit = torch.linalg.solve((rows * w[:, None]).T @ rows + penalty, (rows * w[:, None]).T @ values)
                o[b, i, h] = fit[0]
    torch.testing.assert_close(m(x, Layout((N,))), m.out(o.flatten(2)), rtol=1e-9, atol=1e-9)


def test_the_ridge_begins_as_asked_and_is_each_tokens_own(x):
    m = LocalLinearAttention(D, heads=3, ridge=0.25).double()
    torch.testing.assert_close(m.ridge(x).exp(), torch.full((2, N, 3), 0.25, dtype=x.dtype))
    m(x, Layout((N,))).square().sum().backward()
    assert (m.ridge.weight.grad != 0).all()


@pytest.mark.parametrize("causal", [False, True])
def test_a_large_ridge_is_softmax_attention(x, causal):
    m, softmax = built(causal=causal, ridge=1e12), built(Attention, causal=causal, qk_norm=True)
    own = m.state_dict()
    softmax.load_state_dict({name: own[name] for name in softmax.state_dict()})
    torch.testing.assert_close(m(x, Layout((N,))), softmax(x, Layout((N,))), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"qk_norm": False}, {"position": Rope}])
@pytest.mark.parametrize("capacity", [None, 7, N])
def test_extend_is_forward_whatever_the_room(x, options, capacity):
    m = built(causal=True, **options)
    state, out = m.empty(2, capacity, like=x), []
    with torch.no_grad():
        for piece in x.split([5, 1, 17, 1, 6], 1):
            o, state = m.extend(piece, state)
            out.append(o)
        torch.testing.assert_close(torch.cat(out, 1), m(x, Layout((N,))), rtol=1e-9, atol=1e-9)
    assert state["keys"].shape[2] >= N and (capacity != N or state["keys"].shape[2] == N)


def test_gradients_flow_through_extend(x):
    m = built(causal=True)
    weights = torch.cos(torch.arange(x.numel(), dtype=x.dtype)).view_as(x)
    (m(x, Layout((N,))) * weights).sum().backward()
    expected = {name: p.grad.clone() for name, p in m.named_parameters()}
    m.zero_grad()
    state, out = m.empty(2, N, like=x), []
    for piece in x.split([11, 1, 18], 1):
        o, state = m.extend(piece, state)
        out.append(o)
    (torch.cat(out, 1) * weights).sum().backward()
    for name, p in m.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-8, atol=1e-8)


def test_refusals(x):
    with pytest.raises(ValueError, match="ridge is 0"):
        LocalLinearAttention(D, ridge=0)
    with pytest.raises(Unsupported, match="lla does not support position=alibi"):
        LocalLinearAttention(D, position=Alibi)
    with pytest.raises(Unsupported, match="extend"):
        LocalLinearAttention(D).empty(2)
    packed = Layout((N,), offsets=torch.tensor([0, 10, N]))
    with pytest.raises(Unsupported, match="packed tokens"):
        built()(x[:1], packed, context=x[:1])
    with pytest.raises(Unsupported, match="a context"):
        built(position=Rope)(x, Layout((N,)), context=x)
