"""EcoFormer: binary codes, scores that count bits, and the hash functions' own objective. What all parts promise is
held by the laws."""

from __future__ import annotations

import pytest
import torch

from formwright.contract import Layout
from formwright.mixers.ecoformer import EcoFormer

N, D = 20, 32


@pytest.fixture
def x():
    return torch.randn(2, N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def built(causal=False, **options):
    torch.manual_seed(0)
    return EcoFormer(D, causal=causal, heads=2, **options).double()


def test_codes_are_of_plus_and_minus_one_and_differ(x):
    codes = built().codes(x)
    assert codes.shape == (2, N, 2, 16)
    assert torch.equal(codes.abs(), torch.ones_like(codes))
    assert (codes.mean((0, 1)).abs() < 1).double().mean() > 0.7  # few bits are the same for all tokens


@pytest.mark.parametrize("causal", [False, True])
def test_scores_count_the_bits_that_differ(x, causal):
    m = built(causal)
    with torch.no_grad():
        codes = m.codes(x)
        distance = (codes[:, :, None] != codes[:, None]).sum(-1).double()  # (B, N, N, H)
        scores = 2 * (m.bits - distance) + 1
        if causal:
            scores = scores * torch.ones(N, N).tril()[..., None]
        weights = scores / scores.sum(2, keepdim=True)
        o = torch.einsum("bnmh,bmhv->bnhv", weights, m.value(x).unflatten(-1, (2, -1)))
        torch.testing.assert_close(m(x, Layout((N,))), m.out(o.flatten(2)))


def test_the_gradient_is_that_of_clipped_scores(x):
    """Scores far beyond the clip get none."""
    m = built()
    with torch.no_grad():
        m.offset.fill_(100.0)
    m(x, Layout((N,))).square().sum().backward()
    assert not m.hash.grad.any() and m.value.weight.grad.any()


def test_its_objective_makes_codes_agree_where_tokens_are_alike():
    centres = torch.randn(4, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    noise = torch.randn(2, 40, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    group = torch.arange(40) % 4
    x = centres[group] + 0.3 * noise
    m = built()
    same = group[:, None] == group

    def agreement():
        with torch.no_grad():
            h = m.codes(x).transpose(1, 2)
            products = h @ h.mT / m.bits
            return float(products[..., same].mean()), float(products[..., ~same].mean())

    before, first = agreement(), m.similarity_loss(x).item()
    learner = torch.optim.Adam([m.hash, m.offset], lr=0.05)
    for _ in range(60):
        learner.zero_grad()
        m.similarity_loss(x).backward()
        learner.step()
    after = agreement()
    assert m.similarity_loss(x).item() < 0.8 * first
    assert after[0] - after[1] > before[0] - before[1] + 0.1


@pytest.mark.parametrize("options", [{"bits": 0}, {"anchors": 0}])
def test_counts_that_do_not_fit(options):
    with pytest.raises(ValueError, match="must be at least 1"):
        built(**options)
