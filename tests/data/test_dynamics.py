"""Lorenz-96 and Kuramoto-Sivashinsky: the integrators against others' and against theory; the sources of windows."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from formwright import data
from formwright.data import DataError
from formwright.data.dynamics import etdrk4, halves, lyapunov_exponent, run_kuramoto_sivashinsky, run_lorenz96


def slope_by_loop(x, forcing):
    """dx/dt of Lorenz-96, one variable after the other."""
    n = len(x)
    return np.array([(x[(i + 1) % n] - x[(i - 2) % n]) * x[(i - 1) % n] - x[i] + forcing for i in range(n)])


def slope_of_waves(u, length):
    """u_t of Kuramoto-Sivashinsky by matrices of derivatives: no Fourier transform, no split into parts."""
    n = len(u)
    wave = 2 * np.pi / length * np.where(np.arange(n) < n / 2, np.arange(n), np.arange(n) - n)
    place = np.arange(n) / n * length
    basis = np.exp(1j * np.outer(place, wave)) / n
    back = np.exp(-1j * np.outer(wave, place))
    slopeless = np.where(np.arange(n) == n // 2, 0, wave)
    first = (basis * (1j * slopeless)) @ back
    even = (basis * (wave**2 - wave**4)) @ back
    return (-0.5 * first @ (u * u) + even @ u).real


def test_lorenz96_follows_the_runge_kutta_formulas_and_the_true_path():
    start = 8 + np.random.default_rng(0).normal(size=12)
    x, path = start.copy(), []
    for _ in range(40):
        a = slope_by_loop(x, 8.0)
        b = slope_by_loop(x + 0.005 * a, 8.0)
        c = slope_by_loop(x + 0.005 * b, 8.0)
        d = slope_by_loop(x + 0.01 * c, 8.0)
        x = x + 0.01 / 6 * (a + 2 * b + 2 * c + d)
        path.append(x)
    ours = run_lorenz96(start, 8.0, 0.01, 40)
    assert np.abs(ours - np.array(path)).max() < 1e-11
    exact = solve_ivp(
        lambda t, y: slope_by_loop(y, 8.0), (0, 0.4), start, method="DOP853", rtol=1e-12, atol=1e-12, t_eval=[0.2, 0.4]
    )
    assert np.abs(ours[[19, 39]] - exact.y.T).max() < 1e-3
    finer = run_lorenz96(start, 8.0, 0.005, 40, every=2)
    ratio = np.abs(ours[-1] - exact.y[:, -1]).max() / np.abs(finer[-1] - exact.y[:, -1]).max()
    assert 12 < ratio < 20  # an error of fourth order


def test_steps_are_left_out_and_kept_where_they_should_be():
    start = np.random.default_rng(1).normal(size=(2, 16))
    every = run_lorenz96(start, 8.0, 0.01, 30)
    assert (run_lorenz96(start, 8.0, 0.01, 5, every=4, transient=7) == every[[10, 14, 18, 22, 26]]).all()
    assert (run_lorenz96(start[1], 8.0, 0.01, 30) == every[:, 1]).all()
    u = 0.1 * np.random.default_rng(2).normal(size=32)
    every = run_kuramoto_sivashinsky(u, 20.0, 0.25, 30)
    few = run_kuramoto_sivashinsky(u, 20.0, 0.25, 5, every=4, transient=7, points=8)
    assert (few == every[[10, 14, 18, 22, 26], ::4]).all()


def test_kuramoto_sivashinsky_follows_the_true_path():
    start = run_kuramoto_sivashinsky(np.cos(2 * np.pi * np.arange(32) / 32), 22.0, 0.25, 1, transient=200)[0]
    exact = solve_ivp(
        lambda t, u: slope_of_waves(u, 22.0), (0, 10), start, method="DOP853", rtol=1e-9, atol=1e-10, t_eval=[5, 10]
    ).y.T
    errors = []
    for step in (0.25, 0.125):
        ours = run_kuramoto_sivashinsky(start, 22.0, step, 2, every=round(5 / step))
        errors.append(np.abs(ours - exact).max())
    assert errors[0] < 2e-3 and errors[1] < errors[0] / 8


def test_the_weights_of_etdrk4_are_their_formulas_where_these_are_safe():
    linear = np.array([-40.0, -8.0, 5.0])
    whole, half, q, f1, f2, f3 = etdrk4(linear, 0.25)
    z = 0.25 * linear
    e = np.exp(z)
    assert np.allclose(whole, e) and np.allclose(half**2, e)
    assert np.allclose(q, 0.25 * (np.exp(z / 2) - 1) / z)
    assert np.allclose(f1, 0.25 * (-4 - z + e * (4 - 3 * z + z**2)) / z**3)
    assert np.allclose(f2, 0.25 * (2 + z + e * (-2 + z)) / z**3)
    assert np.allclose(f3, 0.25 * (-4 - 3 * z - z**2 + e * (4 - z)) / z**3)
    at_zero = [float(w[0]) / 0.25 for w in etdrk4(np.array([0.0]), 0.25)[2:]]
    assert np.allclose(at_zero, [1 / 2, 1 / 6, 1 / 6, 1 / 6])  # there it is the classical Runge-Kutta method


def test_lorenz96_is_as_chaotic_as_is_known():
    x = run_lorenz96(8 + 0.01 * np.arange(40) / 40, 8.0, 0.01, 1000, transient=2000)
    assert abs(x.mean() - 2.34) < 0.25 and abs(x.std() - 3.64) < 0.25
    assert abs((x**2).mean() - 8 * x.mean()) < 2  # d/dt of the energy is zero on average: <x^2> = F <x>

    def advance(state):
        return run_lorenz96(state, 8.0, 0.01, 1, every=20)[0]

    assert abs(lyapunov_exponent(advance, x[-1], 0.2, 450) - 1.68) < 0.25


def test_kuramoto_sivashinsky_has_the_waves_that_are_known():
    start = 0.01 * np.random.default_rng(0).normal(size=256)
    u = run_kuramoto_sivashinsky(start - start.mean(), 100.0, 0.25, 1500, transient=1000)
    assert np.abs(u.mean(1)).max() < 1e-10  # the mean never changes
    assert 1.1 < u.std() < 1.5 and np.abs(u).max() < 4.5
    power = (np.abs(np.fft.rfft(u, axis=1)) ** 2).mean(0)
    peak = 2 * np.pi / 100 * power.argmax()
    assert 0.5 < peak < 0.95  # near the fastest growing wave, 1 / sqrt(2)
    assert power[-20:].max() < 1e-9 * power.max()  # and none as short as the grid
    # The energy's balance: <u_x^2> = <u_xx^2>, as the nonlinear term only moves energy about.
    wave = 2 * np.pi / 100 * np.arange(129)
    weight = np.r_[1, np.full(127, 2), 1] * power
    assert (weight * wave**2).sum() == pytest.approx((weight * wave**4).sum(), rel=0.03)


SMALL = "lorenz96(variables=8, samples=2000, transient=100, input_length=16, horizon=8)"


def test_a_trajectory_is_a_series_split_in_halves():
    assert halves(200_000) == (90_000, 100_000, 200_000)
    source = data.open(SMALL)
    assert source.kind == "series" and source.head == "forecast" and source.metric == "mse"
    assert source.facts == {"variates": 8, "input_length": 16, "horizon": 8}
    assert source.counts == {"train": 900 - 23, "validation": 100 - 7, "test": 1000 - 7}
    test = next(source.evaluation("test", 1000))
    before = next(source.evaluation("validation", 1000))
    whole = torch.cat([before.targets[:, 0], before.targets[-1, 1:], test.targets[:, 0], test.targets[-1, 1:]]).numpy()
    path = source.unscale(whole)
    again = run_lorenz96(path[0], 8.0, 0.01, 200)
    assert np.abs(path[1:201] - again).max() < 1e-4
    # All rows since the first of validation stand in a row, and the windows' inputs end right before their targets.
    assert len(path) == 1100
    assert torch.equal(test.inputs[8:, -8:], test.targets[:-8])
    assert source.names[0] == "x1"
    train = source.batch("train", 0, 64)
    assert abs(float(train.targets.mean())) < 0.3 and 0.7 < float(train.targets.std()) < 1.3


def test_trajectories_are_kept_and_named_by_their_definition(tmp_path, monkeypatch):
    import formwright.data.tasks.lorenz96 as module

    source = data.open(SMALL)
    other = data.open(SMALL, seed=1)
    assert not torch.equal(source.batch("test", 0, 4).inputs, other.batch("test", 0, 4).inputs)
    monkeypatch.setattr(module, "run_lorenz96", None)  # not integrated again, whatever the windows
    same = data.open(**source.options)
    assert same.fingerprint == source.fingerprint
    assert torch.equal(source.batch("test", 0, 4).inputs, same.batch("test", 0, 4).inputs)
    wider = data.open(SMALL.replace("horizon=8", "horizon=9"))
    assert wider.fingerprint != source.fingerprint and wider.counts["test"] == source.counts["test"] - 1
    with pytest.raises(TypeError):
        data.open(SMALL.replace("variables=8", "variables=9"))


def test_kuramoto_sivashinsky_as_a_source():
    text = (
        "kuramoto_sivashinsky(length=22.0, grid=64, points=16, samples=600, transient=100, input_length=8, horizon=4)"
    )
    source = data.open(text)
    assert source.facts == {"variates": 16, "input_length": 8, "horizon": 4}
    batch = source.batch("train", 0, 8)
    assert batch.inputs.shape == (8, 8, 16) and torch.isfinite(batch.inputs).all()


@pytest.mark.parametrize(("name", "rows"), [("kuramoto_sivashinsky", "45"), ("lorenz96", "60")])
def test_a_lyapunov_time_is_said_in_rows(name, rows):
    notes = data.open(f"{name}(samples=400, transient=0, input_length=4, horizon=2)").notes
    assert any("A Lyapunov time" in n and f"{rows} rows" in n for n in notes)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("lorenz96(variables=3)", "at least 4"),
        ("lorenz96(step=0.5)", "at most 0.05"),
        ("lorenz96(forcing=0)", "8 and 10 are chaotic"),
        ("lorenz96(samples=200, transient=0, horizon=30)", "forecast at most 10 steps"),
        ("kuramoto_sivashinsky(points=100)", "must divide grid=512"),
        ("kuramoto_sivashinsky(length=1000.0)", "more than 1333 points"),
        ("lorenz96(lenght=3)", "its options are variables"),
    ],
)
def test_refusals(text, part):
    with pytest.raises(DataError, match=part):
        data.open(text if "samples" in text else text.replace(")", ", samples=200)"))
