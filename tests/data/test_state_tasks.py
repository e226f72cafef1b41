"""The labels of state-tracking tasks, found again by brute force from the inputs alone."""

import itertools

import numpy as np
import pytest

from formwright import data
from formwright.data import DataError
from formwright.data.tasks.word_problem import GROUPS, multiplication


def items(spec, split="train", count=64):
    batch = data.open(spec).batch(split, 0, count)
    return batch.inputs.numpy(), batch.targets.numpy()


def answers(inputs, targets):
    """(question, answers) of each row, from its first slot."""
    for x, y in zip(inputs, targets, strict=True):
        asked = np.flatnonzero(y != -100)
        assert (x[asked[0] :] == 0).all() and (np.diff(asked) == 1).all()
        yield x[: asked[0]].tolist(), y[asked].tolist()


@pytest.mark.parametrize(("split", "least", "most"), [("train", 3, 40), ("validation", 3, 40), ("test", 40, 256)])
def test_parity_labels_and_lengths(split, least, most):
    sizes = []
    for bits, answer in answers(*items("parity()", split, 300)):
        assert set(bits) <= {1, 2} and answer == [1 + bits.count(2) % 2]
        sizes.append(len(bits))
    assert least <= min(sizes) < least + 8 and most - 8 < max(sizes) <= most


def test_running_parity_is_wanted_at_every_bit():
    inputs, targets = items("parity(running=True, lengths_seen=(1, 9), lengths_tested=(10, 12))")
    for x, y in zip(inputs, targets, strict=True):
        size = np.count_nonzero(x)
        assert (x[size:] == 0).all() and (y[size:] == -100).all()
        assert y[:size].tolist() == [1 + x[: t + 1].tolist().count(2) % 2 for t in range(size)]


@pytest.mark.parametrize("modulus", [2, 5, 7])
@pytest.mark.parametrize("split", ["train", "test"])
def test_modular_arithmetic_is_pythons(modulus, split):
    spec = f"modular_arithmetic(modulus={modulus}, lengths_seen=(1, 9), lengths_tested=(11, 30))"
    signs = {modulus + 1: "+", modulus + 2: "-", modulus + 3: "*"}
    sizes = set()
    for question, answer in answers(*items(spec, split, 200)):
        assert question[-1] == modulus + 4
        text = "".join(signs.get(token, str(token - 1)) for token in question[:-1])
        assert answer == [1 + eval(text) % modulus]
        sizes.add(len(question) - 1)
    assert sizes == (set(range(1, 10, 2)) if split == "train" else set(range(11, 30, 2)))


@pytest.mark.parametrize("group", GROUPS)
def test_groups_are_groups(group):
    table = multiplication(group)
    size = len(table)
    assert size == {"S3": 6, "S5": 120}.get(group, 60)
    assert (table[0] == np.arange(size)).all() and (table[:, 0] == np.arange(size)).all()
    assert all(len(set(row)) == size for row in table.tolist())
    a, b, c = np.random.default_rng(0).integers(0, size, (3, 2000))
    assert (table[table[a, b], c] == table[a, table[b, c]]).all()
    abelian = (table == table.T).all()
    assert abelian == (group == "Z60")
    # the commutators' span: 1 for abelian groups, smaller than the group for solvable ones, all of A5
    inverse = np.argwhere(table == 0)[:, 1]
    commutators = {
        int(table[table[inverse[x], inverse[y]], table[x, y]]) for x, y in itertools.product(range(size), repeat=2)
    }
    span = {0}
    while len(new := span | {int(table[x, y]) for x in span for y in commutators}) > len(span):
        span = new
    assert len(span) == {"Z60": 1, "A4xZ5": 4, "A5": 60, "S5": 60, "S3": 3}[group]


@pytest.mark.parametrize("group", GROUPS)
def test_word_problem_labels(group):
    table = multiplication(group)
    for split, length in (("train", 9), ("test", 17)):
        inputs, targets = items(f"word_problem(group='{group}', length=9, length_tested=17)", split)
        assert inputs.shape[1] == length
        for x, y in zip(inputs, targets, strict=True):
            product = 0
            for element, wanted in zip(x, y, strict=True):
                product = table[product, element]
                assert product == wanted


def test_the_test_part_may_be_longer_and_the_notes_say_so():
    source = data.open("parity(lengths_seen=(2, 5), lengths_tested=(6, 9))")
    assert source.shape == (6,) and source.facts["length"] == 10
    assert [b.inputs.shape[1] for s in ("validation", "test") for b in source.evaluation(s, 8, limit=8)] == [6, 10]
    assert set(source.baselines) == {"guessing", "the commonest answer"} and source.baselines["guessing"] == 0.5
    assert any("other lengths" in note for note in source.notes)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("parity(lengths_seen=(5, 3))", "longest of lengths_seen"),
        ("parity(lengths_seen=7)", "two lengths"),
        ("parity(running=1)", "True or False"),
        ("modular_arithmetic(modulus=1)", "modulus"),
        ("word_problem(group='A6')", "Z60"),
    ],
)
def test_refusals(spec, words):
    with pytest.raises(DataError, match=words):
        data.open(spec)


@pytest.mark.parametrize(("types", "depth"), [(1, 1), (3, 4), (8, 10)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_dyck_strings_nest_and_closing_brackets_are_wanted(types, depth, split):
    inputs, targets = items(f"dyck(types={types}, depth={depth}, length=50, length_tested=120)", split, 200)
    assert inputs.shape[1] == (50 if split == "train" else 120)
    deepest = 0
    for x, y in zip(inputs.tolist(), targets.tolist(), strict=True):
        stack = []
        for t, token in enumerate(x):
            if token <= types:
                stack.append(token)
            else:
                assert stack.pop() == token - types
            deepest = max(deepest, len(stack))
            if t + 1 < len(x):
                assert y[t] == (x[t + 1] if x[t + 1] > types else -100)
            if y[t] != -100:
                assert y[t] == stack[-1] + types
            if len(stack) == depth:
                assert y[t] != -100
            if not stack:
                assert y[t] == -100
    assert deepest == depth
    closing = (targets != -100).mean()
    assert 0.4 < closing < 0.6  # as many close as open
