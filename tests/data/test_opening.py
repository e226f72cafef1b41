import os

import numpy as np
import pytest

from formwright import data
from formwright.data import DataError
from formwright.data.cache import entry
from formwright.data.source import Scale, shuffled


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("digit", "did you mean digits?"),
        ("python_source", "did you mean python-source?"),
        ("Macro", "did you mean macro?"),
        ("no/such/place/at/all.txt", "no file, folder or bundled source"),
        ("", "no data are named"),
        ("x" * 5000, "no file, folder or bundled source"),
        ("~nobody-of-this-name/x.txt", "no file, folder or bundled source"),
    ],
)
def test_missing_sources(spec, says):
    with pytest.raises(DataError) as caught:
        data.open(spec)
    assert says in str(caught.value)


def test_a_misspelt_path_is_mended(tmp_path):
    (tmp_path / "notes.txt").write_text("x" * 1000)
    with pytest.raises(DataError, match=r"did you mean .*notes\.txt\?"):
        data.open(tmp_path / "note.txt")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.xyz", "extension .xyz is not known"),
        ("a.pdf", "save its text as .txt"),
        ("a.xlsx", "save the sheet as .csv"),
        ("a.zip", "unpack it"),
        ("a.npy", "numpy.savez"),
    ],
)
def test_unknown_files(tmp_path, name, says):
    path = tmp_path / name
    path.write_bytes(b"something")
    with pytest.raises(DataError) as caught:
        data.open(path)
    assert says in str(caught.value)


def test_folders_without_data(tmp_path):
    with pytest.raises(DataError, match="is an empty folder"):
        data.open(tmp_path)
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"folder of tables; give one file, such as .*a\.csv"):
        data.open(tmp_path)
    (tmp_path / "a.csv").unlink()
    (tmp_path / "a.bin").write_bytes(b"\0")
    with pytest.raises(DataError, match="holds no text files"):
        data.open(tmp_path)


@pytest.mark.parametrize(
    ("spec", "option"), [("digits", "vocab"), ("macro", "length"), ("python-source", "forecast"), ("wine", "forecast")]
)
def test_options_that_do_not_apply(spec, option):
    with pytest.raises(DataError, match=f"{option}=400 does not apply, leave it out"):
        data.open(spec, **{option: 400})


def test_a_path_beside_a_bundled_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("text " * 200)
    bundled = data.open("digits")
    assert bundled.kind == "images" and any("write ./digits" in n for n in bundled.notes)
    assert data.open("./digits", length=16).kind == "text"


def test_options_are_kept_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text " * 200)
    source = data.open("a.txt", length=16, seed=3)
    assert source.options == {"spec": str(tmp_path / "a.txt"), "length": 16, "seed": 3, "cache": None}
    monkeypatch.chdir("/")
    assert data.open(**source.options).fingerprint == source.fingerprint


def test_changed_files_are_read_again(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one " * 200)
    first = data.open(path, length=16)
    path.write_text("two " * 300)
    second = data.open(path, length=16)
    assert second.fingerprint != first.fingerprint and second.decode(second.batch("train", 0, 1).inputs[0]).count("two")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "a.txt").write_text("one " * 200)
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(DataError, match="set FORMWRIGHT_CACHE"):
        data.open(tmp_path / "a.txt", cache=tmp_path / "locked")


def test_a_cache_that_is_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("one " * 200)
    with pytest.raises(DataError, match="set FORMWRIGHT_CACHE"):
        data.open(tmp_path / "a.txt", cache=tmp_path / "a.txt" / "below")


def test_an_entry_made_by_another_process_meanwhile_is_kept(tmp_path):
    def build(work):
        (work / "ours").write_text("x")
        (tmp_path / "name").mkdir()
        (tmp_path / "name" / "theirs").write_text("x")

    assert [p.name for p in entry(tmp_path, "name", build).iterdir()] == ["theirs"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".name")] == []


def test_a_failed_entry_leaves_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good text " * 100 + b"\xff" * 10)
    with pytest.raises(DataError, match="UTF-8"):
        data.open(path, vocab=300, cache=tmp_path / "c", length=8)
    assert [p.name[:4] for p in (tmp_path / "c").iterdir()] == ["text"]


@pytest.mark.parametrize("count", [3, 4, 10, 11, 101, 1000])
@pytest.mark.parametrize("classes", [None, 2, 7])
def test_shuffled_splits(count, classes):
    labels = None if classes is None else np.arange(count) % classes
    parts = shuffled(count, 0, labels)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(count))
    assert all(len(p) for p in parts.values())
    assert all((parts[s] == shuffled(count, 0, labels)[s]).all() for s in parts)
    if count >= 100:
        assert abs(len(parts["train"]) - 0.8 * count) <= 1 and abs(len(parts["test"]) - 0.1 * count) <= 1
        assert (parts["train"] != shuffled(count, 1, labels)["train"][: len(parts["train"])]).any()
        if labels is not None:
            for part in parts.values():
                number = np.bincount(labels[part], minlength=classes)
                assert number.max() - number.min() <= 2


def test_scales_go_back():
    values = np.random.default_rng(0).normal(50, 9, (40, 3))
    values[:, 1] = 7.0
    scale = Scale.fit(values)
    assert np.allclose(scale.back(scale.forward(values)), values, atol=1e-4) and scale.deviation[1] == 1


def test_misuse_of_batches():
    source = data.open("digits")
    for split, step, size in (("valid", 0, 4), ("train", -1, 4), ("train", 0, 0)):
        with pytest.raises(ValueError, match=r"splits|size"):
            source.batch(split, step, size)
    report = source.report({"loss": (3.0, 2), "accuracy": (0.0, 0)}, "test")
    assert report["loss"] == 1.5 and np.isnan(report["accuracy"])


def test_every_bundled_name_has_a_line():
    names = data.bundled_names()
    assert {"python-source", "digits", "macro", "mqar", "copying", "induction"} <= set(names)
    assert all(len(line) > 10 for line in names.values())
