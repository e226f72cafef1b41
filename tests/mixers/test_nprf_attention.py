"""Kernelised attention with relative positions: its equations, and softmax attention with a bias, which it estimates.
What all parts promise is held by the laws, its transforms by the tests of ops.toeplitz_attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from formwright.contract import Layout
from formwright.mixers.nprf_attention import NprfAttention
from formwright.mixers.random_features import log_features

N, D = 90, 32


def built(causal, **options):
    """In float64, with biases of all distances moved from zero."""
    torch.manual_seed(0)
    mixer = NprfAttention(D, causal=causal, **{"heads": 2, "reach": 20, **options}).double()
    with torch.no_grad():
        mixer.bias.normal_()
    return mixer


def tokens(n=N):
    return torch.randn(2, n, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def scores_of(m, x, kernel):
    """The weights (B, H, N, N), each from its own distance, kernel (q, k) -> exp of the score."""
    q, k = (F.normalize(f(x).unflatten(-1, (m.heads, -1)), dim=-1).transpose(1, 2) for f in (m.query, m.key))
    scores = kernel(q, k)
    for i in range(x.shape[1]):
        for j in range(x.shape[1]):
            far = max(-m.reach, min(m.reach, i - j))
            weight = m.bias[:, far if m.causal else far + m.reach].exp() if i >= j or not m.causal else torch.zeros(2)
            scores[:, :, i, j] *= weight
    return scores / scores.sum(-1, keepdim=True)


def outputs(m, x, weights):
    v = m.value(x).unflatten(-1, (m.heads, -1)).transpose(1, 2)
    return m.out((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_its_dense_form(causal):
    m, x = built(causal), tokens()

    def kernel(q, k):
        (wq, sq), (wk, sk) = log_features(q, m.rows), log_features(k, m.rows)
        return torch.exp(wq - sq) @ torch.exp(wk - sk).mT

    with torch.no_grad():
        expected, found = outputs(m, x, scores_of(m, x, kernel)), m(x, Layout((N,)))
    assert float((found - expected).abs().max()) < 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize("causal", [False, True])
def test_with_many_features_it_is_softmax_attention_with_a_bias(causal):
    x = tokens(40)
    errors = []
    for features in (16, 2048):
        m = built(causal, features=features)
        with torch.no_grad():
            expected = outputs(m, x, scores_of(m, x, lambda q, k: torch.exp(q @ k.mT)))
            errors.append(float((m(x, Layout((40,))) - expected).norm() / expected.norm()))
    assert errors[1] < 0.06 and errors[1] < 0.3 * errors[0]


def test_rows_are_saved_and_drawn_once():
    m, x = built(True), tokens(9)
    assert "rows" in m.state_dict()
    assert torch.equal(m.train()(x, Layout((9,))), m.eval()(x, Layout((9,))))


@pytest.mark.parametrize("options", [{"reach": -1}, {"features": 0}])
def test_options_that_do_not_fit(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        built(True, **options)
