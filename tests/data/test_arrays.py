import numpy as np
import pytest
import torch

from formwright import data
from formwright.data import DataError

RNG = np.random.default_rng(0)
X = {
    "columns": RNG.normal(5, 3, (100, 6)),
    "tokens": RNG.integers(0, 30, (100, 12)),
    "grey": RNG.integers(0, 256, (100, 8, 10), dtype=np.uint8),
    "last": RNG.integers(0, 256, (100, 8, 10, 3), dtype=np.uint8),
    "first": RNG.integers(0, 256, (100, 3, 8, 10), dtype=np.uint8),
    "real": RNG.random((100, 8, 10, 1)),
    "series": RNG.normal(2, 4, (100, 20, 3)),
}
CLASSES = np.arange(100) % 4


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("x", "embed", "facts"),
    [
        ("columns", "columns", {"numeric": (6,), "categories": ()}),
        ("tokens", "tokens", {"vocab": 30, "length": 12}),
        ("grey", "patches", {"channels": 1, "image": (8, 10)}),
        ("last", "patches", {"channels": 3, "image": (8, 10)}),
        ("first", "patches", {"channels": 3, "image": (8, 10)}),
        ("real", "patches", {"channels": 1, "image": (8, 10)}),
        ("series", "series", {"variates": 3, "input_length": 20}),
    ],
)
def test_classified(tmp_path, x, embed, facts):
    source = data.open(save(tmp_path / "a.npz", x=X[x], y=CLASSES))
    assert (source.kind, source.embed, source.head) == ("arrays", embed, "classify")
    assert source.facts == {"classes": 4} | facts and source.names == ["0", "1", "2", "3"]
    assert any("x is read as" in n for n in source.notes)
    assert source.counts == {"train": 80, "validation": 10, "test": 10}
    batch = source.batch("train", 1, 5)
    assert batch.inputs.shape == (5, *source.shape) and batch.targets.dtype == torch.int64
    if embed == "tokens":
        assert batch.inputs.dtype == torch.int64
    else:
        train = next(source.evaluation("train", 100)).inputs
        axes = {"columns": 0, "series": (0, 1), "patches": (0, 1, 2)}[embed]
        assert train.mean(axes).abs().max() < 1e-4 and (train.std(axes) - 1).abs().max() < 0.02
    rows = torch.cat([b.inputs.flatten(1) for s in source.counts for b in source.evaluation(s, 9)])
    assert len(torch.unique(rows, dim=0)) == 100
    if x in ("last", "first"):
        shown = {source.picture(i).tobytes() for s in source.counts for b in source.evaluation(s, 9) for i in b.inputs}
        assert shown == {p.tobytes() for p in (X[x] if x == "last" else np.moveaxis(X[x], 1, -1).copy())}
    assert data.open(**source.options).fingerprint == source.fingerprint


def test_regressed(tmp_path):
    y = X["columns"][:, :2] * 10 + 7
    source = data.open(save(tmp_path / "a.npz", X=X["columns"], Y=y))
    assert source.head == "regress" and source.facts["outputs"] == 2
    batch = next(source.evaluation("train", 100))
    assert batch.targets.shape == (80, 2) and batch.targets.mean(0).abs().max() < 1e-5
    whole = X["columns"]
    for x, target in zip(batch.inputs, source.unscale(batch.targets), strict=True):
        assert np.abs(y - target).sum(1).min() < 1e-3 and len(x) == whole.shape[1]


def test_given_splits_are_kept(tmp_path):
    x = X["columns"]
    path = save(tmp_path / "a.npz", x_train=x[:70], y_train=CLASSES[:70], X_test=x[70:], y_test=CLASSES[70:])
    source = data.open(path)
    assert source.counts == {"train": 63, "validation": 7, "test": 30}
    assert any("validation part" in n for n in source.notes)
    test = next(source.evaluation("test", 100))
    assert test.targets.tolist() == CLASSES[70:].tolist()
    full = save(tmp_path / "b.npz", x_train=x[:70], y_train=CLASSES[:70], x_val=x[70:80], y_val=CLASSES[70:80],
                x_test=x[80:], y_test=CLASSES[80:])  # fmt: skip
    assert data.open(full).counts == {"train": 70, "validation": 10, "test": 20}


def test_tokens_to_tokens(tmp_path):
    x = X["tokens"]
    source = data.open(save(tmp_path / "a.npz", x=x, y=np.where(x % 2, x, -100)))
    assert source.head == "lm" and source.facts == {"vocab": 30, "length": 12} and source.metric == "accuracy"
    batch = source.batch("train", 0, 4)
    assert batch.targets.shape == (4, 12) and ((batch.targets == batch.inputs) | (batch.targets == -100)).all()


def test_a_series_to_forecast(tmp_path):
    values = np.cumsum(RNG.normal(size=(200, 2)), 0)
    values[5, 0] = np.nan
    source = data.open(save(tmp_path / "a.npz", x=values), forecast=4)
    assert source.kind == "series" and source.facts["variates"] == 2 and any("missing" in n for n in source.notes)
    assert data.open(save(tmp_path / "b.npz", x=values[:, 1]), forecast=4, input_length=9).shape == (9, 1)


@pytest.mark.parametrize(
    ("arrays", "options", "says"),
    [
        ({"a": CLASSES}, {}, "no array x"),
        ({"x": X["columns"]}, {}, "no targets for x"),
        ({"x": X["columns"], "y": CLASSES[:50]}, {}, "x has 100 rows, but y has 50"),
        ({"x": X["columns"], "y": CLASSES, "x_test": CLASSES}, {}, "keep one of the two forms"),
        (
            {"x_train": X["columns"], "y_train": CLASSES, "x_test": X["tokens"], "y_test": CLASSES},
            {},
            "differ in shape",
        ),
        ({"x_test": X["columns"], "y_test": CLASSES}, {}, "no training part"),
        ({"x": X["columns"], "y": CLASSES * 0}, {}, "one class only"),
        ({"x": X["columns"], "y": np.arange(100)}, {}, "100 classes in 100 rows"),
        ({"x": X["columns"][:5], "y": CLASSES[:5]}, {}, "at least 10"),
        ({"x": X["tokens"] - 5, "y": CLASSES}, {}, "tokens are whole numbers from 0"),
        ({"x": np.full((100, 3), np.nan), "y": CLASSES}, {}, "missing or infinite at [0, 0]"),
        ({"x": X["columns"][:, 0], "y": CLASSES}, {}, "it must be"),
        ({"x": RNG.random((100, 4, 4, 7)), "y": CLASSES}, {}, "1 or 3 channels"),
        ({"x": X["grey"], "y": RNG.random(100)}, {}, "pictures are classified"),
        ({"x": np.array(["a"] * 100), "y": CLASSES}, {}, "must hold numbers"),
        ({"x": X["columns"], "y": np.array([{}] * 100)}, {}, "no readable .npz"),
        ({"x": X["columns"], "y": CLASSES}, {"forecast": 3}, "without y"),
        ({"x": X["columns"], "y": CLASSES}, {"target": "y"}, "target='y' does not apply"),
        ({"x": X["columns"], "y": CLASSES}, {"input_length": 3}, "needs forecast"),
    ],
)
def test_mistakes_are_named(tmp_path, arrays, options, says):
    with pytest.raises(DataError) as caught:
        data.open(save(tmp_path / "a.npz", **arrays), **options)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"nothing of the kind"])
def test_broken_files_are_named(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="npz"):
        data.open(path)
