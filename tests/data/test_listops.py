"""ListOps: values by a plain evaluator, sizes by the law of the trees, drawn one by one."""

import itertools
import random
import statistics
import time

import numpy as np
import pytest
import torch

from formwright import build, data
from formwright.data import DataError
from formwright.data.tasks import TASKS
from formwright.data.tasks.listops import CLOSE, OPERATOR, draw_places

FUNCTIONS = [min, max, lambda x: int(statistics.median(x)), lambda x: sum(x) % 10]


def parse(tokens):
    """(value, depth, sizes of the operators) of a whole row, with a stack."""
    stack, deepest, sizes = [], 1, []
    for i, token in enumerate(tokens):
        if token == CLOSE:
            operator, arguments = stack.pop()
            sizes.append(len(arguments))
            found = FUNCTIONS[operator](arguments)
        elif token > 10:
            stack.append((token - 11, []))
            deepest = max(deepest, len(stack) + 1)
            continue
        else:
            found = token - 1
        if not stack:
            assert i == len(tokens) - 1
            return found, deepest, sizes
        stack[-1][1].append(found)
    raise AssertionError("the expression doesn't end")


@pytest.mark.parametrize(
    ("options", "bounds", "depth"),
    [("", (500, 2000), 10), ("shortest=2, longest=40, depth=4, arguments=3", (2, 40), 4)],
)
def test_values_shapes_and_bounds(options, bounds, depth):
    batch = data.open(f"listops({options})").batch("train", 0, 100)
    most = 3 if options else 10
    for x, y, size in zip(batch.inputs.tolist(), batch.targets.tolist(), batch.layout.lengths.tolist(), strict=True):
        assert bounds[0] < size < bounds[1] and not any(x[size:])
        found, deepest, sizes = parse(x[:size])
        assert found == y and deepest <= depth and all(2 <= n <= most for n in sizes)


def one_by_one(rng, level, depth, arguments):
    if level >= depth or rng.random() > OPERATOR:
        return [1 + rng.randrange(10)]
    inner = [one_by_one(rng, level + 1, depth, arguments) for _ in range(rng.randint(2, arguments))]
    return [11 + rng.randrange(4), *itertools.chain(*inner), CLOSE]


def test_trees_follow_the_law_of_trees_drawn_one_by_one():
    """Sizes, depths, places of operators and answers, beside 3,000 trees drawn by the definition and rejected."""
    rng, plain = random.Random(0), []
    while len(plain) < 3000:
        if 10 < len(tree := one_by_one(rng, 1, 5, 4)) < 60:
            plain.append(tree)
    make = TASKS["listops"](shortest=10, longest=60, depth=5, arguments=4).make
    x, _ = make(np.random.default_rng(0), 3000)
    fast = [row[row > 0].tolist() for row in x]

    def facts(trees):
        parsed = [parse(tree) for tree in trees]
        return {
            "length": [len(t) for t in trees],
            "depth": [p[1] for p in parsed],
            "operators": [len(p[2]) for p in parsed],
            "arguments": [np.mean(p[2]) for p in parsed],
            "the second token is an operator": [t[1] > 10 for t in trees],
            "the last but one closes": [t[-2] == CLOSE for t in trees],
            "value": [p[0] for p in parsed],
        }

    for (name, a), b in zip(facts(plain).items(), facts(fast).values(), strict=True):
        spread = (np.var(a) / len(a) + np.var(b) / len(b)) ** 0.5
        assert abs(np.mean(a) - np.mean(b)) < 4 * spread, name


def test_padding_does_not_reach_a_classifier():
    batch = data.open("listops(shortest=2, longest=30, depth=3, arguments=3)").batch("train", 0, 4)
    model = build("tokens(dim=16) >> attention(heads=2) + swiglu >> classify", facts={"vocab": 16, "classes": 10})
    whole = model(batch.inputs, batch.layout)
    for row, size in enumerate(batch.layout.lengths.tolist()):
        torch.testing.assert_close(
            whole[row : row + 1], model(batch.inputs[row : row + 1, :size]), rtol=1e-4, atol=1e-5
        )


def test_sizes_that_hardly_occur_are_refused():
    with pytest.raises(DataError, match="hardly any list"):
        TASKS["listops"](shortest=500, longest=600, depth=3, arguments=3)


def test_places_are_drawn_evenly():
    rng, sizes, wanted = np.random.default_rng(0), np.array([4, 0, 3, 1]), np.array([2, 0, 3, 1])
    seen = {}
    for _ in range(3000):
        places = tuple(draw_places(rng, sizes, wanted).tolist())
        assert len(set(places)) == 6 and set(places[2:5]) == {4, 5, 6} and places[5] == 7 and max(places[:2]) < 4
        seen[places] = seen.get(places, 0) + 1
    assert len(seen) == 12 * 6  # every ordered choice
    assert max(seen.values()) < 80 and min(seen.values()) > 15


def test_it_is_far_quicker_than_the_public_generator():
    make = TASKS["listops"]().make
    make(np.random.default_rng(0), 100)
    began = time.process_time()
    make(np.random.default_rng(0), 500)
    assert 500 / (time.process_time() - began) > 2000  # that one makes 125 a second
