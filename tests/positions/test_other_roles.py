"""T5's buckets, ALiBi on grids and both ways, Time2Vec, LePE."""

from __future__ import annotations

import math

import pytest
import torch

import formwright
from formwright.contract import Layout, Unsupported
from formwright.positions.alibi import Alibi
from formwright.positions.lepe import Lepe
from formwright.positions.t5_bias import T5Bias, bucket
from formwright.positions.time2vec import Time2Vec


def by_hand(d: int, buckets: int, distance: int, both_ways: bool) -> float:
    """The bucket of key - query = d before it is rounded down, as the paper says it."""
    side, far = 0, max(-d, 0)
    if both_ways:
        buckets //= 2
        side, far = buckets * (d > 0), abs(d)
    exact = buckets // 2
    if far < exact:
        return side + far
    return side + min(exact + math.log(far / exact) / math.log(distance / exact) * (buckets - exact), buckets - 1)


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 20), (16, 9)])
def test_t5_buckets(buckets, distance, both_ways):
    d = torch.arange(-300, 301)
    found = bucket(d, buckets, distance, both_ways)
    for n, row in zip(d.tolist(), found.tolist(), strict=True):
        exact = by_hand(n, buckets, distance, both_ways)
        # Where the logarithm is a whole number, floats may fall on either side of it.
        assert row == int(exact) or (abs(exact - round(exact)) < 1e-5 and abs(row - exact) < 1.1)
    assert found.min() == 0 and found.max() == buckets - 1
    assert bucket(torch.tensor([-10000]), buckets, distance, both_ways) == (buckets // 2 if both_ways else buckets) - 1


def test_t5_bias_is_a_table_of_buckets_and_adds_up_over_axes():
    one = T5Bias(heads=3)
    places = torch.arange(40)[:, None]
    bias = one.bias(places, places)
    assert bias.shape == (3, 40, 40)
    for i, j in ((0, 0), (30, 2), (2, 30), (39, 38)):
        row = int(bucket(torch.tensor(j - i), 32, 128, True))
        assert torch.equal(bias[:, i, j], one.table[0, row])
    two, grid = T5Bias(heads=3, axes=2), Layout((3, 4)).positions()
    parts = [T5Bias(heads=3), T5Bias(heads=3)]
    for a, part in enumerate(parts):
        part.table.data = two.table.data[a : a + 1]
    expected = sum(part.bias(grid[:, a : a + 1], grid[:, a : a + 1]) for a, part in enumerate(parts))
    torch.testing.assert_close(two.bias(grid, grid), expected)


def test_t5_bias_one_way_learns_in_a_causal_model_and_decodes():
    text = "tokens(dim=16, vocab=11) >> attention(heads=2, position=t5_bias(both_ways=False)) >> lm"
    model = formwright.build(text).double().eval()
    inputs = torch.randint(11, (2, 9))
    out = model(inputs)
    out.square().sum().backward()
    (table,) = [p for n, p in model.named_parameters() if "table" in n]
    assert (table.grad[0, :9] != 0).all() and (table.grad[0, 9:] == 0).all()
    first, state = model.extend(inputs[:, :5], model.empty(2))
    rest, _ = model.extend(inputs[:, 5:], state)
    torch.testing.assert_close(torch.cat([first, rest], 1), out)


def test_t5_bias_refuses():
    with pytest.raises(Unsupported, match=r"t5_bias\(axes=2\)"):
        T5Bias(2).bias(torch.zeros(4, 2).long(), torch.zeros(4, 2).long())
    with pytest.raises(Unsupported, match="whole places"):
        T5Bias(2).bias(torch.rand(4, 1), torch.rand(4, 1))
    for options in ({"buckets": 5}, {"buckets": 2}, {"buckets": 1, "both_ways": False}, {"distance": 8}):
        with pytest.raises(ValueError, match="must be"):
            T5Bias(2, **options)


def test_alibi_looks_both_ways_and_over_grids():
    bias = Alibi(heads=2).bias(torch.arange(6)[:, None], torch.arange(6)[:, None])
    torch.testing.assert_close(bias, bias.mT)
    grid = Layout((3, 4)).positions()
    plane = Alibi(heads=2).bias(grid, grid)
    for i in range(12):
        for j in range(12):
            far = math.hypot(i // 4 - j // 4, i % 4 - j % 4)
            assert plane[1, i, j].item() == pytest.approx(-far / 256)


def test_time2vec_is_linear_once_and_periodic_otherwise():
    time, at = Time2Vec(6).double(), torch.tensor([[0.0], [0.5], [40.0]], dtype=torch.float64)
    added = time.embed(torch.zeros(1, 3, 6, dtype=torch.float64), at)[0]
    for row, t in enumerate(at[:, 0]):
        angles = time.frequency[0] * t + time.phase
        assert added[row, 0] == angles[0]
        torch.testing.assert_close(added[row, 1:], angles[1:].sin())
    assert time.frequency[0, 0].item() == pytest.approx(1e-4) and time.frequency[0, -1].item() == pytest.approx(1)
    with pytest.raises(Unsupported, match=r"time2vec\(axes=2\)"):
        time.embed(torch.zeros(1, 4, 6), torch.zeros(4, 2))


@pytest.mark.parametrize(("grid", "prefix"), [((9,), 0), ((4, 5), 1), ((2, 3, 4), 2)])
def test_lepe_is_a_depthwise_convolution_of_the_values(grid, prefix):
    lepe, n = Lepe(12, len(grid)).double(), prefix + math.prod(grid)
    torch.nn.init.normal_(lepe.offset)
    v = torch.randn(2, n, 3, 4, dtype=torch.float64)
    found = lepe.local(v, Layout(grid, prefix)).flatten(2)
    assert (found[:, :prefix] == 0).all()
    convolve = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[len(grid) - 1](
        12, 12, 3, padding=1, groups=12
    ).double()
    convolve.weight.data, convolve.bias.data = lepe.weight.data.unsqueeze(1), lepe.offset.data
    expected = convolve(v[:, prefix:].flatten(2).mT.unflatten(2, grid)).flatten(2).mT
    torch.testing.assert_close(found[:, prefix:], expected)
    with pytest.raises(ValueError, match="was built for"):
        lepe.local(v, Layout((n,) if len(grid) > 1 else (n, 1)))
