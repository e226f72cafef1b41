"""The suite of the Chomsky hierarchy: answers worked out again row by row, in plain Python, from the questions."""

import itertools
import math
import re

import numpy as np
import pytest
import torch

import formwright
from formwright import data
from formwright.data import DataError
from formwright.data.tasks import TASKS
from formwright.data.tasks.chomsky import LEVELS

NAMES = [name for level in LEVELS.values() for name in level if name not in ("parity", "modular_arithmetic")]
SHORTEST = {"missing_duplicate": 2, "solve_equation": 3, "binary_addition": 3, "binary_multiplication": 3}
SIGNS = "+-*()x="


def text(question, modulus=5):
    """An expression's tokens, written out."""
    return "".join(str(t - 1) if t <= modulus else SIGNS[t - modulus - 1] for t in question)


def low_first(bits):
    return sum((b - 1) << i for i, b in enumerate(bits))


def bits_of(number):
    return [1 + int(b) for b in reversed(f"{number:b}")] + [3]


def stack_left(question):
    stack = []
    for i, token in enumerate(question):
        assert token < 3 or i > 0
        if token == 3:
            stack = stack[:-1]
        else:
            stack.append(token if token < 3 else token - 3)
    return [*stack[::-1], 3]


def unknown(question):
    left, right = text(question).split("=")
    fits = [d for d in range(5) if eval(left.replace("x", str(d))) % 5 == int(right)]
    assert len(fits) == 1 and left.count("x") == 1
    return [1 + fits[0]]


def hidden(question):
    half = len(question) // 2
    assert len(question) % 2 == 0 or question[-1] == 4
    assert question.count(3) == 1
    place = question.index(3)
    return [question[place + half if place < half else place - half]]


def of_two(combine):
    def solve(question):
        sign = question.index(3)
        first, second = low_first(question[:sign]), low_first(question[sign + 1 :])
        assert first > 0 and second > 0
        return bits_of(combine(first, second))

    return solve


def root(question):
    number = low_first(question[::-1])
    return [1 + int(b) for b in f"{math.isqrt(number):b}".zfill((len(question) + 1) // 2)]


SOLVERS = {
    "even_pairs": lambda q: [1 + sum(a != b for a, b in itertools.pairwise(q)) % 2],
    "cycle_navigation": lambda q: [1 + sum(t - 2 for t in q) % 5],
    "reverse_string": lambda q: q[::-1],
    "stack_manipulation": stack_left,
    "modular_arithmetic_brackets": lambda q: [1 + eval(text(q)) % 5],
    "solve_equation": unknown,
    "duplicate_string": lambda q: q + q,
    "missing_duplicate": hidden,
    "odds_first": lambda q: q[0::2] + q[1::2],
    "bucket_sort": sorted,
    "binary_addition": of_two(int.__add__),
    "binary_multiplication": of_two(int.__mul__),
    "compute_sqrt": root,
}


def rows(x, y):
    """(question, answer) of each row; slots and what follows them hold 0."""
    for question, wanted in zip(x.tolist(), y.tolist(), strict=True):
        asked = [i for i, t in enumerate(wanted) if t != -100]
        assert asked == list(range(asked[0], asked[0] + len(asked))) and not any(question[asked[0] :])
        assert all(question[: asked[0]])
        yield question[: asked[0]], [wanted[i] for i in asked]


@pytest.mark.parametrize("name", NAMES)
def test_answers_and_lengths(name):
    task = TASKS[name]()
    for make, bounds in ((task.make, (SHORTEST.get(name, 1), 40)), (task.make_test, (41, 100))):
        x, y = make(np.random.default_rng(0), 600)
        assert x.max() < task.facts["vocab"] and y.max() < task.facts["vocab"] and x.shape[1] <= task.facts["length"]
        lengths = []
        for question, answer in rows(x, y):
            assert answer == SOLVERS[name](question)
            lengths.append(len(question))
        assert (min(lengths), max(lengths)) == bounds
        # uniform: the mean of 600 within five standard errors
        middle, spread = sum(bounds) / 2, (bounds[1] - bounds[0] + 1) / 12**0.5
        assert abs(np.mean(lengths) - middle) < 5 * spread / 600**0.5


@pytest.mark.parametrize("name", ["compute_sqrt", "binary_addition", "binary_multiplication"])
def test_long_numbers(name):
    make = TASKS[name](lengths_tested=(200, 300)).make_test
    for question, answer in rows(*make(np.random.default_rng(1), 50)):
        assert answer == SOLVERS[name](question)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 9, 12])
def test_short_expressions_have_their_shapes_and_shares(length):
    make = TASKS["modular_arithmetic_brackets"](lengths_seen=(length, length)).make
    digit, shape = "[0-4]", {}
    for question, _ in rows(*make(np.random.default_rng(0), 4000)):
        found = re.sub(digit, "d", text(question))
        shape[found] = shape.get(found, 0) + 1
    expected = {
        1: {"d": 1},
        2: {"-d": 1},
        3: {"(d)": 1},
        4: {"(-d)": 1},
        5: {f"(d{sign}d)": 1 / 3 for sign in "+-*"},
        6: {pair.format(sign): 1 / 6 for sign in "+-*" for pair in ("(d{}-d)", "(-d{}d)")},
    }.get(length)
    if expected:
        assert set(shape) == set(expected)
        assert all(abs(shape[s] / 4000 - share) < 0.04 for s, share in expected.items())
    else:  # the first argument takes 1..n-4 tokens, uniformly
        firsts = np.zeros(length - 4)
        for found, times in shape.items():
            depth = 0
            for place, sign in enumerate(found):
                depth += (sign == "(") - (sign == ")")
                if depth == 1 and sign in "+-*" and place > 1 and found[place - 1] in "d)":
                    firsts[place - 2] += times / 4000
                    break
        assert abs(firsts - 1 / (length - 4)).max() < 0.05


def test_numbers_are_uniform_above_zero():
    make = TASKS["compute_sqrt"](lengths_seen=(3, 3)).make
    drawn = np.bincount([low_first(q[::-1]) for q, _ in rows(*make(np.random.default_rng(0), 7000))], minlength=8)
    assert drawn[0] == 0 and abs(drawn[1:] / 7000 - 1 / 7).max() < 0.02


def test_stacks_begin_with_one_letter_to_all_but_one():
    make = TASKS["stack_manipulation"](lengths_seen=(5, 5)).make
    letters = [sum(t < 3 for t in q) for q, _ in rows(*make(np.random.default_rng(0), 4000))]
    assert abs(np.bincount(letters, minlength=6)[1:5] / 4000 - 0.25).max() < 0.03


def test_the_shares_of_guessing_are_what_a_coin_scores():
    for name in ("even_pairs", "reverse_string", "missing_duplicate", "bucket_sort", "cycle_navigation"):
        task = TASKS[name]()
        _, y = task.make_test(np.random.default_rng(0), 2000)
        answers = np.bincount(y[y >= 0])[1:]
        assert abs((answers / answers.sum()).max() - task.chance) < 0.04


@pytest.mark.parametrize("name", NAMES)
def test_models_train_on_them(name):
    torch.manual_seed(0)
    source = data.open(f"{name}(lengths_seen=(3, 9), lengths_tested=(10, 12))")
    assert {"guessing", "the commonest answer"} <= set(source.baselines)
    model = formwright.build("attention(heads=2) + swiglu", data=source, dim=16)
    batch = source.batch("train", 0, 8)
    model.loss(batch).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    tested = source.batch("test", 0, 8)
    scores = tested.score(model(tested.inputs), tested.inputs, tested.targets)
    assert scores["string_accuracy"][1] == 8


def test_splits_differ_and_seeds_repeat():
    source = data.open("bucket_sort")
    first, again = source.batch("train", 0, 64), data.open("bucket_sort").batch("train", 0, 64)
    assert torch.equal(first.inputs, again.inputs)
    other = data.open("bucket_sort", seed=1).batch("train", 0, 64)
    held = source.batch("validation", 0, 64)
    for batch in (other, held):
        assert batch.inputs.shape != first.inputs.shape or not torch.equal(batch.inputs, first.inputs)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("cycle_navigation(cycle=1)", "cycle"),
        ("solve_equation(lengths_seen=(2, 5))", "at least 3"),
        ("modular_arithmetic_brackets(products=1)", "True or False"),
        ("bucket_sort(symbols=1)", "symbols"),
        ("binary_addition(lengths_tested=9)", "two lengths"),
        ("even_pairs(tests=0)", "tests"),
    ],
)
def test_refusals(spec, words):
    with pytest.raises(DataError, match=words):
        data.open(spec)
