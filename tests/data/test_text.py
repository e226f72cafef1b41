import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from formwright import data
from formwright.data import DataError
from formwright.data.text import cuts

WORDS = "the cat sat on the mat and the dog, grün vor Neid, ate naïve “fish”\n"


def book(tmp_path, lines=400, name="book.txt"):
    path = tmp_path / name
    path.write_text("".join(f"{i} {WORDS}" for i in range(lines)), encoding="utf-8")
    return path


def scored(source, split, **options):
    """All scored targets of an evaluation, in order."""
    batches = list(source.evaluation(split, 3, **options))
    return torch.cat([b.targets[b.targets != -100] for b in batches])


def test_bytes_are_split_in_order_and_each_scored_once(tmp_path):
    path = book(tmp_path)
    raw = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    source = data.open(path, length=64)
    assert (source.kind, source.embed, source.head) == ("text", "tokens", "lm")
    assert source.facts == {"vocab": 256, "length": 64} and source.shape == (64,)
    a, b = source.sizes["train"], source.sizes["train"] + source.sizes["validation"]
    assert b + source.sizes["test"] == len(raw) and a == round(0.9 * len(raw))
    for split, part in {"validation": raw[a:b], "test": raw[b:]}.items():
        assert scored(source, split).tolist() == part[1:].tolist()
        assert sum(x.items for x in source.evaluation(split, 3)) == source.counts[split]


def test_targets_are_the_next_inputs_and_training_never_reads_other_parts(tmp_path):
    source = data.open(book(tmp_path), length=32)
    raw = (tmp_path / "book.txt").read_bytes()[: source.sizes["train"]]
    for step in range(5):
        batch = source.batch("train", step, 16)
        assert batch.inputs.dtype == batch.targets.dtype == torch.int64 and batch.inputs.shape == (16, 32)
        assert (batch.items, batch.tokens) == (16, 512)
        assert (batch.inputs[:, 1:] == batch.targets[:, :-1]).all()
        for row in batch.inputs:
            assert bytes(row.tolist()) in raw


def test_each_epoch_cuts_windows_of_its_own_and_covers_the_part(tmp_path):
    path = tmp_path / "noise.txt"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 20000, dtype=np.uint8).tobytes())
    source = data.open(path, length=32)
    raw, count = path.read_bytes()[: source.sizes["train"]], source.counts["train"]
    epochs = []
    for epoch in range(3):
        rows = [source.batch("train", epoch * count + i, 1).inputs[0] for i in range(count)]
        epochs.append({raw.index(bytes(row.tolist())) for row in rows})
        assert len(epochs[-1]) == count and max(epochs[-1]) > 0.95 * len(raw)
        assert len({start % 32 for start in epochs[-1]}) <= 2
    assert len(epochs[0] & epochs[1]) <= 1 and len(epochs[1] & epochs[2]) <= 1  # the last window may be moved back


def test_batches_are_a_pure_function(tmp_path):
    path = book(tmp_path)
    one, two = data.open(path, length=16), data.open(path, length=16)
    assert one.fingerprint == two.fingerprint
    two.batch("train", 3, 8)
    for step in (0, 7, 1000):
        assert (one.batch("train", step, 8, seed=2).inputs == two.batch("train", step, 8, seed=2).inputs).all()
    assert (one.batch("train", 0, 8, seed=2).inputs != one.batch("train", 0, 8, seed=3).inputs).any()
    big, small = one.batch("train", 1, 8), [one.batch("train", i, 4) for i in (2, 3)]
    assert (big.inputs == torch.cat([b.inputs for b in small])).all()


@pytest.mark.parametrize("vocab", [None, 400])
def test_another_process_reopens_the_same_source(tmp_path, vocab):
    source = data.open(book(tmp_path), length=32, vocab=vocab, seed=1)
    script = (
        "import sys, hashlib; from formwright import data\n"
        f"s = data.open(**{source.options!r}); b = s.batch('train', 5, 4)\n"
        "print(s.fingerprint, hashlib.sha256(b.inputs.numpy().tobytes()).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    import hashlib

    mine = hashlib.sha256(source.batch("train", 5, 4).inputs.numpy().tobytes()).hexdigest()
    assert out == [source.fingerprint, mine]


def test_bits_per_byte(tmp_path):
    path = book(tmp_path)
    plain, pairs = data.open(path), data.open(path, vocab=400)
    assert plain.report({"loss": (math.log(2) * 30, 10)}, "test")["bits_per_byte"] == pytest.approx(3.0)
    per_byte = pairs.sizes["test"] / plain.sizes["test"]
    assert per_byte < 0.6
    report = pairs.report({"loss": (math.log(2) * 30, 10), "accuracy": (4, 10)}, "test")
    assert report["bits_per_byte"] == pytest.approx(3.0 * per_byte, rel=0.02)
    assert report["accuracy"] == 0.4 and pairs.metric in report


def test_byte_pairs_cover_the_text_and_decode_exactly(tmp_path):
    path = book(tmp_path)
    source = data.open(path, vocab=400, length=32)
    raw = path.read_text(encoding="utf-8")
    assert source.facts["vocab"] == 400
    parts = []
    for split in ("train", "validation", "test"):
        tokens = scored(source, split)
        first = source.take(split, np.array([0]), np.zeros(1, dtype=np.uint64))[0][0, :1]
        dropped = (source.sizes[split] - 1) % 32 if split == "train" else 0  # training windows are whole
        assert len(tokens) == source.sizes[split] - 1 - dropped and int(tokens.max()) < 400
        parts.append(source.decode(torch.cat([first, tokens]).tolist()))
    assert raw.startswith(parts[0]) and raw.endswith(parts[1] + parts[2])
    for text in ("cat", WORDS, "日本 <|end|> \0 \x7f", ""):
        assert source.decode(source.encode(text)) == text
        assert 0 not in source.encode(text)
        assert data.open(path).decode(data.open(path).encode(text)) == text


def test_byte_pairs_are_learned_from_the_training_part_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abcd efgh " * 900 + "zyxw zyxw " * 100, encoding="utf-8")
    source = data.open(path, vocab=300)
    assert len(source.encode(" abcd")) < 5 and len(source.encode("zyxw")) == 4
    assert any("fewer than vocab" in note for note in source.notes)


def test_byte_pairs_are_the_same_every_time(tmp_path):
    path = book(tmp_path)
    one = data.open(path, vocab=350, cache=tmp_path / "one")
    two = data.open(path, vocab=350, cache=tmp_path / "two")
    assert one.encode(WORDS) == two.encode(WORDS)
    assert (one.batch("train", 0, 8).inputs == two.batch("train", 0, 8).inputs).all()


def test_long_pieces_join_exactly(tmp_path, monkeypatch):
    from formwright.data import bpe

    monkeypatch.setattr(bpe, "_PIECE", 5000)
    path = tmp_path / "long.txt"
    path.write_text("日本語テキスト" * 3000, encoding="utf-8")
    source = data.open(path, vocab=300, length=8)
    tokens = [scored(source, s).tolist() for s in ("train", "validation", "test")]
    text = "".join(source.decode(t) for t in tokens)
    assert len(text) >= 0.99 * 21000 and set(text) <= set("日本語テキスト�")


def test_folders_in_order_with_notes(tmp_path):
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "b.txt").write_text("b" * 500)
    (folder / "a.md").write_text("a" * 500)
    (folder / "sub" / "c.py").write_text("c" * 500)
    (folder / "sub" / "LICENSE").write_text("d" * 500)
    (folder / ".git" / "config.txt").write_text("hidden")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "bad.txt").write_bytes(b"x\0y" * 100)
    (folder / "tool.bin").write_bytes(b"123")
    (folder / "empty.txt").write_text("")
    source = data.open(folder, length=16)
    notes = " ".join(source.notes)
    assert "Read 4 files, 2,003 bytes" in notes and "binary: bad.txt" in notes and "tool.bin" in notes
    assert "2 hidden files" in notes and "1 empty file" in notes
    first = source.take("train", np.array([0]), np.zeros(1, dtype=np.uint64))[0]
    assert source.decode(first[0]) == "a" * 16
    whole = source.decode(torch.cat([b.inputs.flatten() for b in source.evaluation("train", 10)]))
    assert whole[499:502] == "a\0b" and "hidden" not in whole
    paired = data.open(folder, length=16, vocab=300)
    assert paired.decode([5, 0, 6]).count("\0") == 1
    assert sum(int((b.inputs == 0).sum()) for b in paired.evaluation("train", 10)) >= 2


def test_cuts_keep_documents_whole_where_they_can():
    assert cuts(1000, [100, 890, 955, 1000]) == [890, 955]
    assert cuts(1000, [500, 1000]) == [900, 950]
    assert cuts(1000, [1000]) == [900, 950]
    assert cuts(1000, [905, 935, 1000]) == [905, 935]
    low, high = cuts(1000, [912, 1000])
    assert low == 912 and high == 950


def test_limited_evaluation_is_spread_over_the_split(tmp_path):
    source = data.open(book(tmp_path), length=8)
    rows = torch.cat([b.inputs for b in source.evaluation("train", 4, limit=5)])
    every = torch.cat([b.inputs for b in source.evaluation("train", 64)])
    count = source.counts["train"]
    assert (rows == every[[i * count // 5 for i in range(5)]]).all()
    assert len(list(source.evaluation("test", 4, limit=10**9))) == -(-source.counts["test"] // 4)


def test_bytes_take_anything(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("Müller sagt: grün\n".encode("latin-1") * 100)
    source = data.open(path, length=16)
    assert "M�ller" in source.decode(list(path.read_bytes()[:20]))
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8 at byte 1; leave vocab out"):
        data.open(path, vocab=300)


def test_the_place_of_bad_bytes_counts_from_its_own_file(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("good " * 100)
    (folder / "b.txt").write_bytes(b"good " * 10 + b"\xff" + b"good " * 100)
    with pytest.raises(DataError, match=r"b\.txt is not UTF-8 at byte 50;"):
        data.open(folder, vocab=300)


def test_python_source():
    source = data.open("python-source", length=128)
    assert sum(source.sizes.values()) > 3_000_000 and source.name == "python-source"
    text = source.decode(torch.cat([b.inputs.flatten() for b in source.evaluation("train", 64, limit=200)]))
    assert "def " in text and "import " in text
    again = data.open(**source.options)
    assert again.fingerprint == source.fingerprint


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (b"", {}, "is empty"),
        (b"short", {}, "only 5 bytes"),
        (b"a" * 200, {}, "less than one window of length=256"),
        (b"a" * 2000, {"forecast": 24}, "forecast=24 does not apply"),
        (b"a" * 2000, {"target": "x"}, "target='x' does not apply"),
        (b"a" * 2000, {"image_size": 24}, "its options are length, vocab"),
        (b"a" * 2000, {"vocab": 200}, "at least 300"),
        (b"a" * 2000, {"length": 1}, "at least 2"),
        (b"a" * 2000, {"length": 2.5}, "whole number"),
    ],
)
def test_mistakes_are_named(tmp_path, content, options, says):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        data.open(path, **options)
    assert says in str(caught.value) and "\n" not in str(caught.value)
