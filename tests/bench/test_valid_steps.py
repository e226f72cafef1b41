"""Valid steps of closed-loop forecasts, against loops over steps and models whose answer is known."""

import numpy as np
import pytest
import torch
from torch import nn

import formwright
from formwright import data
from formwright.bench.dynamics import path, roll_out, valid_steps
from formwright.data.dynamics import run_lorenz96

SPEC = "lorenz96(variables=8, samples=3000, transient=500, input_length=12, horizon=5)"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return data.open(SPEC, cache=tmp_path_factory.mktemp("cache"))


class LastValue(nn.Module):
    def forward(self, windows):
        return windows[:, -1:].expand(-1, 5, -1)


class Equations(nn.Module):
    """Goes on by the system's equations, slightly wrong from `off`."""

    def __init__(self, source, off=0.0):
        super().__init__()
        self.source, self.off = source, off

    def forward(self, windows):
        now = self.source.unscale(windows[:, -1].numpy()) + self.off
        ahead = run_lorenz96(now, 8.0, 0.01, 5).transpose(1, 0, 2)
        return torch.from_numpy(self.source.scale.forward(ahead))


def test_the_true_path_goes_on_beyond_the_horizon(source):
    windows, truth = path(source, np.array([0, 7]), 23)
    test = next(source.evaluation("test", 3000))
    assert torch.equal(windows, test.inputs[[0, 7]])
    for row, start in enumerate((0, 7)):
        for t in range(23):
            assert torch.equal(truth[row, t], test.targets[start + t, 0])


def test_a_forecast_is_read_again():
    class Counts(nn.Module):
        def forward(self, windows):
            return windows[:, -1:] + torch.arange(1, 4).view(1, 3, 1)

    ahead = roll_out(Counts(), torch.zeros(2, 4, 1), 7)
    assert ahead[0, :, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_valid_steps_of_the_last_value(source):
    found = valid_steps(LastValue(), source, starts=20, steps=40, batch_size=7)
    room = source.counts["test"] - 35
    test = next(source.evaluation("test", 3000))
    for number, start in zip(found, np.arange(20) * room // 20, strict=True):
        last = test.inputs[start, -1]
        expected = 40
        for t in range(40):
            if float((last - test.targets[start + t, 0]).square().mean().sqrt()) > 0.5:
                expected = t
                break
        assert number == expected
    assert 2 < found.mean() < 40


def test_the_equations_themselves_are_valid_long(source):
    exact = valid_steps(Equations(source), source, starts=10)
    assert (exact == 80).all()
    near = valid_steps(Equations(source, 0.05), source, starts=10, steps=200)
    assert valid_steps(LastValue(), source, starts=10).mean() < near.mean() < 200


def test_forecasts_that_are_no_numbers_are_not_valid(source):
    class Breaks(nn.Module):
        def forward(self, windows):
            return torch.full((len(windows), 5, 8), float("nan"))

    assert (valid_steps(Breaks(), source, starts=4) == 0).all()


def test_a_model_of_ours_and_other_data(source):
    model = formwright.build("2*(attention + swiglu)", data=source, dim=16).train()
    found = valid_steps(model, source, starts=5)
    assert found.shape == (5,) and (found >= 0).all() and (found <= 80).all() and model.training
    with pytest.raises(ValueError, match="a series to be forecast"):
        valid_steps(model, data.open("digits"))
