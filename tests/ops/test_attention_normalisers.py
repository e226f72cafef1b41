import sys

import pytest
import torch

from formwright.ops.attention import attention, explain
from formwright.ops.masks import Causal, Window
from formwright.ops.normalisers import Entmax, Sink
from tests.ops.test_attention import assert_equal, both, tensors


def learned_sink(heads=4):
    return torch.linspace(-2, 3, heads, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("mask", [None, Causal(), Causal() & Window(9), ~Causal()], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_learned_sink_and_its_gradient(mask, groups):
    sink = learned_sink()
    for n, m, value in ((150, 150, 5), (1, 30, 5), (40, 150, 5), (150, 150, 3)):
        inputs = tensors(n, m, groups=groups, value=value)
        for backend in ("auto", "blocks"):
            assert_equal(both(*inputs, sink, backend=backend, mask=mask, normaliser=Sink(sink)))


def test_a_learned_sink_is_a_column_of_the_softmax():
    sink = learned_sink()
    q, k, v = tensors(7, 7, groups=4)
    scores = torch.einsum("bnhk,bmhk->bhnm", q, k) * 5**-0.5
    column = sink[:, None, None].expand(2, 4, 7, 1)
    weights = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    assert_equal([(torch.einsum("bhnm,bmhv->bnhv", weights, v), attention(q, k, v, normaliser=Sink(sink)))])
    packed = [x[:1] for x in (q, k, v)]
    apart = attention(*packed, normaliser=Sink(sink), offsets=torch.tensor([0, 3, 7]))
    assert_equal([(attention(*(x[:, 3:] for x in packed), normaliser=Sink(sink)), apart[:, 3:])])
    with pytest.raises(ValueError, match="but there are 4 heads"):
        attention(q, k, v, normaliser=Sink(sink[:3]))


def test_gradcheck_of_learned_sinks():
    q, k, v = tensors(4, 4, heads=2, groups=1, key=3, value=3)
    for backend in ("sdpa", "blocks"):
        assert torch.autograd.gradcheck(
            lambda q, k, v, sink, backend=backend: attention(
                q, k, v, mask=Causal(), normaliser=Sink(sink), backend=backend
            ),
            (q, k, v, learned_sink(2)),
        )


def test_sinks_take_the_kernel_where_it_serves_and_stay_finite():
    q, k, v = tensors(9, 9, key=8, value=8, dtype=torch.float32)
    assert explain(q, k, v, mask=Causal(), normaliser="sink").startswith("sdpa: softmax whose log-sum-exp")
    assert explain(q, k, v, mask=Window(3), normaliser="sink").startswith("blocks")
    for sink in (torch.full((4,), -1e4), torch.full((4,), 1e4)):
        sink.requires_grad_()
        o = attention(1e3 * q, k, v, normaliser=Sink(sink))
        gradients = torch.autograd.grad(o.sum(), [q, k, v, sink])
        assert all(x.isfinite().all() for x in (o, *gradients))
    half = [x.bfloat16() for x in (q, k, v)]
    exact, near = (attention(*x, mask=Causal(), normaliser="sink") for x in ((q, k, v), half))
    assert near.dtype == torch.bfloat16
    assert (exact - near).abs().max() < 0.05


@pytest.mark.parametrize("backend", ["sdpa", "blocks"])
def test_learned_sinks_compile_in_one_graph(backend):
    q, k, v = tensors(20, 20, key=4, value=4)
    sink = learned_sink()

    def output(q, k, v, sink):
        return attention(q, k, v, mask=Causal(), normaliser=Sink(sink), backend=backend)

    compiled, pairs = torch.compile(output, fullgraph=True, backend="aot_eager"), []
    for function in (output, compiled):
        o = function(q, k, v, sink)
        pairs.append([o, *torch.autograd.grad(o.square().sum(), [q, k, v, sink])])
    assert_equal(zip(*pairs, strict=True))


def by_bisection(scores, alpha):
    """Weights ((alpha - 1) s - tau)_+^(1 / (alpha - 1)) that sum to 1, by halving where tau may lie."""
    s = (alpha - 1) * scores
    low, high = s.amax(-1, keepdim=True) - 1, s.amax(-1, keepdim=True)
    for _ in range(200):
        middle = (low + high) / 2
        too_much = ((s - middle).clamp_min(0) ** (1 / (alpha - 1))).sum(-1, keepdim=True) > 1
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return (s - low).clamp_min(0) ** (1 / (alpha - 1))


@pytest.mark.parametrize(("name", "alpha"), [("entmax", 1.5), ("sparsemax", 2)])
def test_entmax_is_its_equation(name, alpha):
    pytest.importorskip("entmax")
    q, k, v = tensors(5, 300, heads=1, groups=1, batch=1)
    for spread in (0.01, 1, 30):
        scores = (spread * q[:, :, 0] @ k[:, :, 0].mT * 5**-0.5)[0]
        weights = by_bisection(scores, alpha)
        assert_equal([(weights @ v[0, :, 0], attention(spread * q, k, v, normaliser=name)[0, :, 0])])
        assert spread < 1 or (weights == 0).any()


def test_what_entmax_asks_for(monkeypatch):
    with pytest.raises(ValueError, match=r"1\.5 and 2"):
        Entmax(1.3)
    monkeypatch.setitem(sys.modules, "entmax", None)
    with pytest.raises(ImportError, match=r"formwright\[entmax\]"):
        attention(*tensors(3, 3), normaliser="entmax")
