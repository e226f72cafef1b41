"""Manhattan self-attention on images, whole and axis by axis, against its dense definition. What all parts promise of
sequences is held by the laws."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from formwright.contract import Layout, Unsupported, parameter_count
from formwright.mixers.manhattan_attention import ManhattanAttention
from formwright.ops.attention import SDPA_FLOPS

D, ROWS, COLUMNS = 32, 5, 7
N = ROWS * COLUMNS
IMAGE = Layout((ROWS, COLUMNS))


@pytest.fixture
def x():
    return torch.randn(2, N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def built(**options):
    torch.manual_seed(0)
    return ManhattanAttention(D, **{"heads": 4, **options}).double()


def by_hand(m, x, rows, columns):
    """Complex rotations, dense decays, and for lepe a sum over shifted images."""
    n = rows * columns
    q, k, v = (f(x).unflatten(-1, (m.heads, -1)).transpose(1, 2) for f in (m.query, m.key, m.value))
    theta = torch.tensor([10000 ** -(f / (m.head_dim // 2 - 1)) for f in range(m.head_dim // 2)], dtype=x.dtype)
    turn = torch.polar(torch.ones(n, len(theta), dtype=x.dtype), torch.arange(n)[:, None] * theta)
    q, k = (torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous()) * turn for t in (q, k))
    scores = (q @ k.mH).real / m.head_dim**0.5
    gamma = torch.tensor([1 - 2 ** -(m.start + m.spread * h / m.heads) for h in range(m.heads)], dtype=x.dtype)
    row, column = (t.flatten() for t in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    apart = [(t[:, None] - t).abs() for t in (row, column)]
    if m.decomposed and rows > 1:
        weights = None
        for same, far in ((0, 1), (1, 0)):  # along rows, then along columns
            p = scores.exp() * gamma[:, None, None] ** apart[far] * (apart[same] == 0)
            p = p / p.sum(-1, keepdim=True)
            weights = p if weights is None else p @ weights
    else:
        p = scores.exp() * gamma[:, None, None] ** (apart[0] + apart[1])
        weights = p / p.sum(-1, keepdim=True)
    o = (weights @ v).transpose(1, 2).flatten(2)
    if m.lepe is not None:
        reach = m.kernel // 2
        image = m.value(x).unflatten(1, (rows, columns))
        for a in range(-reach, reach + 1):
            for b in range(-reach, reach + 1):
                tap = m.lepe.weight[:, 0, a + reach, b + reach]
                inside = ((row + a >= 0) & (row + a < rows) & (column + b >= 0) & (column + b < columns))[:, None]
                o = o + tap * inside * image[:, (row + a) % rows, (column + b) % columns]
        o = o + m.lepe.bias
    return m.out(o)


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("grid", [(ROWS, COLUMNS), (1, N), (N, 1)])
@pytest.mark.parametrize("kernel", [5, 0])
def test_it_is_its_dense_definition(x, grid, decomposed, kernel):
    m = built(decomposed=decomposed, kernel=kernel)
    with torch.no_grad():
        torch.testing.assert_close(m(x, Layout(grid)), by_hand(m, x, *grid))


@pytest.mark.parametrize("decomposed", [False, True])
def test_gradients_on_an_image_are_those_of_the_definition(x, decomposed):
    m = built(decomposed=decomposed)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    found, wanted = (
        torch.autograd.grad((y * direction).sum(), list(m.parameters())) for y in (m(x, IMAGE), by_hand(m, x, 5, 7))
    )
    torch.testing.assert_close(found, wanted)


def test_a_sequence_is_an_image_of_one_row(x):
    m = built()
    torch.testing.assert_close(m(x, Layout((N,))), m(x, Layout((1, N))))


def test_decays_without_scores_multiply_to_the_same():
    """With equal scores, both forms weigh a token by gamma to its Manhattan distance."""
    whole, axes = built(kernel=0), built(kernel=0, decomposed=True)
    axes.load_state_dict(whole.state_dict())
    for m in (whole, axes):
        for p in (*m.query.parameters(), *m.key.parameters()):
            torch.nn.init.zeros_(p)
    x = torch.randn(1, N, D, dtype=torch.float64)
    torch.testing.assert_close(whole(x, IMAGE), axes(x, IMAGE))


@pytest.mark.parametrize("decomposed", [False, True])
def test_cost_of_an_image(x, decomposed):
    m = built(decomposed=decomposed)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter:
        m(x, IMAGE)
    cost = m.cost(IMAGE, 2)
    assert cost.macs == counter.get_total_flops() // 2
    assert cost.params == parameter_count(m) == 4 * D * (D + 1) + D * 26


def test_what_it_refuses(x):
    with pytest.raises(Unsupported, match="prefix"):
        built()(x, Layout((17, 2), prefix=1))
    for options in ({"kernel": 4}, {"start": 0.0}, {"heads": 2, "head_dim": 7}):
        with pytest.raises(ValueError, match=r"must be|make it"):
            built(**options)
