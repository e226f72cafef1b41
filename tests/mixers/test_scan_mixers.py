"""The mixers on scans and their kin: their equations written out, step by step, and what they refuse. What all parts
promise (extend, cost, isolation, gradients ...) is held by the laws."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from formwright.contract import Layout, Unsupported
from formwright.mixers.hgrn2 import HGRN2
from formwright.mixers.lmu import LMU
from formwright.mixers.lru import LRU
from formwright.mixers.mamba import Mamba
from formwright.mixers.min_gru import MinGRU
from formwright.mixers.rg_lru import RGLRU
from formwright.mixers.s4d import S4D

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


@pytest.mark.parametrize("options", [{}, {"state_dim": 7, "radii": (0.0, 0.5), "phase": 0.3}])
def test_lru_step_by_step(x, options):
    m = built(LRU, **options)
    decay = torch.exp(torch.complex(-m.nu.exp(), m.theta.exp()))
    write = torch.complex(*m.inputs.weight.chunk(2)) * m.gamma.exp()[:, None]
    real, negative = m.outputs.weight.chunk(2, -1)
    read = torch.complex(real, -negative)
    h, outs = torch.zeros(2, m.state_dim, dtype=torch.complex128), []
    for t in range(N):
        h = decay * h + x[:, t].to(h.dtype) @ write.mT
        outs.append((h @ read.mT).real + m.skip * x[:, t])
    a, b = m.out(F.gelu(torch.stack(outs, 1))).chunk(2, -1)
    check(m, x, a * torch.sigmoid(b))


def test_lru_begins_on_its_ring():
    torch.manual_seed(0)
    m = LRU(2048, causal=True, radii=(0.5, 0.9), phase=1.0)
    size = torch.exp(-m.nu.exp())
    assert 0.4999 < size.min() < 0.51 and 0.89 < size.max() < 0.9001
    # Uniform in area: the median of the squared radius is the middle of the ring.
    assert abs(size.square().median() - (0.25 + 0.81) / 2) < 0.02
    assert m.theta.exp().max() <= 1.0
    torch.testing.assert_close(m.gamma.exp(), torch.sqrt(1 - size**2))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("spectrum", ["lin", "inv"])
def test_s4d_is_its_recurrence(x, causal, spectrum):
    m = built(S4D, causal=causal, spectrum=spectrum, state_dim=10)
    a = torch.complex(-m.log_rate.exp(), m.angle)
    decay = torch.exp(m.log_step.exp()[:, None] * a)
    c = torch.view_as_complex(m.read)

    def recur(tokens, weights):
        h, outs = torch.zeros(2, D, 5, dtype=torch.complex128), []
        for t in range(tokens.shape[1]):
            h = decay * h + (decay - 1) / a * tokens[:, t, :, None]
            outs.append(2 * (weights * h).sum(-1).real)
        return torch.stack(outs, 1)

    y = recur(x, c[0]) + m.skip * x
    if not causal:
        y[:, :-1] += recur(x.flip(1), c[1]).flip(1)[:, 1:]
    p, q = m.out(F.gelu(y)).chunk(2, -1)
    check(m, x, p * torch.sigmoid(q))


def test_s4d_begins_as_the_paper():
    lin, inv = S4D(4, state_dim=6), S4D(4, state_dim=6, spectrum="inv")
    torch.testing.assert_close(lin.angle[0], torch.tensor([0, math.pi, 2 * math.pi]))
    torch.testing.assert_close(inv.angle[0], torch.tensor([6 / math.pi * (6 / k - 1) for k in (1, 3, 5)]))
    torch.testing.assert_close(lin.log_rate.exp(), torch.full((4, 3), 0.5))
    step = S4D(512).log_step.exp()
    assert step.min() >= 0.00099 and step.max() <= 0.1001


@pytest.mark.parametrize("options", [{}, {"window": 20, "order": 6, "memory_dim": 3}])
def test_lmu_step_by_step(x, options):
    m = built(LMU, **options)
    q = m.order
    # Zero-order hold by one exponential of the joined system [[A, B], [0, 0]].
    joined = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    for i in range(q):
        for j in range(q):
            joined[i, j] = (2 * i + 1) * (-1 if i < j else (-1) ** (i - j + 1))
        joined[i, q] = (2 * i + 1) * (-1) ** i
    step, write = torch.linalg.matrix_exp(joined / m.window)[:q].split([q, 1], -1)
    u = F.relu(m.signal(x))
    memory, outs = torch.zeros(2, q, m.signals, dtype=torch.float64), []
    for t in range(N):
        memory = step @ memory + write * u[:, t, None]
        outs.append(F.relu(m.memory(memory.flatten(1)) + m.input(x[:, t])))
    check(m, x, torch.stack(outs, 1))


def test_lmu_remembers_a_window():
    m = LMU(8, causal=True, window=100, order=16, memory_dim=1)
    t = torch.arange(400, dtype=torch.float64)
    u = torch.sin(t / 25)
    memory, last = m._remember(u[None, :, None], None)
    # The coefficients belong to Legendre polynomials shifted to [0, 1]: 0 is now, 1 is `window` tokens ago.
    ago = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    basis = [torch.special.legendre_polynomial_p(2 * ago - 1, i) for i in range(16)]
    torch.testing.assert_close(
        torch.stack(basis, -1) @ last[0, :, 0], torch.sin((399.5 - 100 * ago) / 25), rtol=0, atol=2e-2
    )
    assert memory.shape == (1, 400, 16, 1)


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


@pytest.mark.parametrize("cls", [Mamba, HGRN2, RGLRU, MinGRU, LRU, LMU])
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
        (LRU, {"radii": (0.9, 1.0)}, "radii"),
        (S4D, {"state_dim": 5}, "even"),
        (S4D, {"spectrum": "real"}, "spectrum"),
        (LMU, {"window": 0}, "window"),
    ):
        with pytest.raises(ValueError, match=word):
            cls(64, causal=True, **options)
