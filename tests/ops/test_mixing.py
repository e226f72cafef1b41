from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from formwright.ops import mixing


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
def test_dense_equals_its_reference(heads, causal):
    x, matrix = randn(2, 8, 6), randn(heads, 8, 8)
    fast, slow = (mixing.dense(x, matrix, causal=causal, backend=b) for b in ("torch", "reference"))
    torch.testing.assert_close(fast, slow)
    masked = matrix.tril() if causal else matrix
    by_hand = torch.cat([m @ part for m, part in zip(masked, x.chunk(heads, -1), strict=True)], -1)
    torch.testing.assert_close(fast, by_hand)


def test_dense_continues_with_the_last_rows():
    x, matrix = randn(2, 8, 6), randn(2, 8, 8)
    whole = mixing.dense(x, matrix, causal=True)
    torch.testing.assert_close(mixing.dense(x, matrix[:, 5:], causal=True), whole[:, 5:])
    torch.testing.assert_close(mixing.dense(x[:, :6], matrix[:, 5:6, :6], causal=True), whole[:, 5:6])


def test_dense_macs_are_counted():
    x, matrix = randn(3, 8, 6), randn(2, 5, 8)
    with FlopCounterMode(display=False) as counter:
        mixing.dense(x, matrix)
    assert counter.get_total_flops() == 2 * mixing.dense_macs(5, 8, 6, 3)


@pytest.mark.parametrize("grid", [(9,), (1,), (2,), (5, 4), (3, 4, 5)])
def test_pooling_is_average_pooling_without_padding(grid):
    x = randn(2, *grid, 3)
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(grid)]
    expected = pool(x.movedim(-1, 1), 3, 1, 1, count_include_pad=False).movedim(1, -1) - x
    for backend in ("torch", "reference"):
        torch.testing.assert_close(mixing.pooling(x, 3, backend=backend), expected)


def test_causal_pooling_averages_the_tokens_so_far():
    x = randn(1, 6, 2)
    expected = torch.stack([x[:, max(t - 3, 0) : t + 1].mean(1) - x[:, t] for t in range(6)], 1)
    for backend in ("torch", "reference"):
        torch.testing.assert_close(mixing.pooling(x, 4, causal=True, backend=backend), expected)


def test_pooling_leaves_padding_out():
    x, valid = randn(2, 6, 2), torch.arange(6) < torch.tensor([[4], [6]])
    y = mixing.pooling(x, 3, valid=valid)
    torch.testing.assert_close(y[0, :4], mixing.pooling(x[:1, :4], 3)[0])
    torch.testing.assert_close(y[1], mixing.pooling(x[1:], 3)[0])


@pytest.mark.parametrize("shape", [(2, 7, 5), (1, 1, 4), (3, 16, 1)])
def test_fourier_equals_its_reference(shape):
    x = randn(*shape)
    torch.testing.assert_close(mixing.fourier(x), mixing.fourier(x, backend="reference"), rtol=1e-10, atol=1e-10)


def test_random_matrix_rows_sum_to_one():
    logits = randn(6, 6)
    full, causal = mixing.random_matrix(logits), mixing.random_matrix(logits, causal=True)
    torch.testing.assert_close(full.sum(-1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(causal.sum(-1), torch.ones(6, dtype=torch.float64))
    assert torch.equal(causal, causal.tril())
    torch.testing.assert_close(mixing.random_matrix(logits[4:], causal=True), causal[4:])


def test_append_grows_and_keeps_what_was_there():
    new = randn(2, 3, 4)
    buffer = torch.zeros(2, 2, 4, dtype=torch.float64)
    grown = mixing.append(buffer, 0, new)
    assert grown.shape[1] >= 3
    assert torch.equal(grown[:, :3], new)
    room = torch.zeros(2, 8, 4, dtype=torch.float64)
    kept = mixing.append(room, 2, new)
    assert torch.equal(room, torch.zeros_like(room))
    with torch.no_grad():
        assert mixing.append(room, 2, new) is room
    assert torch.equal(room, kept)


def test_refusals():
    with pytest.raises(ValueError, match="odd"):
        mixing.pooling(randn(1, 4, 2), 2)
    with pytest.raises(ValueError, match="a divisor of D"):
        mixing.dense(randn(1, 4, 5), randn(2, 4, 4))
    with pytest.raises(ValueError, match="no mixing op"):
        mixing.explain("stirring")
