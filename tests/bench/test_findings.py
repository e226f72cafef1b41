"""benchmarks/findings.py: what is run next, what is made of the scores, and every finding's pass condition on made-up
results."""

from __future__ import annotations

import csv
import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import formwright
from formwright import parts
from formwright.data.tasks import TASKS
from formwright.lang import Part, parse, walk

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def beside():
    """The modules of benchmarks/, which import one another by their bare names."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def command():
    return importlib.import_module("findings")


@pytest.fixture
def trials():
    return importlib.import_module("trials")


@pytest.fixture
def claims():
    return importlib.import_module("claims")


@pytest.fixture
def finding(claims, trials):
    contenders = {"a": trials.Trial("attention", "parity", 10), "b": trials.Trial("gla", "parity", 10)}
    return claims.Finding("it is so", "A Paper, arXiv 1, 2024", "1.0", lambda found: [], contenders, rates=(0.1, 0.2))


def scores(accuracy, seconds=1.0, **more):
    return {
        "validation": {"accuracy": accuracy},
        "test": {"accuracy": accuracy / 2},
        "params": 5,
        "seconds": seconds,
    } | more


def test_a_sweep_comes_first_then_the_other_seeds_at_the_rate_it_chose(command, finding):
    done = {}
    first = command.wanted(finding, done)
    assert [(t.expression, t.rate, t.seed) for t in first] == [
        ("attention", 0.1, 0), ("attention", 0.2, 0), ("gla", 0.1, 0), ("gla", 0.2, 0),
    ]  # fmt: skip
    done |= {first[0]: scores(0.3), first[1]: scores(0.8), first[2]: scores(0.5)}
    assert [(t.expression, t.rate, t.seed) for t in command.wanted(finding, done)] == [
        ("attention", 0.2, 1), ("attention", 0.2, 2), ("gla", 0.2, 0),
    ]  # fmt: skip
    done[first[3]] = {"diverged": "loss", "seconds": 1.0, "params": 5}
    assert {(t.expression, t.rate) for t in command.wanted(finding, done)} == {("attention", 0.2), ("gla", 0.1)}


def test_results_are_of_the_test_part_at_the_rate_chosen(command, finding):
    done = {}
    while todo := command.wanted(finding, done):
        for t in todo:
            if t.expression == "gla":
                done[t] = {"diverged": "loss rose", "seconds": 2.0, "params": 5}
            else:
                done[t] = scores(t.rate + t.seed / 10, seconds=1 + t.seed, after={"state": t.seed})
    a, b = command.results(finding, done)
    assert a.scores == pytest.approx((0.1, 0.15, 0.2)) and a.rate == 0.2 and a.more == {"state": (0, 1, 2)}
    assert a.seconds == 1 + 1 + 2 + 3 and a.worst == pytest.approx(0.1) and a.mean == pytest.approx(0.15)
    assert math.isnan(b.mean) and "diverged at every rate: loss rose" in b.note and b.seconds == 4


def test_lower_is_better_where_the_metric_says_so(trials):
    sweep = {0.1: scores(0.3), 0.2: scores(0.8), 0.3: {"diverged": "x"}}
    assert trials.best_rate(sweep, "accuracy", False) == 0.2 and trials.best_rate(sweep, "accuracy", True) == 0.1
    assert trials.best_rate({0.3: {"diverged": "x"}}, "accuracy", False) is None


def test_trials_are_kept_by_their_definition(trials, tmp_path):
    trial = trials.Trial("attention", "parity", 10)
    assert trial.name == trials.Trial("attention", "parity", 10).name != replace(trial, seed=1).name
    trials.keep(trial, scores(0.5), tmp_path)
    assert trials.kept([trial, replace(trial, seed=1)], tmp_path) == {trial: scores(0.5)}
    assert [f.name for f in tmp_path.iterdir()] == [f"{trial.name}.json"]


def test_kept_trials_are_not_run_again(trials, tmp_path):
    a, b = (trials.Trial("attention", "parity", 10, seed=seed) for seed in (0, 1))
    trials.keep(a, scores(0.5), tmp_path)
    trials.keep(b, scores(0.7), tmp_path)
    found = dict(trials.run(lambda done: [a, b] if a in done else [a], 1, tmp_path))
    assert found == {a: scores(0.5), b: scores(0.7)}


def test_a_trial_is_trained_and_scored(trials):
    trial = trials.Trial("tokens(dim=16) >> gla(heads=1)", "mqar(pairs=2, length=8, vocab=16)", 3, batch=4, limit=32)
    found = trials.train(trial)
    assert found["validation"].keys() >= {"loss", "accuracy"} and 0 <= found["test"]["accuracy"] <= 1
    assert found["params"] > 0 and found["seconds"] > 0 and "guessing" in found["baselines"]


def test_every_finding_says_what_it_needs(claims):
    found = claims.findings()
    assert len(found) >= 12
    for name, finding in found.items():
        assert "arXiv" in finding.source and finding.source[-4:].isdigit() and finding.published, name
        assert bool(finding.contenders) != bool(finding.measure), name
        assert len(finding.seeds) >= 3, name
        for trial in finding.contenders.values():
            assert trial.data.partition("(")[0] in TASKS or trial.data in formwright.data.bundled_names(), name
            used = {node.name for node in walk(parse(trial.expression)) if isinstance(node, Part)}
            assert used <= set(parts.names()), name
            if trial.after:
                module, _, function = trial.after.partition(":")
                assert callable(getattr(importlib.import_module(module), function))


def made_up(claims, name, scores, more=None, params=None):
    """Results of a finding's contenders: a score of each by name, the same from every seed."""
    more, params = more or {}, params or {}

    def result(contender, score):
        measured = {key: (value,) * 3 for key, value in more.get(contender, {}).items()}
        return claims.Result(contender, (score,) * 3, measured, None, params.get(contender))

    return {contender: result(contender, score) for contender, score in scores.items()}


CASES = {
    "attention_degeneration": [
        ({"attention": 1.0, "with partial attention": 1.0},
         {"attention": {"copy_1": 0.8, "copy_4": 0.3}, "with partial attention": {"copy_1": 0.8, "copy_4": 0.75}}, 4),
        ({"attention": 1.0, "with partial attention": 0.5},
         {"attention": {"copy_1": 0.8, "copy_4": 0.75}, "with partial attention": {"copy_1": 0.8, "copy_4": 0.3}}, 0),
    ],
    "mqar_convolutions": [
        ({"attention": 0.99, "attention behind a convolution": 0.99, "gated convolution": 0.02, "hyena": 0.02}, {}, 4),
        ({"attention": 0.99, "attention behind a convolution": 0.5, "gated convolution": 0.9, "hyena": 0.02}, {}, 2),
    ],
    "induction_needs_two_layers": [
        ({"two layers": 0.99, "one layer": 0.15}, {}, 2),
        ({"two layers": 0.5, "one layer": 0.5}, {}, 0),
    ],
    "hybrid_recall": [
        ({"none of 4": 0.1, "1 of 4": 0.5, "2 of 4": 0.9, "4 of 4": 0.9}, {}, 4),
        ({"none of 4": 0.9, "1 of 4": 0.5, "2 of 4": 0.4, "4 of 4": 0.3}, {}, 0),
    ],
    "softmax_sinks": [
        ({"softmax": 1.6, "ReLU": 1.6},
         {"softmax": {"sink": 0.8, "sink_at_triggers": 0.0, "trigger_loss": 0.01, "idle": 0},
          "ReLU": {"sink": 0.0, "sink_at_triggers": 0.0, "trigger_loss": 0.01, "idle": 1}}, 4),
        ({"softmax": 1.6, "ReLU": 1.6},
         {"softmax": {"sink": 0.1, "sink_at_triggers": 0.0, "trigger_loss": 0.01, "idle": 0},
          "ReLU": {"sink": 0.6, "sink_at_triggers": 0.0, "trigger_loss": 0.01, "idle": 0}}, 2),
    ],
    "grokking": [
        ({"weight decay 1": 1.0, "no weight decay": 0.4},
         {"weight decay 1": {"trained_by": 200.0, "validated_by": 400.0},
          "no weight decay": {"trained_by": 200.0, "validated_by": math.inf}}, 5),
        ({"weight decay 1": 1.0, "no weight decay": 0.4},
         {"weight decay 1": {"trained_by": 200.0, "validated_by": 210.0},
          "no weight decay": {"trained_by": math.inf, "validated_by": math.inf}}, 3),
    ],
    "inverse_permutation": [
        ({"decoder only": 0.1, "with scratch tokens": 1.0, "encoder-decoder": 1.0},
         {c: {"letters": 0.66} for c in ("decoder only", "with scratch tokens", "encoder-decoder")}, 4),
        ({"decoder only": 0.9, "with scratch tokens": 0.5, "encoder-decoder": 1.0},
         {c: {"letters": 0.95} for c in ("decoder only", "with scratch tokens", "encoder-decoder")}, 1),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "case"), [(name, i) for name, cases in CASES.items() for i in range(len(cases))])
def test_conditions_hold_for_what_was_published_and_not_for_its_opposite(claims, name, case):
    found, more, holding = CASES[name][case]
    conditions = claims.findings()[name].judge(made_up(claims, name, found, more))
    assert sum(c.holds for c in conditions) == holding
    assert len(conditions) == CASES[name][0][2]


@pytest.mark.parametrize("published", [True, False])
def test_the_conditions_of_findings_of_many_contenders(claims, published):
    every = claims.findings()
    copying, parity, dense, state = (
        importlib.import_module(f"claims.{n}")
        for n in ("selective_copying", "parity_eigenvalues", "dense_series", "state_bounds_recall")
    )
    good, bad = (0.99, 0.2) if published else (0.2, 0.99)
    found = dict.fromkeys(copying.SELECTIVE, good) | dict.fromkeys(copying.INVARIANT, bad)
    assert [c.holds for c in copying.judge(made_up(claims, "", found))] == [published] * 5
    found = dict.fromkeys((*parity.SOLVING, *parity.FAILING), 0.9)
    scaled = dict.fromkeys(parity.SOLVING, 0.98 if published else 0.3) | dict.fromkeys(parity.FAILING, 0.02)
    more = {name: {"scaled_49_96": value} for name, value in scaled.items()}
    held = [c.holds for c in parity.judge(made_up(claims, "", found, more))]
    assert held == [published] * len(parity.SOLVING) + [True] * len(parity.FAILING)
    found = {
        name: 1.0 if name.startswith("attention") or published else 1.2 for name in every["dense_series"].contenders
    }
    assert [c.holds for c in dense.judge(made_up(claims, "", found))] == [published] * 4
    found = {name: 0.9 if ("large" in name) == published else 0.3 for name in state.NAMES} | {"attention": 0.95}
    more = {name: {"state_bytes": 4000 if "large" in name else 500} for name in state.NAMES}
    held = [c.holds for c in state.judge(made_up(claims, "", found, more))]
    assert held == [published] * 3 + [True] + [published]


def test_the_conditions_of_findings_about_time(claims):
    wide = importlib.import_module("claims.wide_latency")
    found = made_up(claims, "", {wide.DEEP: 30.0, wide.WIDE: 10.0}, params={wide.DEEP: 100, wide.WIDE: 48})
    assert [c.holds for c in wide.judge(found)] == [True] * 3
    found = made_up(claims, "", {wide.DEEP: 15.0, wide.WIDE: 10.0}, params={wide.DEEP: 100, wide.WIDE: 70})
    assert [c.holds for c in wide.judge(found)] == [True, False, False]
    pair = importlib.import_module("claims.encoder_latency")
    names = [f"{model}, {what}" for model in (pair.PAIR, pair.ALONE) for what in ("first token", "further tokens")]
    found = made_up(claims, "", dict(zip(names, (50.0, 2.0, 100.0, 5.0), strict=True)), params=dict.fromkeys(names, 9))
    assert [c.holds for c in pair.judge(found)] == [True, True, True, True, False]


def test_rank_correlation(claims):
    correlation = importlib.import_module("claims.state_bounds_recall").correlation
    assert correlation([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.9]) == pytest.approx(1)
    assert correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert correlation([1, 1, 2, 2], [1, 2, 1, 2]) == pytest.approx(0) and correlation([1, 1], [1, 2]) == 0


def test_verdicts_and_tables(command, claims, finding, tmp_path):
    holds, fails = (claims.Condition("c", "1", value) for value in (True, False))
    assert command.verdict([holds, holds]) == "reproduced" and command.verdict([fails]) == "not reproduced"
    assert command.verdict([holds, fails]) == "in part (1 of 2)"
    found = [claims.Result(name, (0.5, 0.7), {"m": (1.0, 2.0)}, 0.1, 5, 3.0) for name in finding.contenders]
    row = command.line("x", finding, found, [holds, fails], "in part (1 of 2)")
    assert row["conditions"] == "[x] c: 1; [ ] c: 1" and row["seeds"] == 2 and row["cpu_seconds"] == 6.0
    each = command.lines("x", finding, found)
    assert (
        [r["contender"] for r in each] == ["a", "b"] and each[0]["scores"] == "0.5 0.7" and each[0]["more"] == "m 1 2"
    )
    path = tmp_path / "findings.csv"
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, ["finding", "verdict"])
        table.writeheader()
        table.writerows([{"finding": "x", "verdict": "old"}, {"finding": "a", "verdict": "kept"}])
    merged = command._merged(path, [{"finding": "x", "verdict": "new"}])
    assert [(r["finding"], r["verdict"]) for r in merged] == [("a", "kept"), ("x", "new")]


def test_quick_runs_are_short_and_of_one_seed(command, claims):
    for finding in claims.findings().values():
        small = command.quick(finding)
        assert len(small.seeds) == 1 and all(t.steps <= 20 and t.limit == 64 for t in small.contenders.values())


def test_unknown_findings_are_named(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["findings.py", "grokkin"])
    with pytest.raises(SystemExit):
        command.main()
    assert "did you mean grokking?" in capsys.readouterr().err
