"""Memory of forward and backward is linear in the number of tokens, whatever the normaliser, mask and bias."""

import pytest
import torch

from formwright.bench.memory import peak_memory
from formwright.ops.attention import Distance, attention
from formwright.ops.masks import Causal
from formwright.ops.normalisers import NORMALISERS, Sink


def peak(n, **options):
    inputs = [torch.randn(1, n, 1, 16).requires_grad_() for _ in range(3)]

    def call():
        torch.autograd.grad(attention(*inputs, **options).sum(), inputs)

    found = peak_memory(call)
    if found is None:
        pytest.skip("the system can't tell peak memory")
    return found


@pytest.mark.parametrize("mask", [None, Causal()], ids=str)
@pytest.mark.parametrize("normaliser", [*NORMALISERS, Sink(torch.zeros(1).requires_grad_())], ids=str)
def test_every_normaliser(normaliser, mask):
    if normaliser in ("entmax", "sparsemax"):
        pytest.importorskip("entmax")
    small, large = (peak(n, normaliser=normaliser, mask=mask, backend="blocks") for n in (1024, 2048))
    assert large < 2 * small + 4e6
    assert large < 1.2e7  # all scores at once are 17 MB, and a backward needs several of them


def test_every_bias():
    table = torch.zeros(1, 2 * 2048 - 1).requires_grad_()
    for bias in (Distance(table, 2047), lambda i, j: -(i[:, None] - j).abs().float()):
        assert peak(2048, bias=bias, mask=Causal()) < 1.2e7
