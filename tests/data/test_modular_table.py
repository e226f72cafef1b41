"""The table of modular arithmetic: every result worked out again, parts that share no pair and hold every one."""

import numpy as np
import pytest

import formwright
from formwright import data
from formwright.data import DataError
from formwright.data.tasks import TASKS
from formwright.data.tasks.modular_table import OPERATIONS, parts

PLAIN = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "squares": lambda a, b: a**2 + b**2,
    "cubic": lambda a, b: a**3 + a * b,
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_results_and_parts(operation):
    task = TASKS["modular_table"](prime=13, operation=operation, share=0.4)
    drawn = []
    for make in (task.make, task.make_validation, task.make_test):
        x, y = make(np.random.default_rng(0), 4000)
        assert (y[:, :3] == -100).all() and (x[:, 1] == 13).all() and (x[:, 3] == 14).all()
        for (a, _, b, _), c in zip(x.tolist(), y[:, 3].tolist(), strict=True):
            assert 0 <= c < 13
            assert (c * b - a) % 13 == 0 if operation == "/" else c == PLAIN[operation](a, b) % 13
        drawn.append({(a, b) for a, b in zip(x[:, 0].tolist(), x[:, 2].tolist(), strict=True)})
    everything = {(a, b) for a in range(13) for b in range(13) if operation != "/" or b}
    assert sum(map(len, drawn)) == len(everything) and set.union(*drawn) == everything
    assert len(drawn[0]) == round(0.4 * len(everything)) and abs(len(drawn[1]) - len(drawn[2])) <= 1


def test_rows_are_uniform_over_their_part():
    x, _ = TASKS["modular_table"](prime=5, share=0.5).make(np.random.default_rng(0), 12_000)
    times = np.bincount(x[:, 0] * 5 + x[:, 2])
    times = times[times > 0]
    assert len(times) == 12 and abs(times / 12_000 - 1 / 12).max() < 0.012


def test_a_larger_share_holds_a_smaller_one_and_shuffles_differ():
    few, many = (set(map(tuple, parts(31, "+", share, 0)[0].tolist())) for share in (0.2, 0.5))
    other = set(map(tuple, parts(31, "+", 0.2, 1)[0].tolist()))
    assert few < many and few != other


def test_baselines_notes_and_training():
    source = data.open("modular_table(prime=97)")
    train, _, test = (set(map(tuple, part.tolist())) for part in parts(97, "+", 0.5, 0))
    turned = sum((b, a) in train for a, b in test) / len(test)
    assert source.baselines["the trained pair turned round"] == pytest.approx(turned)
    assert source.baselines["guessing"] == 1 / 97 and source.baselines["the commonest answer"] < 0.05
    assert source.notes == ["4704 pairs are trained on, 2352 validate, 2353 test."]
    model = formwright.build("attention(heads=2) + swiglu", data=source, dim=16)
    model.loss(source.batch("train", 0, 8)).backward()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("modular_table(prime=91)", "prime number"),
        ("modular_table(operation='%')", "squares"),
        ("modular_table(share=0.0)", "between 0 and 1"),
        ("modular_table(prime=5, share=0.99)", "empty"),
    ],
)
def test_refusals(spec, says):
    with pytest.raises(DataError, match=says):
        data.open(spec)
