"""The labels of recall tasks, found again by brute force from the inputs alone."""

import re

import numpy as np
import pytest
import torch

import formwright
from formwright import data
from formwright.contract import Layout, Unsupported
from formwright.data import DataError
from formwright.data.tasks import TASKS
from formwright.data.tasks.needle import VOCABULARY
from formwright.data.tasks.occurrences import first_seen, stands_once
from formwright.data.tasks.scoring import both, grouped, macro, macro_share, mean_of_rows, per_class, whole_rows
from formwright.data.tasks.strings import joined, pack, piece
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


# --- strings ----------------------------------------------------------------------------------------------------------


def strings(spec, split, count=64):
    """Each row as text, padding left out, and its wanted places as a text of as many letters, "_" where none is."""
    for x, y in rows(spec, split, count):
        signs = [*"abcdefghijklmnopqrstuvwxyz$|.", ""]
        said = "".join(signs[token] for token in [*x, *(token for token in y[-1:] if token >= 0)])
        yield said, "".join("_" if wanted < 0 else signs[wanted] for wanted in y)[: len(said)]


@pytest.mark.parametrize(("split", "least", "most"), [("validation", 5, 20), ("test", 20, 100)])
def test_string_copy_wants_its_letters_again(split, least, most):
    sizes = set()
    for said, wanted in strings("string_copy()", split, 400):
        string, again = said.removeprefix("$").split("|")
        assert again.removesuffix(".") == string and said.startswith("$")
        assert wanted.rstrip("_") == "_" * (len(string) + 1) + string
        sizes.add(len(string))
    assert min(sizes) == least and max(sizes) >= most - 1 and max(sizes) <= most


@pytest.mark.parametrize("key", ["prefix", "suffix"])
@pytest.mark.parametrize("answer", [None, 3])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_ngram_lookup_wants_what_followed_once(key, answer, split):
    spec = f"ngram_lookup(ngram=2, key='{key}', answer={answer}, lengths_seen=(6, 20), lengths_tested=(20, 60))"
    places = []
    for said, wanted in strings(spec, split, 300):
        assert said[0] == "$"
        if key == "prefix":
            gram, string, tail = said[1:].split("|")
        else:
            string, tail = said[1:].split("|")
            gram, tail = tail[:2], tail[2:]
        assert sum(string.startswith(gram, i) for i in range(len(string))) == 1
        place = string.index(gram)
        follows = string[place + 2 :][:answer]
        assert len(gram) == 2 and follows and tail.removesuffix(".") == follows
        assert wanted.rstrip("_") == "_" * (len(said) - len(tail) - 1) + follows
        places.append(place / (len(string) - 2))
    assert min(places) < 0.1 and max(places) > 0.8


@pytest.mark.parametrize("spec", ["string_copy()", "ngram_lookup(ngram=2, packed=150)", "ngram_lookup(key='suffix')"])
def test_training_rows_are_packed_with_strings(spec):
    assert data.open(spec).shape == (149 if "150" in spec else 219,)
    for said, wanted in strings(spec, "train", 100):
        place = 0
        for string in said.split(".")[:-1]:
            assert string[0] == "$"
            answer = string[string.rindex("|") + 1 :]
            answer = answer[3 if "suffix" in spec else 0 :]
            a = place + len(string) - len(answer)
            assert wanted[a - 1 : a + len(answer)] == answer + "." and set(wanted[place : a - 1]) <= {"_"}
            place += len(string) + 1


def test_guessing_strings_is_the_chance_of_all_letters():
    source = data.open("ngram_lookup(letters=5, ngram=4, answer=2, lengths_seen=(8, 9), lengths_tested=(10, 12))")
    counts = [(y >= 0).sum() for y in items(source.options["spec"], "test", 1000)[1]]
    assert set(counts) == {2, 1} or set(counts) == {2}
    assert source.baselines["guessing"] == pytest.approx(np.mean([5.0**-n for n in counts]))


def test_pieces_are_joined_and_packed_without_gaps():
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 9, (6, 3)), rng.integers(1, 9, (6, 4))
    n, m = rng.integers(0, 4, 6), rng.integers(1, 5, 6)
    both_pieces = joined(piece(a, n), piece(b, m, wanted=True))
    whole = [[*a[i, : n[i]], *b[i, : m[i]]] for i in range(6)]
    for i in range(6):
        assert both_pieces.tokens[i, : both_pieces.sizes[i]].tolist() == whole[i]
        assert both_pieces.wanted[i].sum() == m[i] and both_pieces.wanted[i, n[i] : n[i] + m[i]].all()
    row = pack(both_pieces, 3, 8)
    for i in range(2):
        long = [token for string in whole[3 * i : 3 * i + 3] for token in string]
        assert row.tokens[i, : row.sizes[i]].tolist() == long[:8]
        fits = np.cumsum([len(s) for s in whole[3 * i : 3 * i + 3]]) <= 8
        assert row.wanted[i].sum() == (m[3 * i : 3 * i + 3] * fits).sum()


def test_phonebook_wants_the_number_of_the_name():
    for split, least, most in (("train", 4, 20), ("test", 20, 40)):
        spec, sizes = "phonebook(names=30)", set()
        for x, y in rows(spec, split, 150):
            asked = [t for t, wanted in enumerate(y) if wanted >= 0]
            row = x[: asked[0] + 1]
            book, line, shots = {}, 0, []
            while row[14 * line] >= 13:
                entry = row[14 * line : 14 * line + 14]
                assert 13 <= entry[0] < 43 <= entry[1] < 73 and entry[2] == 11 and entry[13] == 12
                assert 7 <= entry[3] <= 10 and all(1 <= d <= 10 for d in entry[3:13])
                assert tuple(entry[:2]) not in book
                book[tuple(entry[:2])] = entry[3:13]
                line += 1
            rest = row[14 * line + 1 :]
            for shot in (rest[:14], rest[14:28]):
                assert book[tuple(shot[:2])] == shot[3:13]
                shots.append(tuple(shot[:2]))
            assert rest[28] == 12 and rest[31:] == [11]
            name = tuple(rest[29:31])
            assert len({name, *shots}) == 3
            assert [y[t] for t in asked] == book[name] and asked == list(range(len(row) - 1, len(row) + 9))
            assert x[asked[0] + 1 : asked[-1] + 1] == book[name][:-1]
            sizes.add(line)
        assert min(sizes) == least and max(sizes) in (most, most - 1)
    first = data.open(spec).baselines["the first number of the book"]
    assert abs(first - np.mean([1 / n for n in range(20, 41)])) < 0.02


# --- needles ----------------------------------------------------------------------------------------------------------


def texts(spec, split, count=40):
    for x, y in rows(spec, split, count):
        wanted = [t for t in y if t >= 0]
        assert y[-len(wanted) :] == wanted
        yield " ".join(VOCABULARY[token] for token in [*x, y[-1]]), [VOCABULARY[token] for token in wanted]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "spec", ["needle(length_tested=400)", "needle(needles=4, digits=3)", "needle(haystack=needles)"]
)
def test_needles_hold_what_is_asked(spec, split):
    hay = ["the grass is green", "the sky is blue", "the sun is yellow", "here we go", "there and back again"]
    for text, wanted in texts(spec, split):
        *sentences, question = text.split(" . ")
        found, rest = {}, []
        for sentence in sentences:
            match = re.fullmatch(r"one of the special magic numbers for (\w+ \w+) is : ((\d ?)+)", sentence)
            if match:
                assert match[1] not in found and match[2][0] != "0"
                found[match[1]] = match[2].split()
            else:
                rest.append(sentence)
        assert rest == [hay[i % 5] for i in range(len(rest))]
        match = re.fullmatch(
            r"what is the special magic number for (\w+ \w+) mentioned in the provided text \? "
            r"the special magic number for (\w+ \w+) mentioned in the provided text is ((\d ?)+)",
            question,
        )
        assert match[1] == match[2] and match[3].split() == wanted == found[match[1]]
        if "haystack" in spec:
            assert not rest and len(found) > 10
        else:
            assert len(found) == (4 if "4" in spec.split("length")[0] else 1)


def test_the_passkey_is_told_twice_and_asked_for():
    for text, wanted in texts("passkey()", "test"):
        key = " ".join(wanted)
        assert text.count(f"the pass key is {key} . remember it . {key} is the pass key .") == 1
        assert text.endswith(f"what is the pass key ? the pass key is {key}") and len(wanted) == 5


@pytest.mark.parametrize("spec", ["needle(needles=3, depth=(0.4, 0.6))", "passkey(depth=(0.4, 0.6))"])
def test_needles_lie_as_deep_as_asked_and_are_told_by_depth(spec):
    source = data.open(spec)
    batch = next(source.evaluation("test", 200))
    logits = torch.nn.functional.one_hot(batch.targets.clamp(min=0), source.facts["vocab"]).float()
    logits[:20, -1] = 0
    scores = source.score(logits, batch.inputs, batch.targets)
    right, number = scores.pop("string_accuracy")
    assert number == 200 and 180 <= right < 200
    assert set(scores) <= {f"string_accuracy at depth 0.{d}" for d in (3, 4, 5, 6)} and len(scores) >= 2
    assert sum(n for _, n in scores.values()) == 200 and sum(hits for hits, _ in scores.values()) == right


def test_every_depth_is_as_likely():
    source = data.open("passkey(length=512)")
    batch = source.batch("train", 0, 1000)
    place = (batch.inputs == VOCABULARY.index("remember")).int().argmax(1).numpy()
    thirds = np.histogram(place, bins=3, range=(0, batch.inputs.shape[1] - 30))[0]
    assert thirds.min() > 270


def test_needle_rows_fill_their_length():
    for spec in ("needle()", "needle(needles=5)", "needle(haystack=needles)", "passkey(length=64)"):
        source = data.open(spec)
        assert 0 <= (64 if "64" in spec else 256) - source.shape[0] < 20
    several = data.open("needle(needles=4)").baselines
    assert abs(several["the first number of the text"] - 1 / 4) < 0.06


@pytest.mark.parametrize("places", ["before", "anywhere"])
def test_copied_tokens_lie_where_said(places):
    spec = f"copying(length=64, tokens=4, vocab=8, places='{places}')"
    last = []
    for x, y in rows(spec, count=400):
        content = [t for t, token in enumerate(x[:59]) if token < 6]
        assert [x[t] for t in content] == y[60:] and x[59] == 7 and x[60:] == [6] * 4
        last.append(content[-1])
    assert (min(last) == 58) if places == "before" else (min(last) < 40 and np.mean(np.array(last) == 58) < 0.12)


def test_induction_may_be_tested_on_other_lengths():
    source = data.open("induction(length=16, length_tested=50)")
    assert source.facts["length"] == 50
    assert [next(source.evaluation(s, 4)).inputs.shape[1] for s in ("train", "validation", "test")] == [16, 16, 50]
    for x, y in rows("induction(length=16, length_tested=50)", "test"):
        assert x.index(15) < 48 and x.count(15) == 2 and x[x.index(15) + 1] == y[-1] != -100
    with pytest.raises(DataError, match="length_tested"):
        data.open("induction(length_tested=2)")


@pytest.mark.parametrize(
    "spec", ["string_copy()", "ngram_lookup()", "phonebook(lines_seen=(4, 6))", "needle()", "passkey()"]
)
def test_string_tasks_train_and_are_scored_whole(spec):
    source = data.open(spec)
    assert source.metric == "string_accuracy" and 0 < source.baselines["guessing"] < 1e-2
    model = formwright.build("2*(attention + swiglu)", data=source, dim=32)
    model.loss(source.batch("train", 0, 4)).backward()
    scores = evaluate(model, source, "test", 8, limit=8)
    assert scores["string_accuracy"] == 0 and {"loss", "accuracy"} <= set(scores)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("string_copy(packed=42)", "packed is 42"),
        ("string_copy(lengths_seen=(0, 4))", "shortest of lengths_seen"),
        ("ngram_lookup(key='middle')", "'prefix' or 'suffix'"),
        ("ngram_lookup(ngram=1, letters=3)", "larger ngram"),
        ("ngram_lookup(lengths_seen=(3, 9))", "at least 4"),
        ("ngram_lookup(answer=0)", "answer"),
        ("phonebook(lines_seen=(2, 9))", "at least 3"),
        ("phonebook(names=6)", "at least 7"),
        ("needle(haystack='hay')", "'sentences' or 'needles'"),
        ("needle(length=48)", "take longer rows"),
        ("needle(needles=30)", "too few"),
        ("needle(length='x')", "length"),
        ("needle(haystack=needles, length_tested=100000)", "shorter rows"),
        ("needle(depth=(0.41, 0.42))", "take longer rows"),
        ("needle(depth=0.5)", "two shares"),
        ("passkey(depth=(0.6, 0.4))", "two shares"),
        ("copying(places='far')", "'before' or 'anywhere'"),
    ],
)
def test_refusals_of_strings_and_needles(spec, words):
    with pytest.raises(DataError, match=words):
        data.open(spec)


@pytest.mark.parametrize("name", ["mqar_mix", "mad_fuzzy_recall", "string_copy", "ngram_lookup", "phonebook", "needle"])
def test_seeds_and_splits_differ(name):
    assert (items(name)[0] == items(name)[0]).all()
    one, other = items(name)[0], items(name, seed=1)[0]
    assert one.shape != other.shape or (one != other).any()
    seen = {row.tobytes() for row in items(name, "validation")[0]}
    assert not seen & {row.tobytes() for row in items(name, "test")[0]}
