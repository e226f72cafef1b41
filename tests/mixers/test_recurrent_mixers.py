"""The mixers on ops.linear_recurrence: their equations written out, step by step, and what they refuse. What all parts
promise (extend, cost, isolation, gradients ...) is held by the laws."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from formwright.contract import Layout, Unsupported
from formwright.mixers.based import Based
from formwright.mixers.gated_deltanet import GatedDeltaNet
from formwright.mixers.gla import GLA
from formwright.mixers.linear_attention import LinearAttention
from formwright.mixers.mamba2 import Mamba2
from formwright.mixers.retention import Retention

N, D = 70, 24


@pytest.fixture
def x():
    return torch.randn(2, N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def built(cls, **options):
    torch.manual_seed(0)
    return cls(D, **{"causal": True, **options}).double()


def check(mixer, x, expected):
    found = mixer(x, Layout((x.shape[1],)))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def heads(t, h):
    return t.unflatten(-1, (h, -1))


def conv(x, weight, bias=None):
    """Depthwise causal convolution by torch's own."""
    y = F.conv1d(F.pad(x.mT, (weight.shape[1] - 1, 0)), weight[:, None], bias, groups=weight.shape[0])
    return y.mT


def test_linear_attention_is_the_quadratic_form(x):
    for causal in (True, False):
        m = built(LinearAttention, heads=3, causal=causal)
        q, k, v = (heads(f(x), 3).transpose(1, 2) for f in (m.query, m.key, m.value))
        scores = (F.elu(q) + 1) @ (F.elu(k) + 1).mT
        scores = scores.tril() if causal else scores
        o = scores @ v / (scores.sum(-1, keepdim=True) + m.eps)
        check(m, x, m.out(o.transpose(1, 2).flatten(2)))


def hedgehog(x, f):
    z = torch.einsum("bhnk,hkr->bhnr", x, f.weight) + f.bias[:, None]
    up, down = z.exp(), (-z).exp()
    return torch.cat([up / up.sum(-1, keepdim=True), down / down.sum(-1, keepdim=True)], -1)


def t2r(x, f):
    return (torch.einsum("bhnk,hkr->bhnr", x, f.weight) + f.bias[:, None]).clamp(min=0)


MAPS = {"relu": lambda x, f: x.clamp(min=0), "hedgehog": hedgehog, "t2r": t2r}


@pytest.mark.parametrize("features", MAPS)
@pytest.mark.parametrize("causal", [True, False])
def test_linear_attention_of_other_features_is_their_quadratic_form(x, features, causal):
    rank = {} if features == "relu" else {"feature_dim": 5}
    m = built(LinearAttention, heads=3, causal=causal, features=features, **rank)
    with torch.no_grad():
        for p in m.parameters():
            p += 0.1 * torch.randn_like(p)
    q, k, v = (heads(f(x), 3).transpose(1, 2) for f in (m.query, m.key, m.value))
    q, k = MAPS[features](q, m.query_features), MAPS[features](k, m.key_features)
    scores = (q @ k.mT).tril() if causal else q @ k.mT
    o = scores @ v / (scores.sum(-1, keepdim=True) + m.eps)
    check(m, x, m.out(o.transpose(1, 2).flatten(2)))
    if causal:
        assert m.empty(2).shape == (2, 3, {"relu": 8, "hedgehog": 10, "t2r": 5}[features], 9)


def test_hedgehog_begins_as_softmaxes_of_queries_and_keys():
    m = built(LinearAttention, heads=3, features="hedgehog").query_features
    z = torch.randn(2, 4, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(m(z), torch.cat([z.softmax(-1), (-z).softmax(-1)], -1))


def test_linear_attention_across_and_padded(x):
    m = built(LinearAttention, heads=3, causal=False)
    context = torch.randn(2, 9, D, dtype=torch.float64)
    y = m(x, Layout((N,)), context, Layout((9,), lengths=torch.tensor([4, 9])))
    torch.testing.assert_close(y[:1], m(x[:1], Layout((N,)), context[:1, :4]))
    padded = m(x, Layout((N,), lengths=torch.tensor([5, N])))
    torch.testing.assert_close(padded[:1, :5], m(x[:1, :5], Layout((5,))))
    with pytest.raises(Unsupported, match="packed"):
        m(x, Layout((N,)), context, Layout((9,), offsets=torch.tensor([0, 9])))


def test_based_is_the_taylor_series(x):
    m = built(Based, heads=3, feature_dim=5)
    q, k, v = (heads(f(x), 3).transpose(1, 2) for f in (m.query, m.key, m.value))
    s = q @ k.mT / math.sqrt(5)
    scores = (1 + s + s**2 / 2).tril()
    check(m, x, m.out((scores @ v / scores.sum(-1, keepdim=True)).transpose(1, 2).flatten(2)))
    assert m.empty(1).shape == (1, 3, 21, m.head_dim + 1)


@pytest.mark.parametrize("causal", [True, False])
def test_retention_is_the_decayed_rotated_form(x, causal):
    m = built(Retention, heads=3, head_dim=6, causal=causal)
    q, k, v = (heads(f(x), 3).transpose(1, 2) for f in (m.query, m.key, m.value))
    t = torch.arange(N, dtype=torch.float64)
    turn = torch.polar(torch.ones(N, 3, dtype=torch.float64), t[:, None] * 10000 ** -torch.linspace(0, 1, 3).double())
    q, k = (torch.view_as_complex(z.unflatten(-1, (-1, 2)).contiguous()) * turn for z in (q, k))
    gamma = 1 - 2 ** (-5 - torch.arange(3, dtype=torch.float64))
    decay = gamma[:, None, None] ** (t[:, None] - t).abs()
    decay = decay.tril() if causal else decay
    o = ((q @ k.mH).real * decay / math.sqrt(6)) @ v
    o = o / torch.sqrt(o.square().mean(-1, keepdim=True) + m.eps)
    found = m(x, Layout((N,)))
    expected = m.out(F.silu(m.gate(x)) * o.transpose(1, 2).flatten(2))
    # torch.linspace in float32 above: the angles agree to its precision alone.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_gla_step_by_step(x):
    m = built(GLA, heads=3)
    q, k, v = (heads(f(x), 3) for f in (m.query, m.key, m.value))
    a = heads(torch.sigmoid(m.forget(x)), 3) ** (1 / 16)
    s, outs = torch.zeros(2, 3, m.key_dim, m.head_dim, dtype=torch.float64), []
    for t in range(N):
        s = a[:, t, :, :, None] * s + k[:, t, :, :, None] * v[:, t, :, None]
        outs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], s) / math.sqrt(m.key_dim))
    o = m.norm(torch.stack(outs, 1)).flatten(2)
    check(m, x, m.out(o * F.silu(m.gate(x))))


MAMBA2_OPTIONS = [
    {},
    {"groups": 2},
    {"groups": 2, "gated_norm": False},
    {"groups": 2, "norm_before_gate": True},
    {"least_step": 0.01, "bias": True},
]


@pytest.mark.parametrize("options", MAMBA2_OPTIONS)
def test_mamba2_step_by_step(x, options):
    m = built(Mamba2, heads=4, head_dim=8, state_dim=5, **options)
    groups = m.groups
    z, mixed, dt = m.inputs(x).split([m.inner, m.convolved, 4], -1)
    u, b, c = F.silu(conv(mixed, m.conv_weight, m.conv_bias)).split([m.inner, 5 * groups, 5 * groups], -1)
    u = heads(u, 4)
    b, c = (heads(t, groups).repeat_interleave(4 // groups, 2) for t in (b, c))
    dt = F.softplus(dt + m.dt_bias)
    held = (dt < m.least_step).double().mean()
    assert 0.1 < held < 0.9 if m.least_step else held == 0
    dt = torch.where(dt < m.least_step, m.least_step, dt)
    s, outs = torch.zeros(2, 4, 8, 5, dtype=torch.float64), []
    for t in range(N):
        s = torch.exp(-m.a_log.exp() * dt[:, t])[..., None, None] * s
        s = s + torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], u[:, t], b[:, t])
        outs.append(torch.einsum("bhpn,bhn->bhp", s, c[:, t]) + m.skip[:, None] * u[:, t])
    y = torch.stack(outs, 1).flatten(2)
    y = y if m.norm_before_gate else y * F.silu(z)
    if m.norm_weight is not None:
        y = y.unflatten(-1, (groups, -1))
        y = (y / torch.sqrt(y.square().mean(-1, keepdim=True) + m.eps)).flatten(2) * m.norm_weight
    y = y * F.silu(z) if m.norm_before_gate else y
    check(m, x, y @ m.out.weight.T + (0 if m.out.bias is None else m.out.bias))


@pytest.mark.parametrize("options", [{}, {"negative_eigenvalues": True}, {"key_heads": 2}, {"key_heads": 1}])
def test_gated_deltanet_step_by_step(x, options):
    m = built(GatedDeltaNet, heads=4, head_dim=8, **options)
    keys = options.get("key_heads", 4)
    mixed = F.silu(conv(m.inputs(x), m.conv_weight))
    q, k, v = mixed.split([8 * keys, 8 * keys, 64], -1)
    q, k, v = (
        heads(q, keys).repeat_interleave(4 // keys, 2),
        heads(k, keys).repeat_interleave(4 // keys, 2),
        heads(v, 4),
    )
    q, k = (t / torch.sqrt(t.square().sum(-1, keepdim=True) + 1e-6) for t in (q, k))
    beta = torch.sigmoid(m.beta(x)) * (1 + m.negative_eigenvalues)
    alpha = torch.exp(-m.a_log.exp() * F.softplus(m.alpha(x) + m.dt_bias))
    s, outs = torch.zeros(2, 4, 8, 16, dtype=torch.float64), []
    for t in range(N):
        s = alpha[:, t, :, None, None] * s
        error = v[:, t] - torch.einsum("bhkv,bhk->bhv", s, k[:, t])
        s = s + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], error)
        outs.append(torch.einsum("bhkv,bhk->bhv", s, q[:, t]) / math.sqrt(8))
    check(m, x, m.out(m.norm(torch.stack(outs, 1)).flatten(2) * F.silu(m.gate(x))))


def test_initial_decays_are_the_papers():
    torch.manual_seed(0)
    m = Mamba2(512, causal=True)
    assert (m.heads, m.head_dim, m.state_dim) == (16, 64, 128)
    assert m.a_log.exp().min() >= 1 and m.a_log.exp().max() <= 16
    step = F.softplus(m.dt_bias)
    assert step.min() >= 1e-4 and step.max() <= 0.1001
    g = GatedDeltaNet(512, causal=True)
    assert (g.heads, g.head_dim, g.value_dim) == (6, 64, 128)
    assert abs(sum(p.numel() for p in g.parameters()) / 512**2 - 6) < 0.1


@pytest.mark.parametrize("cls", [GLA, Mamba2, GatedDeltaNet, Based])
def test_only_the_causal_pattern_is_claimed(cls, x):
    with pytest.raises(Unsupported, match="causal"):
        cls(D)
    with pytest.raises(Unsupported, match="context"):
        built(cls)(x, Layout((N,)), x)


@pytest.mark.parametrize("cls", [LinearAttention, Retention, GLA, Mamba2, GatedDeltaNet, Based])
@pytest.mark.parametrize("dim", [6, 100, 130])
def test_any_width_builds(cls, dim):
    m = cls(dim, causal=True)
    assert m(torch.randn(1, 5, dim), Layout((5,))).shape == (1, 5, dim)


def test_mistakes_are_told():
    for cls, options, word in (
        (LinearAttention, {"features": "learned"}, "hedgehog"),
        (LinearAttention, {"feature_dim": 8}, "learns nothing"),
        (LinearAttention, {"features": "t2r", "feature_dim": 0}, "feature_dim"),
        (Retention, {"head_dim": 5}, "even"),
        (Retention, {"expansion": 0}, "expansion"),
        (GLA, {"gate_rank": 0}, "gate_rank"),
        (Mamba2, {"groups": 7}, "groups=7"),
        (Mamba2, {"state_dim": 0}, "state_dim"),
        (Mamba2, {"gated_norm": False, "norm_before_gate": True}, "drop one"),
        (Mamba2, {"least_step": -0.1}, "least_step"),
        (GatedDeltaNet, {"short": 0}, "short"),
        (GatedDeltaNet, {"heads": 4, "key_heads": 3}, "key_heads=3"),
        (GatedDeltaNet, {"key_heads": 0}, "key_heads=0"),
        (Based, {"feature_dim": 0}, "feature_dim"),
    ):
        with pytest.raises(ValueError, match=word):
            cls(64, causal=True, **options)
