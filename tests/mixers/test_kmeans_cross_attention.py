"""k-means cross attention: hard assignments, and clusters found by repeating its step. What all parts promise is
held by the laws."""

from __future__ import annotations

import pytest
import torch

from formwright.contract import Layout, Unsupported
from formwright.mixers.kmeans_cross_attention import KMeansCrossAttention

N, M, D = 5, 40, 16


def built(**options):
    torch.manual_seed(0)
    return KMeansCrossAttention(D, **options).double()


def tokens(n, seed):
    return torch.randn(2, n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def update(m, x, context):
    return m(x, Layout((x.shape[1],)), context, Layout((context.shape[1],)))


@pytest.mark.parametrize("heads", [1, 2])
def test_each_token_updates_the_one_query_it_is_most_like(heads):
    m, x, context = built(heads=heads), tokens(N, 1), tokens(M, 2)
    with torch.no_grad():
        q, k, v = m.query(x), m.key(context), m.value(context)
        sums, width = torch.zeros(2, N, D, dtype=x.dtype), D // heads
        for b in range(2):
            for h in range(heads):
                head = slice(h * width, (h + 1) * width)
                for j in range(M):
                    winner = int((q[b, :, head] @ k[b, j, head]).argmax())
                    sums[b, winner, head] += v[b, j, head]
        torch.testing.assert_close(update(m, x, context), m.out(m.norm(sums)))


def test_a_query_that_no_token_chose_gets_nothing():
    m, context = built(), tokens(1, 2)
    changed = update(m, tokens(N, 1), context)
    assert ((changed != 0).any(-1).sum(1) == 1).all()


def test_repeated_it_finds_clusters():
    """With identities for its maps, a few steps of k-means on directions separate what is far apart."""
    m = built()
    with torch.no_grad():
        for linear in (m.query, m.key, m.value, m.out):
            torch.nn.init.eye_(linear.weight)
        group = torch.arange(M) % 4
        context = 4 * torch.eye(D, dtype=torch.float64)[group] + 0.2 * tokens(M, 2)[:1]
        x = context[:, :4] + tokens(4, 3)[:1]
        for _ in range(5):
            x = update(m, x, context)
        chosen = m.assignment(x, context)[0, 0].argmax(0)
    for g in range(4):
        assert len(set(chosen[group == g].tolist())) == 1
    assert len(set(chosen.tolist())) == 4


def test_the_logits_learn_through_the_softmax():
    m = built()
    update(m, tokens(N, 1), tokens(M, 2)).square().sum().backward()
    assert m.query.weight.grad.any() and m.key.weight.grad.any()


def test_packed_tokens_are_refused():
    packed = Layout((N,), offsets=torch.tensor([0, 2, N]))
    with pytest.raises(Unsupported, match="packed tokens"):
        built()(tokens(N, 1)[:1], packed, tokens(M, 2)[:1], Layout((M,)))
