"""Attention with factors of the distance: blocks equal the definition, with all gradients; memory is linear."""

import pytest
import torch

from formwright.ops.attention import Distance, attention
from formwright.ops.gained_attention import gained_attention


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 140), (127, 127), (128, 128), (129, 129), (130, 300), (300, 300)])
def test_blocks_equal_the_definition(n, m, causal):
    torch.manual_seed(n + m)
    options = {"dtype": torch.float64, "requires_grad": True}
    for heads_of_tables, biased in ((2, True), (1, False)):
        q, k, v = (torch.randn(2, size, 2, width, **options) for size, width in ((n, 4), (m, 4), (m, 3)))
        tables = [torch.randn(heads_of_tables, n + m + 2, **options) for _ in range(2 if biased else 1)]
        results = []
        for backend in ("reference", "blocks"):
            gain, bias = Distance(tables[0], n), Distance(tables[1], n) if biased else None
            o = gained_attention(q, k, v, gain, bias=bias, causal=causal, backend=backend)
            results.append((o, *torch.autograd.grad(o.sin().sum(), [q, k, v, *tables])))
        torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


def test_a_gain_of_one_is_attention():
    q, k, v = (torch.randn(1, 200, 2, 8) for _ in range(3))
    gain = Distance(torch.ones(1, 399), 199)
    torch.testing.assert_close(gained_attention(q, k, v, gain), attention(q, k, v), rtol=1e-4, atol=1e-5)


def test_half_precision_is_computed_in_float32():
    q, k, v = (torch.randn(1, 70, 2, 8) for _ in range(3))
    gain = Distance(torch.randn(2, 139), 69)
    half = gained_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), Distance(gain.table.bfloat16(), 69))
    torch.testing.assert_close(half.float(), gained_attention(q, k, v, gain), rtol=0.1, atol=0.05)


def test_says_what_is_too_short():
    q = torch.randn(1, 5, 1, 4)
    with pytest.raises(ValueError, match=r"distances -4\.\.4"):
        gained_attention(q, q, q, Distance(torch.ones(1, 8), 4))
    with pytest.raises(ValueError, match="don't fit"):
        gained_attention(q, q[..., :2], q, Distance(torch.ones(1, 9), 4))
    with pytest.raises(ValueError, match="backend"):
        gained_attention(q, q, q, Distance(torch.ones(1, 9), 4), backend="sdpa")
