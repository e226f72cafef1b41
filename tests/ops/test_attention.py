from importlib.util import find_spec
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from formwright.ops.attention import SDPA_FLOPS, Distance, attention, explain, macs
from formwright.ops.masks import Causal, Dilated, Padding, Prefix, Segments, Window
from formwright.ops.normalisers import NORMALISERS as EVERY
from formwright.ops.normalisers import Clipped, Relu, Sigmoid, Sink

NORMALISERS = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec("entmax") is None, reason="needs entmax"))
    if name in ("entmax", "sparsemax")
    else name
    for name in EVERY
]
MASKS = [
    None,
    Causal(),
    Window(5),
    Causal() & Window(3),
    Causal() & Window(150) | Prefix(4),
    ~Causal(),
    Dilated(3) & Causal(),
    Padding(torch.tensor([3, 250])),
    Segments(torch.arange(300) // 70),
]


def tensors(n, m, heads=4, groups=2, key=5, value=3, batch=2, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = (batch, n, heads, key), (batch, m, groups, key), (batch, m, groups, value)
    return [torch.randn(*shape, dtype=torch.float64, generator=g).to(dtype).requires_grad_() for shape in shapes]


def both(q, k, v, *leaves, backend="blocks", **options):
    """Outputs and gradients of the reference and of a backend."""
    results = []
    for each in ("reference", backend):
        o = attention(q, k, v, backend=each, **options)
        weight = torch.randn(o.shape, dtype=o.dtype, generator=torch.Generator().manual_seed(1))
        results.append([o, *torch.autograd.grad((o * weight).sum(), [q, k, v, *leaves])])
    return zip(*results, strict=True)


def assert_equal(pairs, tolerance=1e-11):
    for expected, found in pairs:
        assert found.shape == expected.shape
        if expected.numel():
            assert (expected - found).abs().max() <= tolerance * max(1, expected.abs().max())


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_blocks_are_the_reference_forward_and_backward(mask, normaliser):
    for n, m in ((7, 7), (1, 9), (129, 300), (300, 300), (40, 13)):
        assert_equal(both(*tensors(n, m), mask=mask, normaliser=normaliser))


@pytest.mark.parametrize("shape", [(4, 130, 300), (2, 4, 1, 300), (2, 1, 1, 300), (130, 1), (1, 4, 130, 300)])
@pytest.mark.parametrize("normaliser", ["softmax", "linear"])
def test_tensor_biases_and_their_gradients(shape, normaliser):
    bias = torch.randn(shape, dtype=torch.float64).requires_grad_()
    for mask in (None, Causal() & Window(60) | Prefix(4)):
        assert_equal(both(*tensors(130, 300), bias, bias=bias, mask=mask, normaliser=normaliser))


@pytest.mark.parametrize("heads", [1, 4])
def test_distance_bias_and_its_gradient(heads):
    table = torch.randn(heads, 800, dtype=torch.float64).requires_grad_()
    for n, m in ((130, 300), (300, 300), (1, 5)):
        for mask in (None, Causal() & Window(60) | Prefix(4)):
            assert_equal(both(*tensors(n, m), table, bias=Distance(table, 350), mask=mask))
    dense = table[:, torch.arange(300)[:, None] - torch.arange(300) + 350]
    q, k, v = tensors(300, 300)
    assert_equal([(attention(q, k, v, bias=dense), attention(q, k, v, bias=Distance(table, 350)))])
    with pytest.raises(ValueError, match=r"holds distances -350\.\.449"):
        attention(*tensors(500, 500), bias=Distance(table, 350))


def test_function_bias_is_evaluated_by_blocks_and_refuses_gradients():
    slopes = torch.tensor([1.0, 0.5, 0.2, 0.1], dtype=torch.float64)[:, None, None]
    seen = []

    def bias(i, j):
        seen.append(len(i) * len(j))
        return -slopes * (i[:, None] - j).abs()

    assert_equal(both(*tensors(300, 300), bias=bias, mask=Causal() & Window(20)))
    assert max(sorted(seen)[:-1]) <= 128 * (128 + 20)
    with pytest.raises(ValueError, match="gets no gradient"):
        attention(*tensors(3, 3), bias=lambda i, j: bias(i, j) * slopes.clone().requires_grad_())


def test_a_bias_of_minus_infinity_hides_keys():
    q, k, v = tensors(9, 9)
    bias = torch.zeros(9, 9, dtype=torch.float64).masked_fill(~Causal().materialize(9), -torch.inf)
    bias[3] = -torch.inf
    expected = attention(q, k, v, mask=Causal(), backend="reference").index_fill(1, torch.tensor([3]), 0)
    assert_equal([(expected, attention(q, k, v, bias=bias))])
    assert all(g.isfinite().all() for g in torch.autograd.grad(attention(q, k, v, bias=bias).sum(), [q, k, v]))


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_gradcheck(normaliser):
    q, k, v = tensors(4, 6, heads=2, groups=1, key=3, value=2)
    bias = torch.randn(2, 4, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *t: attention(*t[:3], bias=t[3], mask=Causal(), normaliser=normaliser), (q, k, v, bias)
    )


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_sdpa_and_blocks_agree_with_pytorch(groups):
    q, k, v = tensors(200, 200, groups=groups, key=8, value=8)
    for mask in (None, Causal()):
        assert explain(q, k, v, mask=mask).startswith("sdpa")
        assert_equal(both(q, k, v, mask=mask, backend="auto"))
    heads = [x.transpose(1, 2).repeat_interleave(4 // x.shape[2], 1) for x in (q, k, v)]
    window = Causal() & Window(17)
    expected = F.scaled_dot_product_attention(*heads, attn_mask=window.materialize(200)).transpose(1, 2)
    assert_equal([(expected, attention(q, k, v, mask=window))])


def test_normalisers_are_their_papers():
    q, k, v = tensors(5, 5, heads=1, groups=1, batch=1)
    s = (q[:, :, 0] @ k[:, :, 0].mT * 5**-0.5)[0]
    allowed, n = Causal().materialize(5), torch.arange(1, 6, dtype=torch.float64)[:, None]
    softmax = s.masked_fill(~allowed, -torch.inf).softmax(-1)
    raised = s.exp() * allowed
    expected = {
        "softmax": softmax,
        "sink": raised / (1 + raised.sum(-1, keepdim=True)),
        Sink(0.7): raised / (torch.tensor(0.7, dtype=torch.float64).exp() + raised.sum(-1, keepdim=True)),
        Clipped(-0.1, 1.2): (1.3 * softmax - 0.1).clamp(0, 1),
        "sigmoid": allowed / (1 + n * (-s).exp()),
        Sigmoid(-2.0): allowed * torch.sigmoid(s - 2),
        "relu": allowed * s.relu() / n,
        Relu(2): allowed * s.relu() ** 2 / n,
        "linear": allowed * s / n,
    }
    for normaliser, weights in expected.items():
        for backend in ("auto", "reference"):
            o = attention(q, k, v, mask=Causal(), normaliser=normaliser, backend=backend)
            assert_equal([(weights @ v[0, :, 0], o[0, :, 0])])


@pytest.mark.parametrize("mask", [None, Causal(), Window(3), Causal() & Window(4)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_packed_and_padded_are_each_alone(mask, bias):
    bounds, table = [0, 1, 8, 8, 20, 150], torch.randn(4, 400, dtype=torch.float64)
    bias = Distance(table, 200) if bias else None
    q, k, v = tensors(150, 150, batch=1)
    packed = attention(q, k, v, mask=mask, bias=bias, offsets=torch.tensor(bounds))
    for a, b in pairwise(bounds):
        alone = attention(q[:, a:b], k[:, a:b], v[:, a:b], mask=mask, bias=bias, backend="reference")
        assert b == a or (packed[:, a:b] - alone).abs().max() < 1e-12
    q, k, v = tensors(30, 30, batch=3)
    padded = attention(q, k, v, mask=mask, bias=bias, lengths=torch.tensor([1, 30, 17]))
    for row, n in enumerate((1, 30, 17)):
        qs, ks, vs = (x[row : row + 1, :n] for x in (q, k, v))
        alone = attention(qs, ks, vs, mask=mask, bias=bias, backend="reference")
        assert (padded[row : row + 1, :n] - alone).abs().max() < 1e-12
        assert (padded[row, n:] == 0).all()
    if mask is None and bias is None:
        by_mask = attention(q, k, v, mask=Padding(torch.tensor([1, 30, 17])))
        by_keys = attention(q, k, v, lengths=(None, torch.tensor([1, 30, 17])))
        assert_equal([(by_mask, by_keys)])


def test_packed_queries_with_other_keys_and_every_bias():
    q, k, v = tensors(9, 12, batch=1)
    queries, keys = [0, 4, 9], [0, 7, 12]
    dense = torch.randn(1, 4, 9, 12, dtype=torch.float64)
    for bias in (dense, lambda i, j: dense[:, :, i][..., j]):
        o = attention(q, k, v, bias=bias, offsets=(torch.tensor(queries), torch.tensor(keys)))
        for (a, b), (c, d) in zip(pairwise(queries), pairwise(keys), strict=True):
            alone = attention(q[:, a:b], k[:, c:d], v[:, c:d], bias=dense[:, :, a:b, c:d], backend="reference")
            assert (o[:, a:b] - alone).abs().max() < 1e-12


@pytest.mark.parametrize("mask", [None, Causal(), Causal() & Window(70), Window(9)], ids=str)
@pytest.mark.parametrize("normaliser", ["softmax", "sigmoid"])
def test_macs_are_those_counted(mask, normaliser):
    for n, m, groups, value in ((1, 300, 2, 8), (257, 257, 4, 8), (300, 300, 1, 6), (5, 140, 2, 8)):
        q, k, v = (t.detach() for t in tensors(n, m, groups=groups, key=8, value=value, dtype=torch.float32))
        with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter:
            attention(q, k, v, mask=mask, normaliser=normaliser)
        heads = {"heads": 4, "kv_heads": groups, "key_dim": 8, "value_dim": value}
        stated = macs(n, m, **heads, mask=mask, normaliser=normaliser, batch=2)
        assert counter.get_total_flops() == 2 * stated


def test_a_window_costs_what_the_window_costs():
    stated = [macs(n, n, heads=1, key_dim=64, mask=Causal() & Window(256)) for n in (8192, 16384)]
    assert stated[0] * 10 < macs(8192, 8192, heads=1, key_dim=64)
    assert stated[1] < 2.05 * stated[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_and_large_scores_stay_finite(dtype):
    exact = tensors(150, 150, key=16, value=16)
    for mask in (Causal(), Causal() & Window(20)):
        expected = attention(*exact, mask=mask, backend="reference")
        found = attention(*(x.to(dtype) for x in exact), mask=mask)
        assert found.dtype == dtype
        assert (found - expected).abs().max() < 0.05
    for normaliser in ("softmax", "sink", "clipped", "sigmoid"):
        o = attention(*(1e4 * x.float() for x in exact), mask=Causal(), normaliser=normaliser)
        assert o.isfinite().all()


@pytest.mark.parametrize("mask", [Causal(), Causal() & Window(9)], ids=str)
def test_compiles_in_one_graph(mask):
    q, k, v = tensors(150, 150)
    bias = torch.randn(4, 150, 150, dtype=torch.float64).requires_grad_()
    compiled = torch.compile(lambda *t: attention(*t[:3], bias=t[3], mask=mask), fullgraph=True, backend="aot_eager")
    pairs = []
    for f in (lambda *t: attention(*t[:3], bias=t[3], mask=mask), compiled):
        o = f(q, k, v, bias)
        pairs.append([o, *torch.autograd.grad(o.square().sum(), [q, k, v, bias])])
    assert_equal(zip(*pairs, strict=True))


def test_explains_and_refuses():
    q, k, v = tensors(9, 9, key=8, value=8)
    assert explain(q, k, v, mask=Causal() & Window(3)) == (
        "blocks: SDPA would compute all that Causal() & Window(3) forbids; FlexAttention has no backward on CPUs"
    )
    assert explain(q, k, v, normaliser="sigmoid") == "blocks: SDPA has no sigmoid"
    assert explain(q[:, :1], k, v, mask=Causal()).startswith("sdpa")
    with pytest.raises(ValueError, match="can't compute this"):
        attention(q, k, v, mask=Window(2), backend="sdpa")
    with pytest.raises(ValueError, match="no multiple"):
        attention(q[:, :, :3], k, v)
    with pytest.raises(ValueError, match="don't fit"):
        attention(q, k, v[:, :4])
    with pytest.raises(ValueError, match="no backend"):
        attention(q, k, v, backend="triton")
    with pytest.raises(ValueError, match="is no normaliser"):
        attention(q, k, v, normaliser="softmx")
    with pytest.raises(ValueError, match="made for 3 rows"):
        attention(q, k, v, mask=Padding(torch.tensor([1, 2, 3])))
    with pytest.raises(ValueError, match="but there are 9 queries"):
        attention(q[:1], k[:1], v[:1], offsets=torch.tensor([0, 4]))
