"""The labels of recall tasks, found again by brute force from the inputs alone."""

import numpy as np
import pytest
import torch

import formwright
from formwright import data
from formwright.contract import Layout, Unsupported
from formwright.data import DataError
from formwright.data.tasks import TASKS
from formwright.data.tasks.occurrences import first_seen, stands_once
from formwright.data.tasks.scoring import both, grouped, macro, macro_share, mean_of_rows, per_class, whole_rows
from formwright.parts import get
from formwright.train.evaluation import evaluate


def items(spec, split="train", count=64, seed=0):
    batch = data.open(spec, seed=seed).batch(split, 0, count)
    return batch.inputs.numpy(), batch.targets.numpy()


def rows(spec, split="train", count=64):
    return zip(*(part.tolist() for part in items(spec, split, count)), strict=True)


def test_first_places_and_lone_numbers():
    ids = np.random.default_rng(0).integers(0, 6, size=(50, 9))
    for row, first, alone in zip(ids.tolist(), first_seen(ids), stands_once(ids), strict=True):
        assert first.tolist() == [row.index(number) for number in row]
        assert alone.tolist() == [row.count(number) == 1 for number in row]


# --- scores ---------------------------------------------------------------------------------------------------------


def batch_of_logits():
    torch.manual_seed(0)
    targets = torch.randint(0, 4, (7, 5))
    targets[torch.rand(7, 5) < 0.3] = -100
    targets[0], targets[3] = -100, 2
    logits = torch.randn(7, 5, 4)
    logits[3, :, 2] += 9
    return logits, torch.zeros(7, 5, dtype=torch.long), targets


def test_scores_are_those_counted_by_hand():
    logits, inputs, targets = batch_of_logits()
    said, wanted = logits.argmax(-1).tolist(), targets.tolist()
    pairs = [(s, w) for a, b in zip(said, wanted, strict=True) for s, w in zip(a, b, strict=True) if w >= 0]
    classes = [[s == w for s, w in pairs if w == c] for c in range(4)]
    found = per_class(logits, inputs, targets)
    assert found == {f"_class {c}": (sum(hits), len(hits)) for c, hits in enumerate(classes) if hits}
    mean = np.mean([np.mean(hits) for hits in classes if hits])
    assert macro({name: hits / n for name, (hits, n) in found.items()})["macro_accuracy"] == pytest.approx(mean)
    assert macro_share(logits.argmax(-1).numpy(), targets.numpy()) == pytest.approx(mean)
    asked = [[(s, w) for s, w in zip(a, b, strict=True) if w >= 0] for a, b in zip(said, wanted, strict=True)]
    asked = [row for row in asked if row]
    assert len(asked) == 6
    strings = sum(all(s == w for s, w in row) for row in asked)
    assert strings >= 1 and whole_rows(logits, inputs, targets) == {"string_accuracy": (strings, 6)}
    share = sum(np.mean([s == w for s, w in row]) for row in asked)
    total, number = mean_of_rows(logits, inputs, targets)["accuracy"]
    assert (total, number) == (pytest.approx(share), 6)


def test_groups_share_out_the_answers():
    logits, inputs, targets = batch_of_logits()
    by_place = grouped("at {}", lambda inputs, targets: torch.arange(5))(logits, inputs, targets)
    for place in range(5):
        asked = targets[:, place] >= 0
        hits = (logits.argmax(-1)[:, place] == targets[:, place])[asked]
        assert by_place[f"at {place}"] == (int(hits.sum()), int(asked.sum()))
    by_row = grouped("row {}", lambda inputs, targets: torch.arange(7), rows=True)(logits, inputs, targets)
    assert by_row["row 3"] == (1, 1) and "row 0" not in by_row
    together = both(whole_rows, per_class)(logits, inputs, targets)
    assert together == {**whole_rows(logits, inputs, targets), **per_class(logits, inputs, targets)}


def test_a_run_reports_what_a_task_adds_and_hides_what_it_follows_from():
    source = data.open("mad_recall(length=16, examples=64, tests=64)")
    model = formwright.build("attention", data=source, dim=16)
    scores = evaluate(model, source, "test", 16)
    assert set(scores) == {"loss", "accuracy", "macro_accuracy"}
    batch = next(source.evaluation("test", 64))
    guesses = model(batch.inputs).argmax(-1).numpy()
    assert scores["macro_accuracy"] == pytest.approx(macro_share(guesses, batch.targets.numpy()))


# --- MQAR of several sizes --------------------------------------------------------------------------------------------

MIX = "mqar_mix(vocab=128, seen=((16, 2, 3), (32, 4, 1)), tested=((16, 4), (64, 16)), tests=400)"


@pytest.mark.parametrize(("split", "sizes"), [("train", {2: 16, 4: 32}), ("test", {4: 16, 16: 64})])
def test_mqar_mix_labels(split, sizes):
    met = set()
    for x, y in rows(MIX, split, 200):
        asked = [t for t, wanted in enumerate(y) if wanted != -100]
        pairs = len(asked)
        table = dict(zip(x[: 2 * pairs : 2], x[1 : 2 * pairs : 2], strict=True))
        assert len(table) == pairs and sorted(x[t] for t in asked) == sorted(table)
        assert [table[x[t]] for t in asked] == [y[t] for t in asked]
        assert max(asked) < sizes[pairs] and set(x[sizes[pairs] :]) <= {0}
        met.add(pairs)
    assert met == set(sizes)


def test_mqar_mix_has_its_shares_and_cuts_batches_of_short_rows():
    _, targets = TASKS["mqar_mix"]().make(np.random.default_rng(0), 1000)
    number, count = np.unique((targets >= 0).sum(1), return_counts=True)
    assert dict(zip(number.tolist(), count.tolist(), strict=True)) == {4: 560, 8: 110, 16: 110, 32: 110, 64: 110}
    widths = [batch.inputs.shape for batch in data.open(MIX).evaluation("test", 25)]
    assert sum(rows for rows, _ in widths) == 400 and min(w for _, w in widths) <= 16 < max(w for _, w in widths) <= 64


def test_mqar_mix_tells_accuracy_by_pairs_and_weighs_rows_alike():
    source = data.open(MIX)
    model = formwright.build("attention", data=source, dim=16)
    scores = evaluate(model, source, "test", 50)
    assert set(scores) == {"loss", "accuracy", "accuracy at 4 pairs", "accuracy at 16 pairs"}
    mean = (scores["accuracy at 4 pairs"] + scores["accuracy at 16 pairs"]) / 2
    assert scores["accuracy"] == pytest.approx(mean)
    assert source.baselines["guessing"] == pytest.approx((1 / 4 + 1 / 16) / 2)


# --- MAD --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "half", "noise"),
    [
        ("mad_recall()", 8, 0),
        ("mad_recall(length=6, vocab=4)", 2, 0),
        ("mad_noisy_recall()", 8, 0.2),
        ("mad_noisy_recall(length=32, vocab=20, noise_tokens=4, noise=0.6)", 8, 0.6),
    ],
)
def test_mad_recall_labels(spec, half, noise):
    noisy = total = 0
    for split in ("train", "validation", "test"):
        for x, y in rows(spec, split, 200):
            values, wanted = {}, []
            row = [*x, y[-1]]
            for key, value in zip(row[::2], row[1::2], strict=True):
                if key >= 2 * half:
                    assert value >= 2 * half
                    wanted += [-100, -100]
                    noisy += 1
                else:
                    assert key < half <= value < 2 * half and values.get(key, value) == value
                    wanted += [-100, value if key in values else -100]
                    values[key] = value
                total += 1
            assert wanted[-1] == row[-1]
            assert y == (row[1:] if split == "train" else wanted[1:])
    assert abs(noisy / total - noise) < 0.1


def test_mad_recall_asks_last_for_any_key_shown_alike():
    inputs, _ = TASKS["mad_recall"](length=10, vocab=6).make(np.random.default_rng(0), 30000)
    keys = inputs[:, ::2]
    shown = keys[(np.sort(keys[:, :4], axis=1) == [0, 0, 0, 2]).all(1)]
    assert len(shown) > 500 and abs((shown[:, -1] == 2).mean() - 0.5) < 0.07


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("vocab", [16, 33])
def test_mad_fuzzy_recall_labels(split, vocab):
    low, high, sizes = (vocab - 1) // 2, vocab - 1, set()
    for x, y in rows(f"mad_fuzzy_recall(vocab={vocab})", split, 200):
        row = [*x, y[-1]]
        start = next(t for t, token in enumerate(row) if token != vocab - 1)
        assert start < 20
        table, wanted, t, last = {}, [-100] * start, start, None
        while t < len(row):
            a = t
            while row[t] < low:
                t += 1
            b = t
            while t < len(row) and low <= row[t] < high and t - b < 3:
                t += 1
            key, value = tuple(row[a:b]), tuple(row[b:t])
            assert 1 <= len(key) <= 3 and 1 <= len(value) <= 3
            assert len(set(key)) == len(key) and len(set(value)) == len(value)
            assert table.get(key, value) == value
            wanted += [-100] * len(key) + (list(value) if key in table else [-100] * len(value))
            last, sizes = key in table, sizes | {(len(key), len(value))}
            table[key] = value
        assert last
        assert y == (row[1:] if split == "train" else wanted[1:])
    assert sizes == {(k, v) for k in ((1, 2, 3) if split == "train" else (3,)) for v in (1, 2, 3)}


def test_mad_memorization_has_one_mapping_for_all_splits():
    table = {}
    for split in ("train", "validation", "test"):
        for x, y in rows("mad_memorization()", split, 256):
            assert set(x[1::2]) == {255} and set(y[::2]) == {-100} and max(x[::2]) < 127
            for key, value in zip(x[::2], y[1::2], strict=True):
                assert 127 <= value < 255 and table.setdefault(key, value) == value
    assert len(table) == len(set(table.values())) == 127
    other = {}
    for x, y in rows("mad_memorization(mapping=1)"):
        other.update(zip(x[::2], y[1::2], strict=True))
    assert sum(table[key] == value for key, value in other.items()) < 10
    assert [v for _, v in sorted(table.items())] != sorted(table.values())


def test_mad_compression_wants_its_row_again():
    inputs, targets = items("mad_compression()", "test", 500)
    assert (inputs == targets).all() and (inputs[:, -1] == 15).all()
    assert np.abs(np.bincount(inputs[:, :-1].ravel(), minlength=15) / 15500 - 1 / 15).max() < 0.01
    assert inputs[:, :-1].max() == 14


def test_reconstruct_reads_the_last_valid_vector_alone():
    head, x = get("reconstruct")(8, vocab=5), torch.randn(3, 6, 8)
    out = head(x, Layout((6,)))
    assert out.shape == (3, 6, 5) and head.causal
    changed = x.clone()
    changed[:, :-1] = 0
    assert (head(changed, Layout((6,))) == out).all()
    padded = Layout((6,), lengths=torch.tensor([6, 4, 1]))
    changed = torch.zeros_like(x)
    for row, n in enumerate((6, 4, 1)):
        changed[row, n - 1] = x[row, n - 1]
    assert (head(changed, padded) == head(x, padded)).all()
    assert (out[:, 0] - out[:, 5]).abs().max() > 1e-3
    with pytest.raises(Unsupported, match="packed"):
        head(x[:1], Layout((6,), offsets=torch.tensor([0, 2, 6])))


def test_mad_selective_copying_is_copying():
    x, y = items("mad_selective_copying()", "test")
    task = TASKS["mad_selective_copying"]()
    assert (task.metric, task.examples, task.tests) == ("macro_accuracy", 12_800, 1_280)
    for row, wanted in zip(x.tolist(), y.tolist(), strict=True):
        assert row.count(14) == 223 + 16 and row[239] == 15 and row[238] < 14 and row[240:] == [14] * 16
        assert wanted[240:] == [t for t in row[:239] if t < 14] and set(wanted[:240]) == {-100}


@pytest.mark.parametrize("name", [n for n in TASKS if n.startswith("mad_")])
def test_mad_is_scored_by_class_and_trains(name):
    source = data.open(f"{name}()")
    assert source.metric == "macro_accuracy" and 0 < source.baselines["guessing"] <= 0.125
    model = formwright.build("2*(attention + swiglu)", data=source, dim=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(6):
        loss = model.loss(source.batch("train", step, 16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_values_commonest_so_far_are_those_counted():
    source = data.open("mad_recall(length=32)")
    guesses, wanted = [], []
    for batch in source.evaluation("test", 1000, 1280):
        for x, y in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            for t, value in enumerate(y):
                if value >= 0:
                    guesses.append(max(range(8, 16), key=lambda v, seen=x[: t + 1]: seen.count(v)))
                    wanted.append(value)
        break
    hits = np.array(guesses) == np.array(wanted)
    mean = np.mean([hits[np.array(wanted) == v].mean() for v in range(8, 16)])
    assert source.baselines["the row's commonest value so far"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mqar_mix(seen=(64, 4, 1))", "seen is sizes"),
        ("mqar_mix(tested=((64, 4, 1),))", "tested is sizes"),
        ("mqar_mix(tested=((64, 32),))", "at least 128"),
        ("mqar_mix(tested=((64, 0),))", "each number of tested"),
        ("mqar_mix(tested=((64, 1.5),))", "each number of tested"),
        ("mad_recall(length=7)", "even"),
        ("mad_recall(length=2)", "at least 4"),
        ("mad_noisy_recall(noise=1)", "probability"),
        ("mad_noisy_recall(vocab=16)", "at least 20"),
        ("mad_fuzzy_recall(length=17)", "at least 18"),
        ("mad_fuzzy_recall(vocab=6)", "too few"),
        ("mad_memorization(length=3)", "even"),
        ("mad_compression(length=1)", "at least 2"),
    ],
)
def test_refusals(spec, words):
    with pytest.raises(DataError, match=words):
        data.open(spec)
