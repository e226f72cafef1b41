import numpy as np
import pytest

from formwright.data.order import keys, permute, stream


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_each_epoch_is_a_permutation_of_its_own(count):
    index, epoch = stream(0, 3 * count, count, seed=5)
    orders = index.reshape(3, count)
    for order in orders:
        assert sorted(order.tolist()) == list(range(count))
    assert (epoch.reshape(3, count) == epoch.reshape(3, count)[:, :1]).all()
    if count > 50:
        assert (orders[0] != orders[1]).any() and (orders[1] != orders[2]).any()
        assert abs(np.corrcoef(orders[0], np.arange(count))[0, 1]) < 0.5


@pytest.mark.parametrize("count", [9, 10, 1000, 1003])
def test_blocks_stay_together_and_cover_every_item(count):
    index, _ = stream(0, 2 * count, count, seed=1, block=10)
    for order in index.reshape(2, count):
        assert sorted(order.tolist()) == list(range(count))
        full = order[: count // 10 * 10].reshape(-1, 10)
        assert (full // 10 == full[:, :1] // 10).all()
    if count == 1000:
        assert (index[:1000] != np.arange(1000)).mean() > 0.9


def test_the_stream_does_not_depend_on_how_it_is_cut():
    whole, _ = stream(0, 600, 97, seed=3)
    parts = np.concatenate([stream(i * 20, 20, 97, seed=3)[0] for i in range(30)])
    assert (whole == parts).all()
    assert (whole != stream(0, 600, 97, seed=4)[0]).any()


def test_places_are_spread_evenly():
    places = permute(np.zeros(20000, dtype=np.int64), 10, keys(0, np.arange(20000)))
    assert np.abs(np.bincount(places, minlength=10) - 2000).max() < 200


def test_the_order_is_the_same_on_every_machine():
    assert stream(0, 8, 1000, seed=0)[0].tolist() == EXPECTED


EXPECTED = [380, 600, 5, 795, 766, 407, 327, 389]
