import pytest
import torch

from formwright.bench.memory import peak_memory
from formwright.ops.attention import attention
from formwright.ops.masks import Causal
from formwright.ops.shared_prefix import Branches, explain, shared_prefix_attention
from tests.ops.test_attention import assert_equal


def tensors(prefixes, copies, prefix, n, heads=4, groups=2, key=4, value=4, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    shapes = [(prefixes * copies, n, h, w) for h, w in ((heads, key), (groups, key), (groups, value))]
    shapes += [(prefixes, prefix, groups, width) for width in (key, value)]
    return [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def outputs(inputs, functions):
    for function in functions:
        o = function(*inputs)
        weight = torch.randn(o.shape, dtype=o.dtype, generator=torch.Generator().manual_seed(1))
        yield [o, *torch.autograd.grad((o * weight).sum(), inputs)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("normaliser", "backend"), [("softmax", "auto"), ("softmax", "blocks"), ("sigmoid", "auto"), ("sink", "auto")]
)
def test_outputs_and_gradients_are_those_of_the_plain_way(causal, normaliser, backend):
    for prefixes, copies, prefix, n in ((1, 5, 9, 7), (3, 4, 150, 40), (2, 1, 1, 1), (1, 3, 130, 131), (2, 3, 0, 5)):
        inputs = tensors(prefixes, copies, prefix, n)

        def plain(q, k, v, prefix_k, prefix_v, copies=copies):
            k, v = (torch.cat([p.repeat_interleave(copies, 0), x], 1) for p, x in ((prefix_k, k), (prefix_v, v)))
            return attention(q, k, v, mask=Causal() if causal else None, normaliser=normaliser, backend="reference")

        def shared(*inputs, backend=backend):
            return shared_prefix_attention(*inputs, causal=causal, normaliser=normaliser, backend=backend)

        def reference(*inputs):
            return shared(*inputs, backend="reference")

        expected, *found = outputs(inputs, (plain, shared, reference))
        for each in found:
            assert_equal(zip(expected, each, strict=True))


def test_keys_and_values_of_other_widths_and_explanations():
    inputs = tensors(2, 3, 20, 10, value=3)
    for shared, plain in zip(*outputs(inputs, (shared_prefix_attention, _reference)), strict=True):
        assert_equal([(plain, shared)])
    assert "one width" in explain(*inputs)
    assert explain(*tensors(2, 3, 20, 10)) == "merge: softmax, joined by log-sum-exp"
    assert explain(*tensors(2, 3, 20, 10), normaliser="relu").startswith("blocks: only softmax")
    with pytest.raises(ValueError, match="can't compute this"):
        shared_prefix_attention(*inputs, backend="merge")
    with pytest.raises(ValueError, match="no multiple of 2 prefixes"):
        shared_prefix_attention(*(x[:5] for x in inputs))
    with pytest.raises(ValueError, match="is no backend"):
        shared_prefix_attention(*inputs, backend="sdpa")
    with pytest.raises(ValueError, match="not the heads and widths"):
        shared_prefix_attention(*inputs[:3], inputs[3][:, :, :1], inputs[4][:, :, :1])


def _reference(*inputs):
    return shared_prefix_attention(*inputs, backend="reference")


def test_gradcheck():
    inputs = tensors(1, 2, 3, 2, heads=2, groups=1, key=2, value=2)
    assert torch.autograd.gradcheck(shared_prefix_attention, inputs)


@pytest.mark.parametrize("causal", [True, False])
def test_the_mask_of_branches_by_a_loop(causal):
    mask, m = Branches(5, 3, causal), 14
    allowed = mask.materialize(m)
    for i in range(m):
        for j in range(m):
            same = (i >= 5) == (j >= 5) and (i < 5 or (i - 5) // 3 == (j - 5) // 3)
            assert allowed[i, j] == ((i >= 5 and j < 5) or (same and (j <= i or not causal)))
    for start in range(m):
        for stop in range(start + 1, m + 1):
            rows = allowed[start:stop]
            inside = torch.zeros(m, dtype=torch.bool)
            for a, b in mask.touches(start, stop, m):
                inside[a:b] = True
            assert not rows[:, ~inside].any()
            for a, b in mask.covers(start, stop, m):
                assert rows[:, a:b].all()


def test_compiles_in_one_graph():
    inputs = tensors(2, 3, 20, 10)
    compiled = torch.compile(shared_prefix_attention, fullgraph=True, backend="aot_eager")
    assert_equal(zip(*outputs(inputs, (shared_prefix_attention, compiled)), strict=True))


def test_a_shared_prefix_costs_less_memory():
    inputs = tensors(1, 16, 1024, 32, key=16, value=16, dtype=torch.float32)

    def peak(function):
        return peak_memory(lambda: torch.autograd.grad(function(*inputs).sum(), inputs))

    def plain(q, k, v, prefix_k, prefix_v):
        k, v = (torch.cat([p.repeat_interleave(16, 0), x], 1) for p, x in ((prefix_k, k), (prefix_v, v)))
        return attention(q, k, v, mask=Causal())

    needed, copied = peak(shared_prefix_attention), peak(plain)
    if needed is None or copied is None:
        pytest.skip("the system can't tell peak memory")
    assert 4 * needed < copied
