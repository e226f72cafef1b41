"""Performer: its features, its two forms against one another and against softmax attention. What all parts promise is
held by the laws."""

from __future__ import annotations

import math

import pytest
import torch

from formwright.contract import Layout
from formwright.mixers.attention import Attention
from formwright.mixers.performer import Performer
from formwright.mixers.random_features import log_features, orthogonal_rows

N, D = 24, 32


@pytest.fixture
def x():
    return torch.randn(2, N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def built(causal=False, **options):
    torch.manual_seed(0)
    return Performer(D, causal=causal, heads=2, **options).double()


def test_rows_are_orthogonal_in_blocks_and_as_long_as_normal_vectors():
    torch.manual_seed(0)
    rows = orthogonal_rows(200, 16)
    assert rows.shape == (200, 16)
    directions = rows / rows.norm(dim=1, keepdim=True)
    for start in range(0, 200, 16):
        block = directions[start : start + 16]
        torch.testing.assert_close(block @ block.T, torch.eye(len(block)), atol=1e-5, rtol=0)
    assert abs(float(rows.square().sum(1).mean()) - 16) < 1.5


def test_features_estimate_the_exponential_without_bias_and_orthogonal_ones_better():
    torch.manual_seed(0)
    q, k = 0.25 * torch.randn(2, 8, 16, dtype=torch.float64)

    def estimates(rows):
        (wq, sq), (wk, sk) = log_features(q, rows), log_features(k, rows)
        return torch.exp(wq - sq) @ torch.exp(wk - sk).T / 16

    found = torch.stack([estimates(orthogonal_rows(16, 16).double()) for _ in range(4000)])
    error = (found.mean(0) - torch.exp(q @ k.T)).abs() / (found.std(0) / math.sqrt(4000))
    assert error.max() < 4.5  # in the mean's own standard deviations, over 64 pairs
    independent = torch.stack([estimates(torch.randn(16, 16).double()) for _ in range(4000)])
    assert found.std(0).mean() < 0.9 * independent.std(0).mean()


@pytest.mark.parametrize("causal", [False, True])
def test_more_features_come_closer_to_softmax_attention(x, causal):
    exact = Attention(D, causal=causal, heads=2).double()

    def error(features, seed):
        torch.manual_seed(seed)
        mixer = Performer(D, causal=causal, heads=2, features=features).double()
        mixer.load_state_dict(exact.state_dict() | {"rows": mixer.rows})
        with torch.no_grad():
            layout = Layout((N,))
            expected = exact(x, layout)
            return float((mixer(x, layout) - expected).norm() / expected.norm())

    few, some, many = (sum(error(f, s) for s in range(5)) / 5 for f in (16, 128, 1024))
    assert many < 0.65 * some < 0.5 * few
    assert many < 0.2


def by_hand(m, x):
    """One row, one token, one head, one key after another."""
    w = {name: p.detach() for name, p in m.named_parameters()}
    out = torch.zeros_like(x)
    for b in range(len(x)):
        q, k, v = ((x[b] @ w[f"{n}.weight"].T).unflatten(-1, (m.heads, -1)) for n in ("query", "key", "value"))
        q, k = q / m.head_dim**0.25, k / m.head_dim**0.25
        for i in range(N):
            heads = []
            for h in range(m.heads):
                seen = range(i + 1) if m.causal else range(N)
                top = max(float((m.rows @ k[j, h]).max()) for j in seen)
                fq = m.rows @ q[i, h]
                fq = torch.exp(fq - q[i, h].square().sum() / 2 - fq.max()) + m.eps
                keys = [torch.exp(m.rows @ k[j, h] - k[j, h].square().sum() / 2 - top) + m.eps for j in seen]
                scores = torch.stack([fq @ fk for fk in keys])
                heads.append((scores[:, None] * v[list(seen), h]).sum(0) / scores.sum())
            out[b, i] = w["out.weight"] @ torch.cat(heads)
    return out


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_its_equations(x, causal):
    m = built(causal)
    torch.testing.assert_close(m(x, Layout((N,))).detach(), by_hand(m, x), atol=1e-10, rtol=1e-9)


def test_a_causal_token_gets_what_the_tokens_so_far_give_two_directionally(x):
    both, causal = built(), built(True)
    causal.load_state_dict(both.state_dict())
    outputs = causal(x, Layout((N,)))
    for n in (1, 2, 9, N):
        torch.testing.assert_close(both(x[:, :n], Layout((n,)))[:, -1], outputs[:, n - 1])


def test_features_are_drawn_once_and_again_only_when_asked(x):
    m, layout = built(), Layout((N,))
    assert "rows" in m.state_dict()
    first = m.train()(x, layout)
    assert torch.equal(m(x, layout), first)
    m.redraw()
    assert not torch.allclose(m(x, layout), first)


@pytest.mark.parametrize("options", [{"features": 0}, {"eps": 0.0}])
def test_options_that_do_not_fit(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        built(**options)
