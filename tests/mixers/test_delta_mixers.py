"""Delta-rule and other gated recurrent mixers: their equations written out, step by step, and what they refuse. What
all parts promise (extend, cost, isolation, gradients ...) is held by the laws."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from formwright.contract import Layout, Unsupported
from formwright.mixers.deltanet import DeltaNet
from formwright.mixers.kda import KimiDeltaAttention
from formwright.mixers.lightning import LightningAttention
from formwright.mixers.mlstm import MLSTM, stabiliser
from formwright.mixers.retention import Retention
from formwright.mixers.rwkv7 import RWKV7
from formwright.mixers.xlstm_7b import XLSTM7B

N, D = 70, 24
MIXERS = [DeltaNet, KimiDeltaAttention, LightningAttention, MLSTM, RWKV7, XLSTM7B]


@pytest.fixture
def x():
    return torch.randn(2, N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def built(cls, dim=D, **options):
    """In float64, with every parameter moved from where it begins, so that none is zero or one by chance."""
    torch.manual_seed(0)
    mixer = cls(dim, **{"causal": True, **options}).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p += 0.1 * torch.randn_like(p)
    return mixer


def check(mixer, x, expected):
    torch.testing.assert_close(mixer(x, Layout((x.shape[1],))), expected, rtol=1e-9, atol=1e-9)


def heads(t, h):
    return t.unflatten(-1, (h, -1))


def conv(x, weight, bias=None):
    """Depthwise causal convolution by torch's own."""
    return F.conv1d(F.pad(x.mT, (weight.shape[1] - 1, 0)), weight[:, None], bias, groups=weight.shape[0]).mT


def rms(x, eps):
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)


def delta_rule(q, k, v, beta, decay, s):
    """o_t (B,N,H,V) of S' = decay_t S, S = S' + beta_t k_t (v_t - S'^T k_t)^T; decay (B,N,H,K)."""
    outs = []
    for t in range(q.shape[1]):
        s = decay[:, t, :, :, None] * s
        error = v[:, t] - torch.einsum("bhkv,bhk->bhv", s, k[:, t])
        s = s + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], error)
        outs.append(torch.einsum("bhkv,bhk->bhv", s, q[:, t]) / math.sqrt(q.shape[-1]))
    return torch.stack(outs, 1)


def convolved(m, x):
    """q, k of length 1 and v of a mixer with joint short convolutions."""
    q, k, v = (
        heads(t, m.heads) for t in F.silu(conv(m.inputs(x), m.conv_weight)).split([m.keys, m.keys, m.values], -1)
    )
    q, k = (t / torch.sqrt(t.square().sum(-1, keepdim=True) + 1e-6) for t in (q, k))
    return q, k, v


def start(m):
    return torch.zeros(2, m.heads, m.head_dim, m.value_dim).double() + (0 if m.initial is None else m.initial)


OPTIONS = [{}, {"negative_eigenvalues": True}, {"initial_state": True, "expansion": 2.0}]


@pytest.mark.parametrize("options", OPTIONS)
def test_deltanet_step_by_step(x, options):
    m = built(DeltaNet, heads=2, head_dim=8, **options)
    q, k, v = convolved(m, x)
    beta = torch.sigmoid(m.beta(x)) * (1 + m.negative_eigenvalues)
    o = delta_rule(q, k, v, beta, torch.ones_like(k), start(m))
    check(m, x, m.out((rms(o, 1e-5) * m.norm.weight).flatten(2)))


@pytest.mark.parametrize("options", [*OPTIONS, {"gate_rank": "full"}, {"lower_bound": -5.0}])
def test_kda_step_by_step(x, options):
    m = built(KimiDeltaAttention, heads=2, head_dim=8, **options)
    q, k, v = convolved(m, x)
    beta = torch.sigmoid(m.beta(x)) * (1 + m.negative_eigenvalues)
    if m.gate_rank == "full":
        f, g, bias = x @ m.forget.weight.T, x @ m.gate.weight.T, m.gate.bias
    else:
        f1, f2, g1, g2 = (layer.weight.T for layer in (*m.forget, *m.gate))
        f, g, bias = x @ f1 @ f2, x @ g1 @ g2, m.gate[1].bias
    f, rate = heads(f + m.dt_bias, 2), m.a_log.exp()[:, None]
    decay = torch.exp(-rate * F.softplus(f) if m.lower_bound is None else m.lower_bound / (1 + torch.exp(-rate * f)))
    assert m.lower_bound is None or decay.min() > math.exp(-5)
    o = delta_rule(q, k, v, beta, decay, start(m))
    check(m, x, m.out((rms(o, 1e-5) * m.norm.weight).flatten(2) * torch.sigmoid(g + bias)))


@pytest.mark.parametrize("cls", [DeltaNet, KimiDeltaAttention])
def test_a_learned_first_state_is_every_sequences(cls, x):
    m = built(cls, heads=2, initial_state=True)
    whole = m(x[:1], Layout((N,), offsets=torch.tensor([0, 3, N])))
    torch.testing.assert_close(whole[:, 3:], m(x[:1, 3:], Layout((N - 3,))))
    y, _ = m.extend(x, m.empty(2))
    torch.testing.assert_close(y, m(x, Layout((N,))))
    y.sum().backward()
    assert m.initial.grad.abs().max() > 0


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("options", [{}, {"slopes": "linear", "slope": 0.5}, {"lrpe": False}])
def test_lightning_is_the_quadratic_form(x, options, causal):
    m = built(LightningAttention, heads=3, causal=causal, **options)
    q, k, v = (heads(t, 3).transpose(1, 2) for t in (F.silu(m.query(x)), F.silu(m.key(x)), m.value(x)))
    apart = torch.arange(N).double()[:, None] - torch.arange(N)
    theta = torch.zeros(3, m.head_dim).double() if m.theta is None else m.theta
    turned = torch.cos(theta[:, None, None] * apart[..., None])
    scores = torch.einsum("bhtc,bhsc,htsc->bhts", q, k, turned)
    rates = [8 * h / 3 * 0.5 for h in range(3)] if "slope" in options else [2 ** (-8 * (h + 1) / 3) for h in range(3)]
    decay = torch.exp(-torch.tensor(rates, dtype=torch.float64)[:, None, None] * apart.abs())
    decay = decay.tril() if causal else decay
    o = ((scores * decay) @ v).transpose(1, 2).flatten(2)
    check(m, x, m.out(m.gate(x) * rms(o, 1e-6)))


def test_lightning_without_decay_reads_all_tokens_at_once(x):
    m = built(LightningAttention, heads=2, causal=False, slope=0.0, lrpe=False)
    q, k, v = (heads(t, 2).transpose(1, 2) for t in (F.silu(m.query(x)), F.silu(m.key(x)), m.value(x)))
    check(m, x, m.out(m.gate(x) * rms((q @ (k.mT @ v)).transpose(1, 2).flatten(2), 1e-6)))


@pytest.mark.parametrize("causal", [True, False])
def test_lightning_as_in_minimax(x, causal):
    m = built(LightningAttention, heads=2, causal=causal, lrpe=False, silu_values=True, gate="sigmoid")
    q, k, v = (heads(F.silu(f(x)), 2).transpose(1, 2) for f in (m.query, m.key, m.value))
    t = torch.arange(N, dtype=torch.float64)
    decay = torch.exp(m.log_decay(torch.float64, None)[:, None, None] * (t[:, None] - t).abs())
    o = (q @ k.mT * (decay.tril() if causal else decay)) @ v
    check(m, x, m.out(torch.sigmoid(m.gate(x)) * rms(o.transpose(1, 2).flatten(2), 1e-6)))


@pytest.mark.parametrize("cls", [LightningAttention, Retention])
def test_both_ways_padded_and_packed_are_alone(cls, x):
    m = built(cls, heads=2, causal=False)
    for backend in ("auto", "reference"):
        m.backend = backend
        alone = m(x[:, 3:50], Layout((47,)))
        packed = m(x[:1], Layout((N,), offsets=torch.tensor([0, 3, 50, N])))
        torch.testing.assert_close(packed[:, 3:50], alone[:1])
        padded = m(x[:, 3:], Layout((N - 3,), lengths=torch.tensor([47, N - 3])))
        torch.testing.assert_close(padded[:1, :47], alone[:1])
        with pytest.raises(Unsupported, match="extend"):
            m.empty(1)


def test_lightning_begins_as_its_code():
    m = LightningAttention(512, causal=True)
    assert m.theta[0, 0] == 1 and abs(m.theta[-1, -1].item() - 10000 ** (-2 * 511 / 512)) < 1e-9
    assert torch.allclose(m.log_decay(torch.float64, None), -(2.0 ** -torch.arange(1, 9, dtype=torch.float64)))


def mlstm_inputs(m, x):
    """q, k, v (B,N,H,K), the gates' i, f (B,N,H), and c, z of an mLSTM."""
    inside, z = (x @ m.up.weight.T).split(m.inner, -1)
    c = F.silu(conv(inside, m.conv_weight, m.conv_bias))
    wq, wk = (torch.block_diag(*w) for w in m.query_key.split(m.block, -1))
    q, k, v = c @ wq, c @ wk, inside @ torch.block_diag(*m.value)
    i, f = (torch.cat([q, k, v], -1) @ m.gates.weight.T + m.gates.bias).chunk(2, -1)
    return *(heads(t, m.heads) for t in (q, k, v)), i, f, c, z


def mlstm_output(m, h, c, z):
    h = (h - h.mean(-1, keepdim=True)) / torch.sqrt(h.var(-1, unbiased=False, keepdim=True) + 1e-5)
    return ((h.flatten(2) * m.norm_weight + m.skip * c) * F.silu(z)) @ m.down.weight.T


def cell(q, k, v, i, f):
    """h (B,N,H,V) of the mLSTM's cell as its paper begins it, without a stabiliser."""
    memory, n, outs = 0, 0, []
    for t in range(q.shape[1]):
        forget, write = torch.sigmoid(f[:, t])[..., None], torch.exp(i[:, t])[..., None]
        memory = forget[..., None] * memory + (write * k[:, t])[..., None] * v[:, t, :, None]
        n = forget * n + write * k[:, t]
        query = q[:, t] / math.sqrt(q.shape[-1])
        bound = (n * query).sum(-1).abs().clamp(min=1)
        outs.append(torch.einsum("bhkv,bhk->bhv", memory, query) / bound[..., None])
    return torch.stack(outs, 1)


def test_mlstm_step_by_step_without_a_stabiliser(x):
    m = built(MLSTM, heads=3, eps=0.0)
    q, k, v, i, f, c, z = mlstm_inputs(m, x)
    check(m, x, mlstm_output(m, cell(q, k, v, i, f), c, z))


@pytest.mark.parametrize("soft_cap", [15.0, 0.5])
def test_xlstm_7b_step_by_step_without_a_stabiliser(x, soft_cap):
    m = built(XLSTM7B, heads=3, soft_cap=soft_cap)
    with torch.no_grad():
        m.gates.bias[:3] += 9
    q, k, v, z = (x @ m.inputs.weight.T).split([m.keys, m.keys, m.values, m.values], -1)
    i, f = (soft_cap * torch.tanh((x @ m.gates.weight.T + m.gates.bias) / soft_cap)).chunk(2, -1)
    m.eps = 1e-300  # added to a bound that the stabiliser scales: at its own size it is another number here
    h = cell(*(heads(t, 3) for t in (q, k, v)), i, f)
    h = (h - h.mean(-1, keepdim=True)) / torch.sqrt(h.var(-1, unbiased=False, keepdim=True))
    check(m, x, (h.flatten(2) * m.norm_weight * torch.sigmoid(z)) @ m.out.weight.T)


def test_xlstm_7b_begins_as_its_code():
    m = XLSTM7B(512, causal=True, heads=8)
    assert (m.head_dim, m.value_dim, m.values) == (32, 64, 512)
    assert (m.gates.bias[:8] == -10).all() and torch.equal(m.gates.bias[8:], torch.linspace(3, 6, 8))
    assert not m.gates.weight.any()


def test_mlstm_input_gates_beyond_any_exponential(x):
    m = built(MLSTM, heads=3)
    with torch.no_grad():
        m.gates.weight *= 3000
    q, k, v, i, f, c, z = mlstm_inputs(m, x)
    assert i.max() > 800
    d = F.logsigmoid(f).cumsum(1)
    d = (d[:, :, None] - d[:, None] + i[:, None]).masked_fill(~torch.ones(N, N).bool().tril()[..., None], -math.inf)
    most = d.amax(2, keepdim=True).clamp(min=0)
    scores = torch.einsum("bthk,bshk->btsh", q, k) / math.sqrt(m.head_dim) * torch.exp(d - most)
    bound = torch.maximum(scores.sum(2).abs(), torch.exp(-most[:, :, 0])) + m.eps
    h = torch.einsum("btsh,bshv->bthv", scores, v) / bound[..., None]
    torch.testing.assert_close(m(x, Layout((N,))), mlstm_output(m, h, c, z), rtol=1e-7, atol=1e-7)
    assert m.float()(x.float(), Layout((N,))).isfinite().all()


def test_the_stabiliser_is_its_recurrence(x):
    a, b, m = -x[..., :4].abs(), x[..., 4:8], x[:, 0, 8:12]
    found = stabiliser(a, b, m)
    for t in range(N):
        m = torch.maximum(a[:, t] + m, b[:, t])
        torch.testing.assert_close(found[:, t], m)


def test_mlstm_begins_as_the_paper():
    m = MLSTM(64, causal=True)
    assert (m.heads, m.head_dim, m.inner) == (4, 32, 128)
    assert torch.equal(m.gates.bias[4:], torch.linspace(3, 6, 4)) and not m.gates.weight.any()


def test_rwkv7_step_by_step(x):
    m = built(RWKV7, heads=3, decay_rank=5, rate_rank=6, gate_rank=7)
    before = torch.cat([torch.zeros(2, 1, D).double(), x[:, :-1]], 1)
    xr, xw, xk, xv, xa, xg = (x + (before - x) * mu for mu in m.shift)
    (w1, w2), (a1, a2), (g1, g2) = ([f[0].weight.T, f[2].weight.T] for f in (m.decay, m.rate, m.gate))
    r, k, v = xr @ m.receptance.weight.T, xk @ m.key.weight.T, xv @ m.value.weight.T
    w = torch.exp(-torch.exp(-F.softplus(-(m.decay[2].bias + torch.tanh(xw @ w1) @ w2)) - 0.5))
    a = torch.sigmoid(m.rate[2].bias + xa @ a1 @ a2)
    g = torch.sigmoid(xg @ g1) @ g2
    kappa = heads(k * m.removal, 3)
    kappa = kappa / kappa.norm(dim=-1, keepdim=True)
    k = heads(k * (1 + (a - 1) * m.replacement), 3)
    r, v, w, a = (heads(t, 3) for t in (r, v, w, a))
    s, outs = torch.zeros(2, 3, m.head_dim, m.head_dim).double(), []
    for t in range(N):
        # As the paper writes it: rows are values, the transition multiplies from the right.
        removed = kappa[:, t, :, :, None] * (a * kappa)[:, t, :, None]
        s = s @ (torch.diag_embed(w[:, t]) - removed) + v[:, t, :, :, None] * k[:, t, :, None]
        outs.append((s @ r[:, t, :, :, None]).squeeze(-1))
    o = torch.stack(outs, 1)
    o = (o - o.mean(-1, keepdim=True)) / torch.sqrt(o.var(-1, unbiased=False, keepdim=True) + 64e-5)
    o = o.flatten(2) * m.norm_weight + m.norm_bias
    o = o + ((r * k * m.bonus).sum(-1, keepdim=True) * v).flatten(2)
    check(m, x, (o * g) @ m.out.weight.T)


def test_rwkv7_begins_as_its_code_does():
    torch.manual_seed(0)
    m = RWKV7(256, causal=True)
    assert (m.heads, m.head_dim) == (4, 64)
    assert m.ranks == 32 + 32 + 64
    y = m.decay(torch.randn(3, 256))
    assert torch.equal(y[0], y[1]), "at first the decay is the same for every token"
    assert abs(y[0, 0].item() + 8) < 1e-5 and abs(y[0, -1].item() - 3) < 1e-5
    assert torch.allclose(m.shift[1], 1 - (torch.arange(256) / 256) ** 0.9)


def test_initial_decays_are_the_papers():
    torch.manual_seed(0)
    m = KimiDeltaAttention(512, causal=True)
    assert (m.heads, m.head_dim, m.value_dim, m.gate_rank) == (8, 64, 64, 64)
    assert m.a_log.exp().min() >= 1 and m.a_log.exp().max() <= 16
    step = F.softplus(m.dt_bias)
    assert step.shape == (512,) and step.min() >= 1e-4 and step.max() <= 0.1001
    assert not KimiDeltaAttention(512, causal=True, lower_bound=-5.0).a_log.any()


@pytest.mark.parametrize("cls", [DeltaNet, KimiDeltaAttention, MLSTM, RWKV7, XLSTM7B])
def test_only_the_causal_pattern_is_claimed(cls, x):
    with pytest.raises(Unsupported, match="causal"):
        cls(D)
    with pytest.raises(Unsupported, match="context"):
        built(cls)(x, Layout((N,)), x)


@pytest.mark.parametrize("cls", MIXERS)
@pytest.mark.parametrize("dim", [6, 100, 130])
def test_any_width_builds(cls, dim):
    m = cls(dim, causal=True)
    assert m(torch.randn(1, 5, dim), Layout((5,))).shape == (1, 5, dim)


def test_mistakes_are_told():
    for cls, options, word in (
        (DeltaNet, {"short": 0}, "short"),
        (DeltaNet, {"expansion": 0}, "expansion"),
        (KimiDeltaAttention, {"gate_rank": 0}, "gate_rank"),
        (KimiDeltaAttention, {"gate_rank": "low"}, "'full'"),
        (KimiDeltaAttention, {"lower_bound": 0.4}, "log decays"),
        (LightningAttention, {"slopes": "alibi"}, "geometric"),
        (LightningAttention, {"slope": -1.0}, "slope"),
        (LightningAttention, {"gate": "swish"}, "sigmoid"),
        (MLSTM, {"block": 5}, "block"),
        (MLSTM, {"short": 0}, "short"),
        (RWKV7, {"rate_rank": 0}, "rate_rank"),
        (XLSTM7B, {"soft_cap": 0}, "soft_cap"),
        (XLSTM7B, {"expansion": 0.0}, "expansion"),
        (XLSTM7B, {"heads": 0}, "heads"),
    ):
        with pytest.raises(ValueError, match=word):
            cls(64, causal=True, **options)
