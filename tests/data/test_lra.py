"""Long Range Arena's public files: files of the same shape, written here, are read as they were meant."""

import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image

from formwright import build, data
from formwright.data import DataError
from formwright.data.bundled import python_files


def every(source, split):
    batches = list(source.evaluation(split, 64))
    return torch.cat([b.inputs for b in batches]).tolist(), torch.cat([b.targets for b in batches]).tolist()


def trains(source):
    model = build("attention(position=rope) + swiglu", data=source, dim=16)
    batch = source.batch("train", 0, 4)
    loss = model.loss(batch)
    loss.backward()
    assert torch.isfinite(loss)


def write_listops(folder, expressions):
    folder.mkdir(parents=True)
    for part, rows in expressions.items():
        lines = ["Source\tTarget"] + [f"{source}\t{value}" for source, value in rows]
        (folder / f"basic_{part}.tsv").write_text("\r\n".join(lines) + "\r\n")


def test_listops(tmp_path):
    one, two = ("( ( ( [MAX 2 ) 9 ) ] )", 9), ("( ( ( ( [SM 3 ) 4 ) ( ( ( [MIN 1 ) 5 ) ] ) ) ] )", 8)
    write_listops(tmp_path / "listops-1000", {"train": [one, two] * 5, "val": [two] * 3, "test": [one] * 4})
    source = data.open(f"lra_listops(folder={str(tmp_path)!r}, length=10)")
    assert source.counts == {"train": 10, "validation": 3, "test": 4}
    x, y = every(source, "train")
    assert x[0] == [12, 3, 10, 15, 0, 0, 0, 0, 0, 0] and y[0] == 9
    assert x[1] == [14, 4, 5, 11, 2, 6, 15, 15, 0, 0] and y[1] == 8
    layout = source.batch("train", 0, 10).layout
    assert sorted(layout.lengths.tolist()) == [4] * 5 + [8] * 5
    ours = data.open("listops(shortest=2, longest=12, depth=3, arguments=3, examples=100, tests=10)")
    assert ours.facts["vocab"] == source.facts["vocab"]
    assert "cut there" in data.open(f"lra_listops(folder={str(tmp_path)!r}, length=5)").notes[0]
    trains(source)
    (tmp_path / "listops-1000" / "basic_val.tsv").write_text("Source\tTarget\n[MAXI 2 ]\t2\n")
    with pytest.raises(DataError, match=r"basic_val\.tsv, line 2"):
        data.open(f"lra_listops(folder={str(tmp_path)!r})")


def write_reviews(folder):
    texts = {}
    for split, number in (("train", 20), ("test", 7)):
        for label in ("pos", "neg"):
            place = folder / split / label
            place.mkdir(parents=True)
            for k in range(number):
                word = "good" if label == "pos" else "bad"
                text = f"{split} {word} film número {k}"
                (place / f"{k}_{7 if label == 'pos' else 2}.txt").write_text(text, encoding="utf-8")
                texts[text.encode()] = int(label == "pos")
    return texts


def test_reviews_keep_the_test_part_for_the_test(tmp_path):
    texts = write_reviews(tmp_path / "aclImdb")
    source = data.open(f"lra_text(folder={str(tmp_path)!r}, length=40)")
    assert source.counts == {"train": 36, "validation": 4, "test": 14}
    seen = []
    for split in source.counts:
        x, y = every(source, split)
        for row, label in zip(x, y, strict=True):
            text = bytes(t - 1 for t in row if t)
            assert texts[text] == label
            assert text.startswith(b"test") == (split == "test")
            seen.append(text)
        assert sum(y) == len(y) // 2
    assert sorted(seen) == sorted(texts)
    again = data.open(f"lra_text(folder={str(tmp_path)!r}, length=40)", seed=5)
    assert every(again, "validation") == every(source, "validation")
    assert source.names == ["negative", "positive"] and source.baselines["a logistic regression"] > 0.9
    trains(source)


def test_pairs_stand_in_one_sequence(tmp_path):
    for part, number in (("train", 6), ("eval", 3), ("test", 4)):
        rows = [f'{float(k % 2)}\tP{k}\tQ{k}\tpaper {k} of {part}\tanother "quoted" {k}' for k in range(number)]
        (tmp_path / f"new_aan_pairs.{part}.tsv").write_text("\n".join(rows) + "\n")
    source = data.open(f"lra_retrieval(folder={str(tmp_path)!r}, length=14)")
    assert source.counts == {"train": 6, "validation": 3, "test": 4} and source.shape == (29,)
    x, y = every(source, "test")
    for k, (row, label) in enumerate(zip(x, y, strict=True)):
        middle = row.index(257)
        assert bytes(t - 1 for t in row[:middle]) == f"paper {k} of test".encode()[:14]
        assert bytes(t - 1 for t in row[middle + 1 :] if t) == f'another "quoted" {k}'.encode()[:14]
        assert label == k % 2
    trains(source)
    (tmp_path / "new_aan_pairs.eval.tsv").write_text("1\ta\tb\n")
    with pytest.raises(DataError, match="line 1"):
        data.open(f"lra_retrieval(folder={str(tmp_path)!r})")


def cifar(rng, number=12):
    return rng.integers(0, 256, size=(number, 3072), dtype=np.uint8), np.arange(number) % 10


def grey(pixels):
    return [int(0.2989 * r + 0.5870 * g + 0.1140 * b) for r, g, b in pixels.reshape(3, 1024).T.astype(float)]


@pytest.mark.parametrize("form", ["binary", "python"])
def test_cifar_in_either_version(tmp_path, form):
    rng, kept = np.random.default_rng(0), {}
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    for name in names:
        pixels, labels = cifar(rng)
        kept[name] = pixels, labels
        if form == "binary":
            rows = np.concatenate([labels[:, None].astype(np.uint8), pixels], 1)
            (tmp_path / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            held = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"one", b"filenames": [b"a.png"] * 12}
            (tmp_path / name).write_bytes(pickle.dumps(held, protocol=2))
    source = data.open(f"lra_image(folder={str(tmp_path)!r})")
    assert source.counts["train"] + source.counts["validation"] == 60 and source.counts["test"] == 12
    x, y = every(source, "test")
    assert y == kept["test_batch"][1].tolist()
    assert x[3] == grey(kept["test_batch"][0][3])
    assert source.facts == {"vocab": 256, "length": 1024, "classes": 10}
    trains(source)


class Harm:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_pickle_runs_no_code(tmp_path, capsys):
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        (tmp_path / name).write_bytes(pickle.dumps({b"data": Harm(), b"labels": []}))
    with pytest.raises(DataError, match="asks for"):
        data.open(f"lra_image(folder={str(tmp_path)!r})")
    assert "this must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("form", ["text", "array"])
def test_pathfinder_files(tmp_path, form):
    rng, place = np.random.default_rng(0), tmp_path / "pathfinder32" / "curv_contour_length_14"
    (place / "metadata").mkdir(parents=True)
    pictures = {}
    for folder in (0, 1):
        (place / "imgs" / str(folder)).mkdir(parents=True)
        rows = []
        for k in range(15):
            picture = rng.integers(0, 256, size=(32, 32), dtype=np.uint8)
            Image.fromarray(picture).save(place / "imgs" / str(folder) / f"sample_{k}.png")
            rows.append([f"imgs/{folder}", f"sample_{k}.png", str(k), str(k % 2), "1.0", "14"])
            pictures[picture.tobytes()] = k % 2
        rows.append([f"imgs/{folder}", "sample_99.png", "99", "1", "1.0", "14"])
        (place / "imgs" / str(folder) / "sample_99.png").write_bytes(b"")
        table = place / "metadata" / f"{folder}.npy"
        if form == "text":
            table.write_text("".join(" ".join(row) + "\n" for row in rows))
        else:
            np.save(table, np.array(rows))
    source = data.open(f"lra_pathfinder(folder={str(tmp_path)!r})")
    assert sum(source.counts.values()) == 30 and source.counts["test"] == 3
    assert source.notes == ["Left out 2 pictures missing or empty."]
    for split in source.counts:
        for row, label in zip(*every(source, split), strict=True):
            assert pictures.pop(np.array(row, dtype=np.uint8).tobytes()) == label
    assert not pictures
    trains(source)


@pytest.mark.parametrize("name", ["lra_listops", "lra_text", "lra_retrieval", "lra_image", "lra_pathfinder"])
def test_missing_files_are_named(tmp_path, name):
    with pytest.raises(DataError, match=re.escape(f"write {name}(folder='...')")):
        data.open(name)
    with pytest.raises(DataError, match="there is no folder"):
        data.open(f"{name}(folder={str(tmp_path / 'none')!r})")
    with pytest.raises(DataError, match=r"does not hold .*(github|stanford|toronto)"):
        data.open(f"{name}(folder={str(tmp_path)!r})")


def test_source_topic():
    source = data.open("source_topic(length=128, classes=3)")
    assert len(source.names) == 3 and source.facts["vocab"] == 257
    rows = {split: every(source, split) for split in source.counts}
    for _, y in rows.values():
        assert len(set(np.bincount(y).tolist())) == 1
    x, y = rows["test"]
    pieces = {split: {bytes(t - 1 for t in row) for row in found[0]} for split, found in rows.items()}
    assert not pieces["train"] & (pieces["validation"] | pieces["test"])
    top, files = python_files()
    for row, label in list(zip(x, y, strict=True))[::20]:
        package = [f.read_bytes() for f in files if f.relative_to(top).parts[0] == source.names[label]]
        assert any(bytes(t - 1 for t in row) in text for text in package)
    assert source.baselines["a logistic regression"] > source.baselines["guessing"]
    assert every(data.open("source_topic(length=128, classes=3)"), "test") == rows["test"]
    trains(source)
    with pytest.raises(DataError, match="fewer classes"):
        data.open("source_topic(length=100000)")


def test_source_pairs():
    source = data.open("source_pairs(length=64, examples=400, tests=100)")
    assert source.counts == {"train": 400, "validation": 100, "test": 100} and source.shape == (129,)
    texts = [file.read_bytes() for file in python_files()[1]]
    homes, x_y = {}, {split: every(source, split) for split in source.counts}
    for split, (x, y) in x_y.items():
        assert sum(y) == len(y) // 2
        for row, label in list(zip(x, y, strict=True))[:20]:
            assert row[64] == 257
            first, second = bytes(t - 1 for t in row[:64]), bytes(t - 1 for t in row[65:])
            holding = [{k for k, text in enumerate(texts) if piece in text} for piece in (first, second)]
            assert holding[0] and holding[1]
            if label:
                assert holding[0] & holding[1]
            elif len(holding[0]) == len(holding[1]) == 1:
                assert holding[0] != holding[1]
            homes.setdefault(split, set()).update(*(h for h in holding if len(h) == 1))
    assert not homes["train"] & homes["test"] and not homes["train"] & homes["validation"]
    trains(source)


def test_digits_sequence():
    from sklearn.datasets import load_digits

    source = data.open("digits_sequence")
    assert sum(source.counts.values()) == 1797 and source.facts == {"vocab": 17, "length": 64, "classes": 10}
    known = {
        tuple(row): k for row, k in zip(load_digits().data.astype(int).tolist(), load_digits().target, strict=True)
    }
    for row, label in zip(*every(source, "test"), strict=True):
        assert known[tuple(row)] == label
    assert source.baselines["a logistic regression"] > 0.9
    trains(source)
