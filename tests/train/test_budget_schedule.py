from __future__ import annotations

import itertools
import math

import pytest

from formwright.train.budget import Budget, parse, steps
from formwright.train.schedule import learning_rate, warmup_steps


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("90s", 90, "seconds"),
        ("10m", 600, "seconds"),
        ("1h", 3600, "seconds"),
        ("1h30m", 5400, "seconds"),
        ("1.5 hours", 5400, "seconds"),
        ("2 min", 120, "seconds"),
        ("500steps", 500, "steps"),
        ("1 step", 1, "steps"),
        ("2ksteps", 2000, "steps"),
        ("2Mtokens", 2e6, "tokens"),
        ("2M tokens", 2e6, "tokens"),
        ("1e13macs", 1e13, "macs"),
        ("3T macs", 3e12, "macs"),
        (40, 40, "steps"),
    ],
)
def test_parse(text, amount, unit):
    assert parse(text) == Budget(amount, unit)


@pytest.mark.parametrize(
    "text", ["", "10", "10M", "m", "ten minutes", "5 apples", "-5s", "1d", "1e13", True, 2.5, None]
)
def test_parse_lists_the_forms(text):
    with pytest.raises(ValueError, match=r"is no budget.*10m.*500steps.*2Mtokens.*1e13macs"):
        parse(text)


@pytest.mark.parametrize("text", ["0s", "0steps", 0, "1e999macs"])
def test_parse_refuses_nothing_and_everything(text):
    with pytest.raises(ValueError, match="above zero and finite"):
        parse(text)


def test_a_budget_survives_its_text():
    for text in ("90s", "500steps", "2Mtokens", "1e13macs", "0.5s"):
        assert parse(str(parse(text))) == parse(text)


def test_steps_of_each_unit():
    assert steps(parse("500steps")) == 500
    assert steps(parse("90s"), seconds_per_step=0.4) == 225
    assert steps(parse("1ktokens"), tokens_per_step=300) == 3
    assert steps(parse("1e6macs"), macs_per_step=1e9) == 1
    with pytest.raises(ValueError, match="seconds_per_step"):
        steps(parse("90s"), tokens_per_step=10)


def test_warm_up_then_cosine():
    rates = [learning_rate(t, 100, lr=2.0, warmup=0.1, min_lr=0.1) for t in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (t + 1) for t in range(10)])
    assert rates[10] < 2.0 and all(a > b for a, b in itertools.pairwise(rates[9:]))
    assert rates[54] == pytest.approx(2.0 * (0.1 + 0.9 / 2))  # half of the cosine's 90 steps
    assert rates[-1] == pytest.approx(0.2)


def test_short_runs_and_warm_up_in_steps():
    assert warmup_steps(100, 7) == 7
    assert warmup_steps(3, 50) == 2
    assert learning_rate(0, 1, lr=1.0, warmup=0.5, min_lr=0.1) == pytest.approx(0.1)
    assert all(math.isfinite(learning_rate(t, 5, lr=1.0, warmup=0)) for t in range(5))
