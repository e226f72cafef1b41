"""How a budget is shared out."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from formwright.race import phases, plan
from formwright.race.contenders import Entry, RaceProblem
from formwright.train.budget import parse


def entries(*macs):
    return [Entry(f"c{i}", "x", None, macs=m) for i, m in enumerate(macs)]


def text(train=10_000, tokens=256):
    counts = {"train": train, "validation": 500, "test": 600}
    return SimpleNamespace(tokens_per_item=tokens, counts=counts)


def test_everyone_gets_the_same_seconds_and_as_many_steps_as_fit():
    speeds = {"c0": plan.Speed(0.1, 1.0), "c1": plan.Speed(0.4, 2.0)}
    steps = plan.main_steps(parse("10m"), entries(1, 1), speeds, seconds=101, batch=16, source=text())
    assert steps == {"c0": int(plan.TRAINING * 100 / 0.1), "c1": int(plan.TRAINING * 99 / 0.4)}
    assert plan.timed_steps(0.5, plan.Speed(1.0, 2.0)) == 1


def test_counted_budgets_are_those_of_each_main_run():
    def steps(budget):
        return plan.main_steps(parse(budget), entries(1000, 2000), {}, seconds=0, batch=16, source=text())

    assert steps("500steps") == {"c0": 500, "c1": 500}
    assert steps("40960tokens") == {"c0": 10, "c1": 10}
    per_step = 3 * 1000 * 16 * 256
    assert steps(f"{100 * per_step}macs") == {"c0": 100, "c1": 50}


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("runs", [1, 4, 5])
def test_runs_of_a_phase_end_within_its_time(runs, workers):
    each = plan.run_seconds(60, runs, workers)
    assert each * math.ceil(runs / workers) == pytest.approx(60)


def test_the_sweep_takes_its_stated_share_of_all_training():
    main = {"a": 1200, "b": 400}
    sweep = plan.sweep_steps(main, rates=4, seeds=3)
    for name, steps in main.items():
        spent = 4 * sweep[name]
        assert spent / (spent + 3 * steps) == pytest.approx(plan.SHARE, rel=0.01)


def test_evaluations_stay_within_their_share_of_the_shortest_run():
    steps, batch = {"a": 300, "b": 900}, 16
    items = plan.scored_items(steps, batch, text(train=100_000))
    assert items["points"] == plan.POINTS
    forwards = items["points"] * items["curve"] + items["validation"] + items["test"]
    assert forwards / (3 * 300 * batch) <= (plan.CURVE + plan.VALIDATION + plan.TEST) / plan.TRAINING
    everything = plan.scored_items({"a": 10**6}, batch, text())
    assert (everything["validation"], everything["test"]) == (500, 600)


def test_batches():
    assert plan.batch_size(text(), None) == 8
    assert plan.batch_size(text(), None, accelerated=True) == 64
    assert plan.batch_size(text(), 1024) == 4
    assert plan.batch_size(text(tokens=8192), None) == 1
    assert plan.batch_size(text(tokens=4), None) == plan.LARGEST_BATCH
    assert plan.batch_size(text(train=40, tokens=4), None) == 10
    with pytest.raises(RaceProblem, match="at least one token"):
        plan.batch_size(text(), 0)


def test_learning_rates():
    assert plan.learning_rates("auto") == list(plan.RATES)
    assert plan.learning_rates("3e-3") == [3e-3]
    for wrong in ("fast", 0, -1, float("nan"), None):
        with pytest.raises(RaceProblem, match="lr is 'auto' or a number"):
            plan.learning_rates(wrong)


def test_a_sweep_takes_the_lowest_rate_near_the_best():
    def trial(lr, loss):
        return SimpleNamespace(lr=lr, scores={"validation": {"loss": loss, "accuracy": 1 - loss / 10}})

    trials = [trial(1e-3, 3.0), trial(3e-3, 2.515), trial(1e-2, 2.5), trial(3e-2, 2.7)]
    assert phases._lowest_near_best(trials, "loss", 1).lr == 3e-3
    assert phases._lowest_near_best(trials, "accuracy", -1).lr == 3e-3
    assert phases._lowest_near_best(trials[2:], "loss", 1).lr == 1e-2
