"""ATLAS: its equations written out, step by step, the bound on its steps, and what it refuses. What all parts promise
(extend, cost, isolation, gradients ...) is held by the laws."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from formwright.contract import Layout, Unsupported
from formwright.mixers.atlas import Atlas
from formwright.ops.omega_chunked import newton_schulz

N, D = 50, 24


@pytest.fixture
def x():
    return torch.randn(2, N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def built(**options):
    """In float64, with every parameter moved from where it begins, so that none is zero or one by chance."""
    torch.manual_seed(0)
    mixer = Atlas(D, causal=True, **options).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p += 0.1 * torch.randn_like(p)
    return mixer


def phi(x, w):
    """The monomials of degree 2, those of two variables twice, so that phi . phi is a power series."""
    pairs = (x[..., :, None] * x[..., None, :]).flatten(-2)
    w = w / torch.sqrt(w.square().sum(-1, keepdim=True) + 1e-6)
    return torch.cat([w[:, :1].expand(*x.shape[:-1], 1), w[:, 1:2] * x, w[:, 2:] * pairs], -1)


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": False, "window": 2}, {"block": 4, "window": 3}, {"block": 4, "muon": 3}],
    ids=str,
)
def test_step_by_step(x, options):
    m = built(heads=2, head_dim=8, feature_dim=5, **options)
    c, block, muon = m.window, m.block, options.get("muon", 0)
    mixed = F.conv1d(F.pad(m.inputs(x).mT, (3, 0)), m.conv_weight[:, None], groups=m.convolved).mT
    q, k, v = (t.unflatten(-1, (2, -1)) for t in F.silu(mixed).split([10, 10, 16], -1))
    q, k = (phi(t / torch.sqrt(t.square().sum(-1, keepdim=True) + 1e-6), m.monomials) for t in (q, k))
    alpha = torch.exp(-m.a_log.exp() * F.softplus(m.alpha(x) + m.dt_bias))
    eta, gamma, *theta = torch.sigmoid(m.rates(x)).split(2, -1)
    theta = theta[0] if theta else torch.zeros_like(eta)
    eta = eta if muon else (1 - theta) * eta / (c * block)
    memory, outs = torch.zeros(2, 2, k.shape[-1], 8).double(), []
    s = torch.zeros_like(memory)
    for t in range(N):
        if t % block == 0:
            start = memory
        s = theta[:, t, :, None, None] * s
        for i in range(max(0, t - c + 1), t + 1):
            error = v[:, i] - torch.einsum("bhfv,bhf->bhv", start, k[:, i])
            s = s + torch.einsum("bh,bhf,bhv->bhfv", eta[:, t] * gamma[:, i], k[:, i], error)
        step = s
        if muon:
            # Pairs that are one variable's other order are one feature, longer by sqrt(2), of the mixer's.
            turn = torch.zeros(k.shape[-1], 21).double()
            turn[:6, :6] = torch.eye(6)
            for n, (a, b) in enumerate(torch.triu_indices(5, 5).T.tolist()):
                turn[6 + 5 * a + b, 6 + n] = turn[6 + 5 * b + a, 6 + n] = 1 if a == b else 0.5**0.5
            step = eta[:, t, :, None, None] * (turn @ newton_schulz(turn.T @ s, muon))
        memory = alpha[:, t, :, None, None] * memory + step
        outs.append(torch.einsum("bhfv,bhf->bhv", memory, q[:, t]))
    o = torch.stack(outs, 1)
    o = o / torch.sqrt(o.square().mean(-1, keepdim=True) + 1e-5) * m.norm.weight
    expected = m.out(o.flatten(2) * F.silu(m.gate(x)))
    torch.testing.assert_close(m(x, Layout((N,))), expected, rtol=1e-9, atol=1e-9)


def test_it_begins_with_the_exponentials_series():
    m = Atlas(256, causal=True, degree=3)
    assert (m.heads, m.head_dim, m.feature_dim, m.window, m.block) == (4, 64, 16, 4, 1)
    assert torch.allclose(m.monomials.square(), torch.tensor([1, 1, 1 / 2, 1 / 6]).expand(4, 4))
    assert Atlas(64, causal=True, muon=5).block == 16


def test_a_learned_first_memory_is_every_sequences(x):
    m = built(heads=2, initial_state=True, block=4)
    whole = m(x[:1], Layout((N,), offsets=torch.tensor([0, 3, N])))
    torch.testing.assert_close(whole[:, 3:], m(x[:1, 3:], Layout((N - 3,))))
    y, _ = m.extend(x, m.empty(2))
    torch.testing.assert_close(y, m(x, Layout((N,))))
    y.sum().backward()
    assert m.initial.grad.abs().max() > 0


@pytest.mark.parametrize("options", [{}, {"block": 16}, {"momentum": False, "window": 8}], ids=str)
def test_equal_tokens_at_the_largest_steps_do_not_overflow(options):
    """The worst there is for gradient descent: one direction, and gates that never forget."""
    m = built(**options)
    with torch.no_grad():
        m.rates.bias.fill_(10.0)
        m.rates.bias[2 * m.heads :] = 0
        m.a_log.fill_(-30.0)
    state = m.empty(1, like=torch.ones(1, 1, D).double())
    _, (_, middle) = m.extend(torch.ones(1, 500, D).double(), state)
    _, (_, last) = m.extend(torch.ones(1, 500, D).double(), m.extend(torch.ones(1, 500, D).double(), state)[1])
    assert last.memory.norm() < 1.01 * middle.memory.norm() < 100


def test_only_the_causal_pattern_is_claimed(x):
    with pytest.raises(Unsupported, match="causal"):
        Atlas(D)
    with pytest.raises(Unsupported, match="context"):
        built()(x, Layout((N,)), x)


@pytest.mark.parametrize("dim", [6, 100, 130])
def test_any_width_builds(dim):
    assert Atlas(dim, causal=True)(torch.randn(1, 5, dim), Layout((5,))).shape == (1, 5, dim)


@pytest.mark.parametrize("option", ["feature_dim", "degree", "window", "block", "short"])
def test_mistakes_are_told(option):
    with pytest.raises(ValueError, match=option):
        Atlas(64, causal=True, **{option: 0})
    with pytest.raises(ValueError, match="muon"):
        Atlas(64, causal=True, muon=-1)
