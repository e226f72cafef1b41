"""MNIST-1D: signals drawn one by one by plain steps have the same law; published scores of simple models come out."""

import numpy as np
import pytest
import torch

from formwright import build, data
from formwright.data import DataError
from formwright.data.tasks import TASKS
from formwright.data.tasks.mnist1d import DEVIATION, MEAN, between, draw, smooth, templates


def one_signal(rng, digit, noise=0.25):
    """As the package does it, step by step, with libraries where it has them."""
    from scipy.interpolate import interp1d
    from scipy.ndimage import gaussian_filter

    def stretch(x, n):
        return interp1d(np.linspace(0, 1, len(x)), x)(np.linspace(0, 1, n))

    x = np.concatenate([templates()[digit] + 1e-8, np.zeros(36 + int(rng.random() * 25))])
    x = stretch(x, 72) * (1 + 0.4 * (rng.random() - 0.5))
    k = int(rng.integers(48))
    x = np.concatenate([x[len(x) - k :], x[: len(x) - k]])
    x = np.where(x != 0, x, gaussian_filter(noise * rng.standard_normal(72), 2))
    x = x + 0.02 * rng.standard_normal(72)
    x = x - 0.75 * (rng.random() - 0.5) * np.linspace(-0.5, 0.5, 72)
    return stretch(x, 40)


def test_the_law_is_that_of_signals_made_one_by_one():
    rng, number = np.random.default_rng(0), 400
    for digit in (0, 4, 8):
        slow = np.stack([one_signal(rng, digit) for _ in range(number)])
        fast = draw(rng, np.full(10 * number, digit), 0.25)
        error = slow.std(0) / number**0.5
        assert np.abs((slow.mean(0) - fast.mean(0)) / error).max() < 4.5
        assert np.abs(slow.std(0) / fast.std(0) - 1).max() < 0.2
        assert np.abs(np.corrcoef(slow.T) - np.corrcoef(fast.T)).max() < 0.3


def test_templates():
    curves = templates()
    assert curves.shape == (10, 12) and np.allclose(curves.std(1), 1 / 6)
    assert np.abs(curves[:, [0, -1]]).max() < 1e-12


def test_steps_against_libraries():
    from scipy.ndimage import gaussian_filter1d

    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 72))
    assert np.allclose(smooth(x), gaussian_filter1d(x, 2, axis=1))
    place = rng.uniform(0, 71, size=(5, 40))
    assert np.allclose(between(x, place), [np.interp(p, np.arange(72), row) for p, row in zip(place, x, strict=True)])


def test_sizes_classes_and_scale():
    source = data.open("mnist1d")
    assert source.counts == {"train": 4000, "validation": 1000, "test": 1000}
    batches = list(source.evaluation("train", 4000))
    x, y = batches[0].inputs, batches[0].targets
    assert x.shape == (4000, 40, 1) and (torch.bincount(y) == 400).all()
    assert abs(x.mean()) < 0.05 and abs(x.std() - 1) < 0.05
    assert not torch.equal(y[:1000], y[1000:2000])


def test_published_scores_of_simple_models():
    for spec in ("mnist1d", "mnist1d(shuffled=True)"):
        source = data.open(spec)
        assert 0.25 < source.baselines["logistic regression"] < 0.40  # published: 0.32, shuffled or not
        assert 0.48 < source.baselines["the nearest neighbour"] < 0.65
        assert source.baselines["guessing"] == 0.1


def test_shuffled_is_one_fixed_order():
    plain, shuffled = TASKS["mnist1d"](), TASKS["mnist1d"](shuffled=True)
    x, y = plain.make(np.random.default_rng(0), 200)
    z, same = shuffled.make(np.random.default_rng(0), 200)
    assert (y == same).all() and (x != z).any()
    assert (np.sort(x, 1) == np.sort(z, 1)).all()
    order = [np.flatnonzero((x[:, :, 0] == z[:, [k], 0]).all(0)).item() for k in range(40)]
    assert sorted(order) == list(range(40)) and order != sorted(order)


def test_seeds_and_noise():
    source, other = data.open("mnist1d"), data.open("mnist1d", seed=1)
    assert torch.equal(source.batch("train", 0, 8).inputs, data.open("mnist1d").batch("train", 0, 8).inputs)
    assert not torch.equal(source.batch("train", 0, 8).inputs, other.batch("train", 0, 8).inputs)
    quiet, _ = TASKS["mnist1d"](noise=0).make(np.random.default_rng(0), 200)
    loud, _ = TASKS["mnist1d"](noise=1).make(np.random.default_rng(0), 200)
    assert quiet.std() < loud.std()
    assert MEAN < 0 < DEVIATION


def test_it_trains():
    source = data.open("mnist1d")
    model = build("2*(attention + swiglu)", data=source, dim=32)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    first = None
    for step in range(40):
        loss = model.loss(source.batch("train", step, 64))
        first = loss.item() if first is None else first
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < first - 0.15


@pytest.mark.parametrize(
    ("options", "says"),
    [({"shuffled": 1}, "True or False"), ({"noise": -1}, "between 0 and 10"), ({"tests": 1}, "at least 10")],
)
def test_refusals(options, says):
    with pytest.raises(DataError, match=says):
        TASKS["mnist1d"](**options)
