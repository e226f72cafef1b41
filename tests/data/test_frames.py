"""CSV and Parquet files: series, tables, and everything that can be wrong with them."""

import numpy as np
import pandas as pd
import pytest
import torch

from formwright import data
from formwright.data import DataError
from formwright.data.series import fill


def walk(rows=200, variates=3, seed=0):
    values = np.cumsum(np.random.default_rng(seed).normal(size=(rows, variates)), 0) + 50
    frame = pd.DataFrame(values, columns=[f"v{i}" for i in range(variates)])
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=rows, freq="h").astype(str))
    return frame


def save(frame, path, **options):
    frame.to_csv(path, index=False, **options)
    return path


def test_series_windows_splits_and_scale(tmp_path):
    frame = walk()
    source = data.open(save(frame, tmp_path / "s.csv"), forecast=5, input_length=12)
    raw = frame[["v0", "v1", "v2"]].to_numpy()
    assert (source.kind, source.embed, source.head, source.metric) == ("series", "series", "forecast", "mse")
    assert source.facts == {"variates": 3, "input_length": 12, "horizon": 5} and source.shape == (12, 3)
    assert source.names == ["v0", "v1", "v2"] and any("Column date is the time" in n for n in source.notes)
    mean, deviation = raw[:140].mean(0), raw[:140].std(0)
    assert source.counts == {"train": 140 - 16, "validation": 16, "test": 36}
    bounds = {"train": (0, 140), "validation": (140, 160), "test": (160, 200)}
    for split, (low, high) in bounds.items():
        batch = next(source.evaluation(split, 1000))
        assert batch.inputs.shape == (source.counts[split], 12, 3) and batch.inputs.dtype == torch.float32
        start = low if split == "train" else low - 12
        for i in (0, source.counts[split] - 1):
            x = (raw[start + i : start + i + 12] - mean) / deviation
            y = (raw[start + i + 12 : start + i + 17] - mean) / deviation
            assert np.allclose(batch.inputs[i], x, atol=1e-5) and np.allclose(batch.targets[i], y, atol=1e-5)
        assert start + source.counts[split] - 1 + 17 == high
    assert np.allclose(source.unscale(batch.targets[-1]), raw[-5:], atol=1e-4)


def test_later_rows_do_not_move_the_scale_or_earlier_windows(tmp_path):
    frame = walk()
    other = frame.copy()
    other.loc[140:, ["v0", "v1", "v2"]] *= -100
    one = data.open(save(frame, tmp_path / "a.csv"), forecast=5)
    two = data.open(save(other, tmp_path / "b.csv"), forecast=5)
    assert (one.scale.mean == two.scale.mean).all() and one.fingerprint != two.fingerprint
    a, b = next(one.evaluation("train", 1000)), next(two.evaluation("train", 1000))
    assert (a.inputs == b.inputs).all() and (a.targets == b.targets).all()


def test_missing_values_are_filled_from_the_past_and_not_scored(tmp_path):
    frame = walk()
    frame.loc[:2, "v0"] = np.nan
    frame.loc[50:52, "v1"] = np.nan
    source = data.open(save(frame, tmp_path / "s.csv"), forecast=5, input_length=12)
    note = next(n for n in source.notes if "missing values" in n)
    assert "6 missing values in v0, v1" in note and "filled forward from the past" in note
    batch = next(source.evaluation("train", 1000))
    assert torch.isfinite(batch.inputs).all()
    assert (batch.inputs[0, :3, 0] == 0).all() and batch.inputs[0, 3, 0] != 0
    assert (batch.inputs[45, 5:8, 1] == batch.inputs[45, 4, 1]).all()
    assert batch.targets[38, :3, 1].isnan().all() and batch.targets[38, 3:, 1].isfinite().all()
    assert int(batch.targets.isnan().sum()) == 15
    known = frame["v0"][3:140]
    assert source.scale.mean[0] == pytest.approx(known.mean()) and source.scale.deviation[0] == pytest.approx(
        known.std(ddof=0)
    )


def test_fill_never_looks_ahead():
    values = np.random.default_rng(0).normal(size=(30, 2))
    values[np.random.default_rng(1).random((30, 2)) < 0.4] = np.nan
    whole = fill(values)
    for t in range(30):
        assert (fill(values[: t + 1]) == whole[: t + 1]).all()


def test_unsorted_times_are_sorted_with_a_note(tmp_path):
    frame = walk()
    mixed = frame.sample(frac=1, random_state=0)
    one = data.open(save(frame, tmp_path / "a.csv"), forecast=5)
    two = data.open(save(mixed, tmp_path / "b.csv"), forecast=5)
    assert any("they have been sorted" in n for n in two.notes) and not any("sorted" in n for n in one.notes)
    assert one.fingerprint == two.fingerprint


@pytest.mark.parametrize("stamp", ["%d/%m/%Y %H:%M", "%Y-%m-%dT%H:%M:%SZ", "%b %d %Y %H:%M"])
def test_times_are_found_however_they_are_written(tmp_path, stamp):
    frame = walk(rows=600)
    frame["date"] = pd.date_range("2020-01-01", periods=600, freq="h").strftime(stamp)
    frame = frame[["v0", "date", "v1", "v2"]]
    source = data.open(save(frame, tmp_path / "s.csv"), forecast=5)
    assert source.names == ["v0", "v1", "v2"]
    assert any("Column date is the time" in n for n in source.notes) and not any("sorted" in n for n in source.notes)
    assert not any("steps of time differ" in n for n in source.notes)


def test_uneven_steps_months_and_no_time_at_all(tmp_path):
    frame = walk()
    gaps = frame.drop(index=[30, 31, 77])
    assert any("2 of 196 steps" in n for n in data.open(save(gaps, tmp_path / "a.csv"), forecast=5).notes)
    frame["date"] = pd.date_range("2000-01-31", periods=200, freq="ME").astype(str)
    assert not any("steps of time" in n for n in data.open(save(frame, tmp_path / "b.csv"), forecast=5).notes)
    bare = frame.drop(columns="date")
    assert any("no time column" in n for n in data.open(save(bare, tmp_path / "c.csv"), forecast=5).notes)
    bare.insert(0, "year", np.arange(200))
    assert data.open(save(bare, tmp_path / "d.csv"), forecast=5).names == ["v0", "v1", "v2"]


def test_columns_that_are_no_numbers(tmp_path):
    frame = walk()
    frame["place"] = "north"
    frame["v1"] = frame["v1"].astype(object)
    frame.loc[7, "v1"] = "broken"
    frame["v2"] = 3.0
    frame["none"] = np.nan
    frame.loc[9, "v0"] = np.inf
    source = data.open(save(frame, tmp_path / "s.csv"), forecast=5)
    notes = " ".join(source.notes)
    assert source.names == ["v0", "v1", "v2"]
    for part in (
        "without numbers: place",
        "'broken' in data row 8",
        "without any value: none",
        "1 infinite",
        "Constant",
    ):
        assert part in notes


def test_csv_written_otherwise(tmp_path):
    frame = walk()
    plain = data.open(save(frame, tmp_path / "a.csv"), forecast=5)
    for name, options in {"b.csv": {"sep": ";", "decimal": ","}, "c.tsv": {"sep": "\t"}, "d.csv": {"sep": "|"}}.items():
        assert data.open(save(frame, tmp_path / name, **options), forecast=5).fingerprint == plain.fingerprint
    marked = tmp_path / "e.csv"
    marked.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.csv").read_bytes().replace(b"\n", b"\r\n"))
    assert data.open(marked, forecast=5).fingerprint == plain.fingerprint
    frame.to_csv(tmp_path / "f.csv")
    counted = data.open(tmp_path / "f.csv", forecast=5)
    assert counted.names == plain.names and any("only counts the rows" in n for n in counted.notes)
    frame.assign(date=pd.to_datetime(frame["date"])).set_index("date").to_parquet(tmp_path / "g.parquet")
    assert data.open(tmp_path / "g.parquet", forecast=5).names == plain.names
    frame[["v0", "v1"]].to_csv(tmp_path / "h.csv", index=False, header=False)
    headless = data.open(tmp_path / "h.csv", forecast=5)
    assert headless.names == ["column1", "column2"] and any("first line" in n for n in headless.notes)


def test_single_series_reports_its_own_unit(tmp_path):
    source = data.open(save(walk()[["date", "v0"]], tmp_path / "s.csv"), forecast=5)
    report = source.report({"loss": (4.0, 4), "mse": (8.0, 2), "mae": (3.0, 2)}, "test")
    unit = source.scale.deviation[0]
    assert report["mae_in_units"] == pytest.approx(1.5 * unit)
    assert report["rmse_in_units"] == pytest.approx(2.0 * unit)


def test_a_new_file_is_prepared_as_in_training(tmp_path):
    frame = walk()
    source = data.open(save(frame, tmp_path / "s.csv"), forecast=5, input_length=12)
    inputs, labels = source.read(str(save(frame[["v2", "date", "v0", "v1"]], tmp_path / "new.csv")))
    raw = frame[["v0", "v1", "v2"]].to_numpy()[-12:]
    assert inputs.shape == (1, 12, 3) and labels == ["new.csv"]
    assert np.allclose(source.unscale(inputs[0]), raw, atol=1e-4)
    with pytest.raises(DataError, match="lacks the column v1"):
        source.read(str(save(frame[["date", "v0", "v2"]], tmp_path / "less.csv")))
    with pytest.raises(DataError, match="reads the last 12"):
        source.read(str(save(frame[:11], tmp_path / "short.csv")))


def people(rows=300, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "age": rng.integers(18, 90, rows).astype(float),
            "town": rng.choice(["Ulm", "Bonn", "Kiel"], rows),
            "joined": pd.date_range("2020-01-01", periods=rows).astype(str),
            "name": [f"person {i}" for i in range(rows)],
            "income": rng.normal(3000, 500, rows),
        }
    )
    frame["kind"] = np.where(frame["age"] > 50, "old", "young")
    return frame


def test_tables_classify_and_regress(tmp_path):
    frame = people()
    path = save(frame, tmp_path / "t.csv")
    source = data.open(path, target="kind")
    assert (source.kind, source.embed, source.head, source.metric) == ("table", "columns", "classify", "accuracy")
    assert source.facts == {"classes": 2, "numeric": (3,), "categories": (4,)} and source.names == ["old", "young"]
    assert any("name" in n and "too many kinds" in n for n in source.notes)
    batch = source.batch("train", 0, 1000)
    assert batch.inputs.shape == (1000, 4) and batch.targets.dtype == torch.int64 and batch.inputs.isfinite().all()
    every = torch.cat([b.inputs for s in source.counts for b in source.evaluation(s, 64)])
    assert len(every) == 300 and len(torch.unique(every, dim=0)) == 300
    train = next(source.evaluation("train", 1000)).inputs
    assert train[:, :3].mean(0).abs().max() < 1e-5 and (train[:, :3].std(0, correction=0) - 1).abs().max() < 1e-4
    assert set(train[:, 3].tolist()) == {1.0, 2.0, 3.0}

    source = data.open(path, target="income")
    assert (source.head, source.metric, source.lower_is_better) == ("regress", "mse", True)
    assert source.facts == {"outputs": 1, "numeric": (2,), "categories": (4, 3)}
    targets = next(source.evaluation("train", 1000)).targets
    assert targets.shape == (240, 1) and abs(float(targets.mean())) < 1e-5
    report = source.report({"loss": (1.0, 1), "mse": (0.5, 1), "mae": (0.25, 1)}, "test")
    test = next(source.evaluation("test", 1000)).targets
    assert report["r2"] == pytest.approx(1 - 0.5 / float(test.var(correction=0)), rel=1e-4)
    assert report["mae_in_units"] == pytest.approx(0.25 * source.scale.deviation[0])


@pytest.mark.parametrize(
    ("values", "head"),
    [
        ([0, 1] * 50, "classify"), ([True, False] * 50, "classify"), (list(range(100)), "regress"),
        ([0.5, 1.0] * 50, "regress"), (["a", "b"] * 50, "classify"), ([1, 2, 3, 4, 5] * 20, "classify"),
    ],
)  # fmt: skip
def test_the_target_decides_between_classes_and_numbers(tmp_path, values, head):
    frame = pd.DataFrame({"x": np.arange(100.0), "y": values})
    source = data.open(save(frame, tmp_path / "t.csv"), target="y")
    assert source.head == head and any("target is" in n for n in source.notes)


def test_missing_values_of_tables(tmp_path):
    frame = people()
    frame.loc[::3, "age"] = np.nan
    frame.loc[::4, "town"] = None
    frame.loc[[5, 6], "kind"] = None
    source = data.open(save(frame, tmp_path / "t.csv"), target="kind")
    notes = " ".join(source.notes)
    assert "2 rows without a value of kind" in notes and "age (" in notes and "training median" in notes
    assert "town (" in notes and "category of their own" in notes
    rows = torch.cat([b.inputs for s in source.counts for b in source.evaluation(s, 64)])
    assert rows.isfinite().all() and (rows[:, 3] == 0).sum() == 75
    ages = next(source.evaluation("train", 1000)).inputs[:, 0]
    value, number = torch.unique(ages, return_counts=True)
    median = value[number.argmax()]
    assert number.max() >= 70 and (ages < median).sum() <= len(ages) / 2 and (ages > median).sum() <= len(ages) / 2


def test_statistics_of_tables_come_from_training_rows(tmp_path):
    frame = people()
    source = data.open(save(frame, tmp_path / "a.csv"), target="kind")
    train = next(source.evaluation("train", 1000)).inputs
    other = frame.copy()
    from formwright.data.source import shuffled
    from formwright.data.table import labels

    codes = np.array([["old", "young"].index(v) for v in labels(frame["kind"])])
    held = np.concatenate([shuffled(300, 0, codes)[s] for s in ("validation", "test")])
    other.loc[held, "age"] = 1e6
    other.loc[held, "town"] = "Mars"
    changed = data.open(save(other, tmp_path / "b.csv"), target="kind")
    assert (next(changed.evaluation("train", 1000)).inputs == train).all()
    assert (next(changed.evaluation("test", 1000)).inputs[:, 3] == 0).all()
    assert changed.facts == source.facts


def test_rare_classes_stand_in_train_and_common_ones_everywhere(tmp_path):
    frame = pd.DataFrame({"x": np.arange(200.0), "y": ["a"] * 120 + ["b"] * 79 + ["c"]})
    source = data.open(save(frame, tmp_path / "t.csv"), target="y")
    for split in source.counts:
        seen = set(next(source.evaluation(split, 1000)).targets.tolist())
        assert seen == ({0, 1, 2} if split == "train" else {0, 1})
    again = data.open(tmp_path / "t.csv", target="y", seed=1)
    first = next(source.evaluation("test", 100)).inputs
    assert (first != next(again.evaluation("test", 100)).inputs).any()


def test_a_new_table_is_read_as_in_training(tmp_path):
    frame = people()
    source = data.open(save(frame, tmp_path / "t.csv"), target="kind")
    new = frame.drop(columns="kind")[:4].copy()
    new.loc[1, "town"] = "Rome"
    inputs, labels = source.read(str(save(new, tmp_path / "new.csv")))
    assert inputs.shape == (4, 4) and labels[0] == "row 1" and inputs[1, 3] == 0
    with pytest.raises(DataError, match="lacks the column age"):
        source.read(str(save(new.drop(columns="age"), tmp_path / "less.csv")))


GOOD = "a,b,c\n" + "".join(f"{i},{i * i % 7},{i % 2}\n" for i in range(100))


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (b"", {"forecast": 5}, "is empty"),
        (b"\n\n", {"forecast": 5}, "is empty"),
        (b"a,b\n", {"forecast": 5}, "no rows"),
        (GOOD.replace("50,1,0\n", "50,1\n").encode(), {"forecast": 5}, "line 52: 2 fields, but the first line has 3"),
        (GOOD.replace("50,1,0\n", "50,1,0,9\n").encode(), {"target": "c"}, "line 52: 4 fields"),
        (GOOD.replace("50,1,0\n", "50,1,\xe4\n").encode("latin-1"), {"forecast": 5}, "line 52: not UTF-8 at byte"),
        (GOOD.encode(), {}, "give forecast=24 (--forecast 24)"),
        (GOOD.encode(), {"forecast": 5, "target": "a"}, "give one of the two"),
        (GOOD.encode(), {"forecast": 5, "vocab": 500}, "vocab=500 does not apply"),
        (GOOD.encode(), {"target": "c", "image_size": 9}, "image_size=9 does not apply"),
        (GOOD.encode(), {"target": "C"}, "no column 'C'"),
        (GOOD.encode(), {"forecast": 0}, "at least 1"),
        (GOOD.encode(), {"forecast": 11}, "forecast at most 10 steps"),
        (GOOD.encode(), {"forecast": 10, "input_length": 61}, "smaller input_length"),
        (GOOD[:18].encode(), {"forecast": 2}, "give a longer series"),
        (b"a,b\n" + b"x,y\n" * 50, {"forecast": 2}, "no column of numbers"),
        (b"a,b\n" + b"1,y\n2,y\n" * 50, {"target": "b"}, "every row has the same b"),
        (b"a,b\n" + b"1,2\n" * 5, {"target": "b"}, "at least 10"),
        (b"b\n" + b"1\n2\n" * 50, {"target": "b"}, "no column to predict from"),
        (
            ("a,b\n" + "".join(f"1,n{i}\n" for i in range(50))).encode(),
            {"target": "b"},
            "names rows rather than classes",
        ),
        (
            ("date,b\n" + "".join(f"2020-01-{1 + i % 9:02d},{i}\n" for i in range(90))).encode(),
            {"forecast": 2},
            "stacked",
        ),
        (
            ("date,b\n" + "".join(f"2020-01-{1 + i:02d},{i}\n" if i != 7 else "oops,7\n" for i in range(31))).encode(),
            {"forecast": 2},
            "data row 8: the time in column date",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, content, options, says):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        data.open(path, **options)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_broken_parquet_is_named(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 nothing of the kind")
    with pytest.raises(DataError, match="no readable Parquet"):
        data.open(path, forecast=5)


@pytest.mark.parametrize("name", ["macro", "interest-inflation", "sunspots", "wine", "breast-cancer", "diabetes"])
def test_bundled(name):
    source = data.open(name)
    batch = source.batch("train", 0, 8)
    assert batch.inputs.shape[1:] == source.shape and batch.inputs.isfinite().all()
    assert data.open(**source.options).fingerprint == source.fingerprint
    if name == "macro":
        assert source.facts["variates"] == 12 and data.open("macro", forecast=4).facts["horizon"] == 4
