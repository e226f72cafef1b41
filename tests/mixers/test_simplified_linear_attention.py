"""Simplified linear attention: its equations on images and sequences. What all parts promise of sequences is held by
the laws."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from formwright.contract import Layout, Unsupported, parameter_count
from formwright.mixers.simplified_linear_attention import SimplifiedLinearAttention

D, ROWS, COLUMNS = 32, 5, 7
N = ROWS * COLUMNS
IMAGE = Layout((ROWS, COLUMNS))


@pytest.fixture
def x():
    return torch.randn(2, N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def built(causal=False, **options):
    torch.manual_seed(0)
    return SimplifiedLinearAttention(D, causal=causal, **{"heads": 4, **options}).double()


def by_hand(m, x, rows, columns):
    """All scores, and each tap of the filter by itself."""
    q, k, v = (f(x).unflatten(-1, (m.heads, -1)).transpose(1, 2) for f in (m.query, m.key, m.value))
    scores = F.relu(q) @ F.relu(k).mT
    scores = scores.tril() if m.causal else scores
    o = (scores @ v / (scores.sum(-1, keepdim=True) + m.eps)).transpose(1, 2)
    image = v.permute(0, 2, 1, 3).unflatten(1, (rows, columns))
    reach = m.kernel - 1 if m.causal else m.kernel // 2
    padded = F.pad(image, (0, 0, 0, 0, reach, reach, *((0, 0) if m.causal else (reach, reach))))
    for a in range(1 if m.causal else m.kernel):
        for b in range(m.kernel):
            tap = m.conv.weight[:, 0, b] if m.causal else m.conv.weight[:, 0, a, b]
            o = o + tap * padded[:, a : a + rows, b : b + columns].flatten(1, 2)
    return m.out((o + m.conv.bias).flatten(2))


@pytest.mark.parametrize("grid", [(ROWS, COLUMNS), (1, N), (N, 1)])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_it_is_its_equations_on_images(x, grid, kernel):
    m = built(kernel=kernel)
    with torch.no_grad():
        torch.testing.assert_close(m(x, Layout(grid)), by_hand(m, x, *grid))


def test_a_sequence_is_an_image_of_one_row(x):
    m = built()
    torch.testing.assert_close(m(x, Layout((N,))), m(x, Layout((1, N))))


@pytest.mark.parametrize("kernel", [1, 4, 5])
def test_it_is_its_equations_causally(x, kernel):
    m = built(True, kernel=kernel)
    with torch.no_grad():
        torch.testing.assert_close(m(x, Layout((N,))), by_hand(m, x, 1, N))
        torch.testing.assert_close(m(x, IMAGE), m(x, Layout((N,))))


def test_cost_of_an_image(x):
    m = built()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        m(x, IMAGE)
    cost = m.cost(IMAGE, 2)
    assert cost.macs == counter.get_total_flops() // 2
    assert cost.params == parameter_count(m) == 4 * D * (D + 1) + D // 4 * 26


def test_what_it_refuses(x):
    with pytest.raises(Unsupported, match="prefix"):
        built()(x, Layout((17, 2), prefix=1))
    with pytest.raises(ValueError, match="kernel is 4"):
        built(kernel=4)
