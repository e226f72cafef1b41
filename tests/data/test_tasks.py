"""The labels of synthetic tasks, found again by brute force from the inputs alone."""

import hashlib

import numpy as np
import pytest

from formwright import data
from formwright.data import DataError, tasks
from formwright.data.synthetic import read
from formwright.data.tasks import TASKS, draw_distinct


def items(spec, split="train", count=64, seed=0):
    batch = data.open(spec, seed=seed).batch(split, 0, count)
    return batch.inputs.numpy(), batch.targets.numpy()


@pytest.mark.parametrize("filler", ["zeros", "random"])
@pytest.mark.parametrize(("pairs", "length", "vocab"), [(1, 4, 4), (4, 64, 8192), (8, 32, 18), (16, 128, 256)])
def test_mqar_labels(pairs, length, vocab, filler):
    inputs, targets = items(f"mqar(pairs={pairs}, length={length}, vocab={vocab}, filler='{filler}')")
    for x, y in zip(inputs, targets, strict=True):
        keys, values = x[: 2 * pairs : 2].tolist(), x[1 : 2 * pairs : 2].tolist()
        assert len(set(keys)) == len(set(values)) == pairs
        assert all(1 <= k < vocab // 2 for k in keys) and all(vocab // 2 <= v < vocab for v in values)
        asked = np.flatnonzero(y != -100)
        assert len(asked) == pairs and (asked >= 2 * pairs).all() and (asked % 2 == 0).all()
        table = dict(zip(keys, values, strict=True))
        assert sorted(x[asked].tolist()) == sorted(keys)
        assert [table[k] for k in x[asked]] == y[asked].tolist()
        if filler == "zeros":
            rest = np.delete(x, asked)[2 * pairs :]
            assert (rest == 0).all()


def test_mqar_gaps_follow_their_law():
    make = TASKS["mqar"](pairs=1, length=12, vocab=8, power=0.01).make
    _, targets = make(np.random.default_rng(0), 40000)
    gaps = (np.argmax(targets != -100, axis=1) - 2) // 2
    weight = np.arange(1, 6) ** -0.99
    assert np.abs(np.bincount(gaps, minlength=5) / 40000 - weight / weight.sum()).max() < 0.01


def test_mqar_gaps_are_drawn_without_replacement_one_after_another():
    weight = np.arange(1, 5) ** -0.99
    make = TASKS["mqar"](pairs=2, length=12, vocab=16).make
    inputs, targets = make(np.random.default_rng(0), 40000)
    first = inputs[:, :1]
    gap_of_first = (np.argmax((inputs == first) & (targets != -100), axis=1) - 4) // 2
    assert np.abs(np.bincount(gap_of_first, minlength=4) / 40000 - weight / weight.sum()).max() < 0.01


@pytest.mark.parametrize(("length", "tokens", "vocab"), [(3, 1, 4), (256, 16, 16), (33, 16, 5), (64, 8, 10)])
@pytest.mark.parametrize("selective", [True, False])
def test_copying_labels(length, tokens, vocab, selective):
    inputs, targets = items(f"copying(length={length}, tokens={tokens}, vocab={vocab}, selective={selective})")
    for x, y in zip(inputs, targets, strict=True):
        assert np.count_nonzero(x == vocab - 1) == 1 and x[length - tokens - 1] == vocab - 1
        assert (x[length - tokens :] == vocab - 2).all()
        content = [t for t in x[: length - tokens - 1] if t < vocab - 2]
        assert y[-tokens:].tolist() == content and (y[:-tokens] == -100).all()
        if selective:
            assert x[length - tokens - 2] < vocab - 2
        else:
            assert x[:tokens].tolist() == content


@pytest.mark.parametrize(("length", "vocab"), [(3, 3), (16, 4), (256, 16)])
def test_induction_labels(length, vocab):
    inputs, targets = items(f"induction(length={length}, vocab={vocab})")
    for x, y in zip(inputs, targets, strict=True):
        places = np.flatnonzero(x == vocab - 1)
        assert len(places) == 2 and places[1] == length - 1 and places[0] <= length - 3
        assert y[-1] == x[places[0] + 1] and (y[:-1] == -100).all()


def test_distinct_draws_are_uniform_over_ordered_tuples():
    drawn = draw_distinct(np.random.default_rng(0), 60000, 2, 4)
    assert (drawn[:, 0] != drawn[:, 1]).all()
    number = np.bincount(drawn[:, 0] * 4 + drawn[:, 1], minlength=16).reshape(4, 4)
    off = number[~np.eye(4, dtype=bool)]
    assert np.abs(off / 60000 - 1 / 12).max() < 0.006


def test_splits_and_seeds_differ_and_items_do_not_depend_on_their_number():
    x, _ = items("mqar(pairs=4, length=32, vocab=64)")
    assert (x != items("mqar(pairs=4, length=32, vocab=64)", seed=1)[0]).any()
    train = {row.tobytes() for row in items("mqar(pairs=4, length=32, vocab=64)", count=1000)[0]}
    test = {row.tobytes() for row in items("mqar(pairs=4, length=32, vocab=64)", "test", 1000)[0]}
    assert not train & test
    few = next(data.open("copying(examples=50, tests=20)").evaluation("test", 20))
    many = next(data.open("copying(examples=5000, tests=2000)").evaluation("test", 20))
    assert (few.inputs == many.inputs).all()


def test_training_sees_exactly_its_examples():
    source = data.open("induction(length=16, vocab=8, examples=1500, tests=10)")
    assert source.counts == {"train": 1500, "validation": 10, "test": 10}
    epochs = [
        {row.numpy().tobytes() for step in range(15) for row in source.batch("train", 15 * e + step, 100).inputs}
        for e in range(2)
    ]
    every = {row.numpy().tobytes() for batch in source.evaluation("train", 500) for row in batch.inputs}
    assert epochs[0] == epochs[1] == every


def test_tasks_are_the_same_on_every_machine():
    for spec, expected in CHECKSUMS.items():
        inputs, targets = items(spec)
        assert hashlib.sha256(inputs.tobytes() + targets.tobytes()).hexdigest()[:16] == expected, spec


CHECKSUMS = {
    "mqar(pairs=4, length=32, vocab=64)": "e5779395976e222f",
    "mqar(filler='random')": "3158a551af2e84b7",
    "copying": "6000308498a9007b",
    "induction": "0f5ca9621d79af1d",
}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("mqr(pairs=4)", "did you mean mqar"),
        ("mqar(pair=4)", "did you mean pairs"),
        ("mqar(4)", "write each option with its name"),
        ("mqar(pairs=0)", "at least 1"),
        ("mqar(pairs=4.5)", "whole number"),
        ("mqar(pairs=64, length=128)", "at least 256"),
        ("mqar(vocab=20)", "vocab"),
        ("mqar(filler='x')", "'zeros' or 'random'"),
        ("copying(length=20)", "at least 33"),
        ("copying(selective=3)", "True or False"),
        ("induction(length=2)", "at least 3"),
        ("xyz(at=1)", "the tasks are"),
        ("mqar(pairs=", "can't be read"),
        ("mqar(pairs=(1,)", "can't be read"),
        ("mqar(pairs==3)", "can't be read"),
    ],
)
def test_mistakes_are_named(spec, says):
    with pytest.raises(DataError) as caught:
        data.open(spec)
    assert says in str(caught.value)


def test_options_outside_the_brackets_are_refused():
    with pytest.raises(DataError, match="inside its brackets"):
        data.open("mqar(pairs=4)", length=64)


def test_bare_names_and_words():
    assert read("mqar")[1]["pairs"] == 16
    assert read("mqar(filler=random)")[1]["filler"] == "random"
    assert data.open("mqar(pairs=4, length=64)").name == "mqar(pairs=4, length=64)"


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_says_what_it_asks(name):
    said = tasks.summary(name)
    assert 8 <= len(said) <= 130 and "inputs" not in said, said
    assert f"--data '{name}(" in tasks.describe(name) and said.split()[-1].strip(".?") in tasks.describe(name)
