"""The tasks of CAB's patterns, each against its definition written out in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import formwright
from formwright import data
from formwright.bench.patterns import PATTERNS, contender, z_scores
from formwright.build import default_stack
from formwright.data import DataError
from formwright.train import fit


def block(spec, split="train", rows=300):
    batch = data.open(spec).batch(split, 0, rows)
    inputs = tuple(x.numpy() for x in batch.inputs) if isinstance(batch.inputs, tuple) else batch.inputs.numpy()
    return inputs, batch.targets.numpy()


@pytest.mark.parametrize(("pairs", "times", "shown"), [(8, 2, 1), (5, 3, 2), (3, 4, 1)])
def test_masked_recall_hides_what_its_key_tells_elsewhere(pairs, times, shown):
    spec = f"masked_recall(pairs={pairs}, times={times}, shown={shown}, keys=12, values=5)"
    inputs, targets = block(spec)
    found = asked = 0
    for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert len(row) == pairs * times and all(0 <= token < 12 + 12 * 5 for token in row)
        entries = [(token, None) if token < 12 else divmod(token - 12, 5) for token in row]
        keys = [key for key, _ in entries]
        assert len(set(keys)) == pairs and all(keys.count(key) == times for key in keys)
        told = {}
        for key, value in entries:
            if value is not None:
                assert told.setdefault(key, value) == value
        assert sum(value is not None for _, value in entries) == pairs * shown and len(told) == pairs
        for place, (key, value) in enumerate(entries):
            assert wanted[place] == (-100 if value is not None else 12 + 5 * key + told[key])
            if value is None:
                asked += 1
                found += any(k == key and v is not None for k, v in entries[:place])
    share = found / asked
    baselines = data.open(spec).baselines
    assert baselines["guessing"] == 1 / 5
    assert baselines["reading from the left alone"] == pytest.approx(share + (1 - share) / 5, abs=0.05)


def test_masked_recall_is_the_harder_the_more_is_hidden():
    specs = [f"masked_recall(times=4, shown={n}, values=10)" for n in (1, 3)]
    left = [data.open(spec).baselines["reading from the left alone"] for spec in specs]
    assert left[0] == pytest.approx(0.5 + 0.05, abs=0.02)  # one of four is as often before a hidden one as behind it
    assert left[1] == pytest.approx(0.75 + 0.025, abs=0.02)


def test_points_lie_on_the_outline_that_is_asked_for():
    (source, asked), targets = block("point_completion", rows=100)
    for points, queries, radii in zip(source, asked, targets, strict=True):
        assert (points[:, 2] == 0).all() and (queries[:, 2] == 1).all()
        t = np.arctan2(points[:, 1], points[:, 0]).astype(np.float64)
        there = np.arctan2(queries[:, 1], queries[:, 0]).astype(np.float64)
        # four coefficients from the points, by least squares written out
        table = [[np.cos(a), np.cos(2 * a), np.sin(a), np.sin(2 * a)] for a in t]
        found, *_ = np.linalg.lstsq(np.array(table), np.log(np.hypot(points[:, 0], points[:, 1])), rcond=None)
        told = [found @ [np.cos(a), np.cos(2 * a), np.sin(a), np.sin(2 * a)] for a in there]
        np.testing.assert_allclose(told, radii[:, 0], atol=2e-3)


def test_no_point_is_seen_where_values_are_asked_for():
    (source, asked), _ = block("point_completion(hidden=0.25, queries=40, points=60)", rows=50)
    for points, queries in zip(source, asked, strict=True):
        marked = [(np.arctan2(y, x) % (2 * np.pi), 0) for x, y, _ in points]
        marked += [(np.arctan2(y, x) % (2 * np.pi), 1) for x, y, _ in queries]
        kinds = [kind for _, kind in sorted(marked)]
        changes = sum(a != b for a, b in zip(kinds, kinds[1:] + kinds[:1], strict=True))
        assert changes == 2  # going round, the queries come all together


def test_baselines_of_point_completion_are_in_order():
    exact = data.open("point_completion").baselines
    assert exact["least squares"] < 1e-8
    assert exact["a circle"] == pytest.approx(0.25**2 * (1 + 1 / 4), rel=0.1)
    noisy = data.open("point_completion(noise=0.1)").baselines
    assert 1e-4 < noisy["least squares"] < noisy["a circle"] / 2


def answer(operation, string, letters):
    if operation == "reverse":
        return string[::-1]
    if operation == "sort":
        return sorted(string)
    out, i = [], 0
    while i < len(string):
        if i + 1 < len(string) and (string[i] + string[i + 1]) % 3 == 0:
            out.append(letters + (5 * string[i] + string[i + 1]) % letters)
            i += 2
        else:
            out.append((7 * string[i] + 3) % letters)
            i += 1
    return out


@pytest.mark.parametrize("operation", ["reverse", "sort", "transliterate"])
def test_strings_are_answered_as_in_plain_python(operation):
    spec = f"string_to_string(operation={operation}, letters=7, lengths=(1, 9))"
    (source, inputs), targets = block(spec, rows=500)
    lengths = []
    for given, shifted, wanted in zip(source.tolist(), inputs.tolist(), targets.tolist(), strict=True):
        end = given.index(2)
        assert set(given[end + 1 :]) <= {0} and min(given[:end]) >= 3
        lengths.append(end)
        truth = [3 + n for n in answer(operation, [n - 3 for n in given[:end]], 7)]
        assert [t for t in wanted if t != -100] == [*truth, 2]
        assert shifted[: len(truth) + 1] == [1, *truth] and set(shifted[len(truth) + 1 :]) <= {0}
        assert wanted[: len(truth) + 1] == [*truth, 2]
    counts = np.bincount(lengths, minlength=10)[1:10]
    assert counts.min() > 25  # of 500 over nine lengths, each alike often


def test_strings_may_be_tested_at_other_lengths_and_splits_differ():
    spec = "string_to_string(operation=reverse, lengths=(2, 4), lengths_tested=(6, 8))"
    assert {int((x != 0).sum()) - 1 for x in block(spec)[0][0]} == {2, 3, 4}
    assert {int((x != 0).sum()) - 1 for x in block(spec, "test")[0][0]} == {6, 7, 8}
    (a, _), _ = block("string_to_string")
    (b, _), _ = block("string_to_string")
    (c, _), _ = block("string_to_string", "validation")
    assert (a == b).all() and not (a == c).all()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("masked_recall(times=2, shown=2)", "hides nothing"),
        ("masked_recall(pairs=40)", "keys=40"),
        ("point_completion(hidden=1.5)", "hidden"),
        ("point_completion(points=0)", "points"),
        ("string_to_string(operation=shuffle)", "reverse, sort"),
        ("string_to_string(lengths=(5, 2))", "lengths"),
    ],
)
def test_what_makes_no_sense_is_refused(spec, words):
    with pytest.raises(DataError, match=words):
        data.open(spec)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_trains_and_scores_in_its_metric(pattern):
    source = data.open(PATTERNS[pattern].data)
    tree, reason = contender("attention", pattern, source, depth=2)
    assert reason is None
    model = formwright.build(tree, source, dim=32)
    result = fit(model, source, steps=3, batch_size=8, lr=1e-3, device="cpu", evaluation_items=8)
    assert source.metric in result.scores and source.baselines


def test_mixers_are_judged_by_patterns_of_their_own():
    source = data.open("string_to_string")
    assert contender("gla", "causal_cross", source)[0] is None
    assert "no causal cross pattern" in contender("gla", "causal_cross", source)[1]
    both_ways, _ = contender("gla", "self", data.open("masked_recall"), depth=2)
    assert "bidirectional(gla)" in str(both_ways)
    assert "cross(performer)" in str(contender("performer", "causal_cross", source)[0])
    assert contender("fourier", "causal", data.open("mqar"))[0] is None
    whole = "2*(attention + swiglu)"
    assert contender(whole, "self", data.open("masked_recall")) == (formwright.lang.parse(whole), None)


def test_z_scores_have_mean_nought_and_leave_out_what_is_no_number():
    scores = z_scores({"a": 1.0, "b": 2.0, "c": 3.0, "d": float("nan")})
    assert scores == pytest.approx({"a": -(1.5**0.5), "b": 0.0, "c": 1.5**0.5})
    assert z_scores({"a": 1.0, "b": 3.0}, lower_is_better=True) == {"a": 1.0, "b": -1.0}
    assert z_scores({"a": 2.0, "b": 2.0}) == {"a": 0.0, "b": 0.0} and z_scores({}) == {}


def test_an_encoder_decoder_learns_points_better_than_a_circle():
    torch.manual_seed(0)
    source = data.open("point_completion(harmonics=1, hidden=0.2, points=8, queries=4)")
    model = formwright.build(default_stack("attention", 2, source), source, dim=32)
    result = fit(model, source, steps=250, batch_size=64, lr=1e-2, device="cpu", evaluation_items=256)
    assert result.scores["mse"] < 0.4 * source.baselines["a circle"]
