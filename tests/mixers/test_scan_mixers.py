"""The mixers on scans and their kin: their equations written out, step by step, and what they refuse. What all parts
promise (extend, cost, isolation, gradients ...) is held by the laws."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from formwright.contract import Layout, Unsupported
from formwright.mixers.hgrn2 import HGRN2
from formwright.mixers.mamba import Mamba
from formwright.mixers.min_gru import MinGRU
from formwright.mixers.rg_lru import RGLRU

N, D = 70, 24


@pytest.fixture
def x():
    return torch.randn(2, N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def built(cls, **options):
    """The mixer in float64; a learned first state is given other values than zero."""
    torch.manual_seed(0)
    mixer = cls(D, **{"causal": True, **options}).double()
    if getattr(mixer, "initial", None) is not None:
        torch.nn.init.normal_(mixer.initial)
    return mixer


def check(mixer, x, expected):
    torch.testing.assert_close(mixer(x, Layout((x.shape[1],))), expected, rtol=1e-9, atol=1e-9)


def heads(t, h):
    return t.unflatten(-1, (h, -1))


def conv(x, weight, bias=None):
    """Depthwise causal convolution by torch's own."""
    y = F.conv1d(F.pad(x.mT, (weight.shape[1] - 1, 0)), weight[:, None], bias, groups=weight.shape[0])
    return y.mT


@pytest.mark.parametrize("initial", [False, True])
def test_mamba_step_by_step(x, initial):
    m = built(Mamba, state_dim=5, initial_state=initial)
    u, z = m.inputs(x).chunk(2, -1)
    u = F.silu(conv(u, m.conv_weight, m.conv_bias))
    d, b, c = m.select(u).split([m.dt_rank, 5, 5], -1)
    dt = F.softplus(m.dt(d))
    h, outs = m.initial.expand(2, -1, -1) if initial else torch.zeros(2, 2 * D, 5).double(), []
    for t in range(N):
        h = torch.exp(dt[:, t, :, None] * -m.a_log.exp()) * h
        h = h + torch.einsum("bd,bd,bn->bdn", dt[:, t], u[:, t], b[:, t])
        outs.append(torch.einsum("bdn,bn->bd", h, c[:, t]) + m.skip * u[:, t])
    check(m, x, m.out(torch.stack(outs, 1) * F.silu(z)))


@pytest.mark.parametrize("options", [{}, {"lower_bound": 0.4}, {"initial_state": True}])
def test_hgrn2_step_by_step(x, options):
    m = built(HGRN2, heads=3, **options)
    bound = torch.sigmoid(m.bound) if m.bound is not None else torch.zeros(D).double()
    f = heads(bound + (1 - bound) * torch.sigmoid(m.forget(x)), 3)
    q, v = heads(F.silu(m.query(x)), 3), heads(m.value(x), 3)
    s, outs = m.initial.expand(2, -1, -1, -1) if m.initial is not None else torch.zeros(2, 3, 8, 8).double(), []
    for t in range(N):
        s = f[:, t, :, :, None] * s + (1 - f[:, t, :, :, None]) * v[:, t, :, None]
        outs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], s))
    o = torch.stack(outs, 1).flatten(2)
    o = m.norm.weight * o / torch.sqrt(o.square().mean(-1, keepdim=True) + 1e-5)
    check(m, x, m.out(o))
    if m.bound is not None:
        torch.testing.assert_close(bound, torch.full_like(bound, 0.4), rtol=1e-6, atol=0)


@pytest.mark.parametrize("initial", [False, True])
def test_rg_lru_step_by_step(x, initial):
    m = built(RGLRU, heads=3, initial_state=initial)
    torch.nn.init.normal_(m.gates_bias)
    u = conv(m.inputs(x), m.conv_weight, m.conv_bias)
    i, r = (torch.einsum("bnhw,hwv->bnhv", heads(u, 3), w) for w in m.gates.chunk(2, -1))
    i, r = (
        torch.sigmoid(g + bias.squeeze(1)).flatten(2) for g, bias in zip((i, r), m.gates_bias.chunk(2, -1), strict=True)
    )
    h, outs = m.initial.expand(2, -1) if initial else torch.zeros(2, D).double(), []
    for t in range(N):
        a = torch.sigmoid(-m.rate) ** (8 * r[:, t])
        size = 1 if t == 0 and not initial else torch.sqrt(1 - a**2)
        h = a * h + size * (i[:, t] * u[:, t])
        outs.append(h)
    check(m, x, m.out(F.gelu(m.gate(x), approximate="tanh") * torch.stack(outs, 1)))


@pytest.mark.parametrize("options", [{}, {"expansion": 1.5}, {"initial_state": True}])
def test_min_gru_step_by_step(x, options):
    m = built(MinGRU, **options)
    z, c = m.gates(x).chunk(2, -1)
    z, c = torch.sigmoid(z), torch.where(c >= 0, c + 0.5, torch.sigmoid(c))
    h, outs = m.initial.expand(2, -1) if m.initial is not None else torch.zeros(2, m.inner).double(), []
    for t in range(N):
        h = (1 - z[:, t]) * h + z[:, t] * c[:, t]
        outs.append(h)
    check(m, x, m.out(torch.stack(outs, 1)))


@pytest.mark.parametrize("cls", [Mamba, HGRN2, RGLRU, MinGRU])
def test_a_learned_first_state_begins_every_sequence(cls, x):
    m = built(cls, initial_state=True)
    packed = x.reshape(1, 2 * N, D)
    alone = [m(packed[:, a:b], Layout((b - a,))) for a, b in ((0, 1), (1, 60), (60, 2 * N))]
    found = m(packed, Layout((2 * N,), offsets=torch.tensor([0, 1, 60, 2 * N])))
    torch.testing.assert_close(found, torch.cat(alone, 1))
    state, outs = m.empty(2), []
    for piece in x.split([1, 9, N - 10], 1):
        y, state = m.extend(piece, state)
        outs.append(y)
    torch.testing.assert_close(torch.cat(outs, 1), m(x, Layout((N,))))
    assert not torch.allclose(outs[0], built(cls)(x[:, :1], Layout((1,))))
    (grad,) = torch.autograd.grad(torch.cat(outs, 1).sum(), m.initial)
    assert (grad != 0).any()


def test_initial_decays_are_the_papers():
    torch.manual_seed(0)
    m = Mamba(512, causal=True)
    assert (m.inner, m.state_dim, m.dt_rank, m.short) == (1024, 16, 32, 4)
    torch.testing.assert_close(m.a_log.exp(), torch.arange(1.0, 17).expand(1024, 16))
    step = F.softplus(m.dt.bias)
    assert step.min() >= 1e-4 and step.max() <= 0.1001
    decay = torch.exp(-8 * F.softplus(RGLRU(512, causal=True).rate))
    assert decay.min() > 0.8999 and decay.max() < 0.9991


@pytest.mark.parametrize("cls", [Mamba, HGRN2, RGLRU, MinGRU])
def test_only_the_causal_pattern_is_claimed(cls, x):
    with pytest.raises(Unsupported, match="causal"):
        cls(D)
    with pytest.raises(Unsupported, match="context"):
        built(cls)(x, Layout((N,)), x)


def test_mistakes_are_told():
    for cls, options, word in (
        (Mamba, {"state_dim": 0}, "state_dim"),
        (Mamba, {"dt_rank": 0}, "dt_rank"),
        (HGRN2, {"lower_bound": 1.0}, "lower_bound"),
        (RGLRU, {"expansion": 0}, "expansion"),
        (MinGRU, {"expansion": 0}, "expansion"),
    ):
        with pytest.raises(ValueError, match=word):
            cls(64, causal=True, **options)
