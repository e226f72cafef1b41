"""Packed and padded sequences of equal and unequal lengths, in any order."""

from itertools import accumulate, pairwise

import pytest
import torch

from formwright.ops import attention as op
from formwright.ops.attention import Distance, attention
from formwright.ops.masks import Causal, Prefix, Window
from tests.ops.test_attention import assert_equal, tensors

LENGTHS = [3, 40, 3, 0, 7, 3, 40, 1, 0, 7]
OFFSETS = [0, *accumulate(LENGTHS)]


def alone(q, k, v, key_offsets=OFFSETS, **options):
    parts = zip(pairwise(OFFSETS), pairwise(key_offsets), strict=True)
    out = [
        attention(q[:, a:b], k[:, c:d], v[:, c:d], backend="reference", **options) for (a, b), (c, d) in parts if a < b
    ]
    return torch.cat(out, 1)


@pytest.mark.parametrize("mask", [None, Causal(), Causal() & Window(3) | Prefix(2)], ids=str)
@pytest.mark.parametrize("normaliser", ["softmax", "sink", "relu"])
@pytest.mark.parametrize("biased", [False, True])
def test_equal_lengths_are_computed_together_and_nothing_changes(mask, normaliser, biased):
    table = torch.randn(4, 100, dtype=torch.float64).requires_grad_()
    options = {"mask": mask, "normaliser": normaliser, "bias": Distance(table, 50) if biased else None}
    inputs = tensors(OFFSETS[-1], OFFSETS[-1], batch=1)
    leaves = [*inputs, table] if biased else inputs
    pairs = []
    for o in (alone(*inputs, **options), attention(*inputs, offsets=torch.tensor(OFFSETS), **options)):
        weight = torch.randn(o.shape, dtype=o.dtype, generator=torch.Generator().manual_seed(1))
        pairs.append([o, *torch.autograd.grad((o * weight).sum(), leaves)])
    assert_equal(zip(*pairs, strict=True))


def test_queries_and_keys_of_other_lengths():
    keys = [0, *accumulate([5, 9, 5, 2, 1, 6, 9, 4, 0, 1])]
    q, k, v = tensors(OFFSETS[-1], keys[-1], batch=1)
    found = attention(q, k, v, offsets=(torch.tensor(OFFSETS), torch.tensor(keys)))
    assert_equal([(alone(q, k, v, keys), found)])


def test_rows_of_equal_length_are_computed_together():
    q, k, v = tensors(30, 30, batch=5)
    lengths = [30, 4, 30, 0, 4]
    found = attention(q, k, v, mask=Causal(), lengths=torch.tensor(lengths))
    for row, n in enumerate(lengths):
        expected = attention(*(x[row : row + 1, :n] for x in (q, k, v)), mask=Causal(), backend="reference")
        assert (found[row, n:] == 0).all()
        assert n == 0 or (found[row, :n] - expected[0]).abs().max() < 1e-12
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), [q, k, v]))


def test_calls_are_as_many_as_lengths(monkeypatch):
    seen, inner = [], op._attend
    monkeypatch.setattr(op, "_attend", lambda q, *rest: seen.append(q.shape[:2]) or inner(q, *rest))
    attention(*tensors(OFFSETS[-1], OFFSETS[-1], batch=1), offsets=torch.tensor(OFFSETS))
    assert sorted(seen) == [(1, 1), (2, 0), (2, 7), (2, 40), (3, 3)]
