"""FlexAttention beside the definition: here its forward alone, uncompiled, since PyTorch has no more of it on CPUs."""

import pytest
import torch

from formwright.ops.attention import attention, explain
from formwright.ops.attention_flex import block_mask
from formwright.ops.masks import Causal, Dilated, Prefix, Segments, Window
from tests.ops.test_attention import assert_equal, tensors

MASKS = [
    Causal(),
    Window(50),
    Causal() & Window(150) | Prefix(4),
    ~Causal(),
    Dilated(3) & Causal(),
    Segments(torch.arange(300) // 70),
]
ignore = pytest.mark.filterwarnings("ignore:flex_attention called without")


@ignore
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_it_computes_the_definition(mask):
    for n, m in ((300, 300), (129, 300), (7, 7)):
        q, k, v = (x.detach() for x in tensors(n, m))
        options = {"mask": mask, "scale": 0.3}
        assert_equal([(attention(q, k, v, backend=each, **options) for each in ("reference", "flex"))])


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize(("n", "m"), [(300, 300), (129, 300)])
def test_blocks_are_those_that_the_mask_needs(mask, n, m):
    found, allowed = block_mask(mask, n, m, torch.device("cpu")), mask.materialize(n, m)
    for row in range(-(-n // 128)):
        partial, full = (
            set(indices[0, 0, row, : counts[0, 0, row]].tolist())
            for counts, indices in (
                (found.kv_num_blocks, found.kv_indices),
                (found.full_kv_num_blocks, found.full_kv_indices),
            )
        )
        assert not partial & full
        for column in range(-(-m // 128)):
            block = allowed[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128]
            assert column in partial | full or not block.any()
            assert column not in full or block.all()


@ignore
def test_what_it_is_not_for():
    q, k, v = tensors(9, 9)
    assert explain(q, k, v, mask=Window(2)).endswith("FlexAttention has no backward on CPUs")
    for options in ({"mask": Window(2)}, {"normaliser": "relu"}, {"bias": torch.zeros(9, 9)}):
        with pytest.raises(ValueError, match="can't compute this"):
            attention(q, k, v, backend="flex", **options)
    with torch.no_grad():
        assert attention(q, k, v, mask=Window(2), backend="flex").shape == (2, 9, 4, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_outputs_and_gradients_on_a_gpu(mask):
    q, k, v = (x.detach().float().cuda().requires_grad_() for x in tensors(1100, 1100, key=32, value=32))
    mask = Segments(torch.arange(1100) // 70) if isinstance(mask, Segments) else mask
    assert explain(q, k, v, mask=mask).startswith(("flex", "sdpa"))
    results = []
    for backend in ("reference", "flex"):
        o = attention(q, k, v, mask=mask, backend=backend)
        results.append([o, *torch.autograd.grad(o.square().sum(), [q, k, v])])
    for expected, found in zip(*results, strict=True):
        assert (expected - found).abs().max() < 1e-2 * expected.abs().max()
