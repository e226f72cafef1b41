"""Derived figures: spreads, Pareto fronts, which split and which length rank, figures for people."""

from __future__ import annotations

import fake_races
import pytest

from formwright.race import store
from formwright.report import curves, words
from formwright.report.figures import Spread, humanise, pareto_front, tabulate


@pytest.fixture(scope="module")
def races(tmp_path_factory):
    folder = tmp_path_factory.mktemp("races")
    return {make.__name__: fake_races.load(make, folder) for make in [*fake_races.RACES, fake_races.empty_race]}


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (2_034_112, "", "2.03M"), (999, "", "999"), (999_600, "", "1.00M"), (1_500_000_000, "", "1.50B"), (0, "", "0"),
        (12_400_000, "bytes", "12.4 MB"), (0, "bytes", "0 B"),
        (1_200_000_000, "bytes", "1.20 GB"), (999_900_000, "bytes", "1.00 GB"),
        (0.4213, "ms", "0.421"), (1453.2, "ms", "1,453"), (0.0, "ms", "0"), (0.9996, "ms", "1.00"),
        (4.21, "seconds", "4.21 s"), (59.7, "seconds", "1 min"), (252, "seconds", "4 min 12 s"),
        (7380, "seconds", "2 h 3 min"),
        (None, "", "–"), (float("nan"), "ms", "–"),
    ],
)  # fmt: skip
def test_humanise(value, unit, words):
    assert humanise(value, unit) == words


def test_spread_is_the_sample_deviation():
    assert Spread((1.0, 3.0)).mean == 2.0 and Spread((1.0, 3.0)).sd == pytest.approx(2**0.5)
    assert Spread((1.0,)).sd is None


def test_pareto_front():
    points = [(1.0, 10.0), (2.0, 5.0), (2.5, 6.0), (3.0, 1.0), (3.0, 2.0)]
    assert pareto_front(points, lower=True) == [True, True, False, True, False]
    assert pareto_front([(-q, c) for q, c in points], lower=False) == [True, True, False, True, False]
    # 2% cheaper is the same cost, so the worse score is beaten; 10% cheaper is not
    assert pareto_front([(1.0, 100.0), (1.1, 98.0)], lower=True) == [True, False]
    assert pareto_front([(1.0, 100.0), (1.1, 90.0)], lower=True) == [True, True]
    assert pareto_front([], lower=True) == []


def test_leaderboard_ranks_by_test_and_sets_failures_apart(races):
    table = tabulate(races["text_race"])
    assert table.rows[0].name == "gated_deltanet" and table.split == "test"
    means = [row.quality.mean for row in table.rows]
    assert means == sorted(means) and [row.rank for row in table.rows] == [1, 2, 3, 4]
    assert [(row.name, row.failure) for row in table.failed] == [("random", "the loss became NaN at step 9 <lr 0.01>")]
    assert table.places == {"forward": (8192, 2), "decode": (8192, 1)}
    assert not any("params" in row.fronts for row in table.rows), "matched parameters are no contest"
    accuracy = tabulate(races["image_race"])
    assert [row.name for row in accuracy.rows] == ["attention", "pooling", "identity"]
    assert accuracy.score(0.9531) == "95.31%" and accuracy.rows[0].quality.sd is None


def test_unfinished_race_is_ranked_on_validation_only(races):
    race = races["unfinished_race"]
    table = tabulate(race)
    assert table.split == "validation" and [row.rank for row in table.rows] == [1, 2, None]
    assert "validation" in words.verdict(race, table)[0] and "not finished" in words.progress(race)
    race.contenders[0].trials[-1].scores["test"] = {"bits_per_byte": 0.1}
    assert tabulate(race).split == "validation", "one contender's test score must not be set against others' validation"


def test_contenders_are_compared_at_a_length_all_reached(tmp_path):
    conn = store.open_store(tmp_path / "races.sqlite")
    race = store.create_race(conn, "x", options={}, machine={}, source={"metric": "loss"}, status="done")
    for name, lengths in (("a", (512, 8192)), ("b", (512,)), ("c", ())):
        store.add_contender(conn, race, name, text=name)
        for length in lengths:
            store.add_cost(conn, race, name, kind="forward", length=length, milliseconds=length / 100)
    table = tabulate(store.load_race(conn, race))
    assert table.places["forward"] == (512, 1)
    assert [row.costs["forward"] for row in table.rows] == [5.12, 5.12, None]


def test_some_seeds_lost_is_a_note_and_all_lost_a_failure(tmp_path):
    conn = store.open_store(tmp_path / "races.sqlite")
    race = store.create_race(conn, "x", options={}, machine={"cores": 2}, source={"metric": "loss"}, status="done")
    store.add_contender(conn, race, "a", text="a")
    trials = [store.add_trial(conn, race, "a", phase="main", seed=seed) for seed in range(2)]
    store.update_trial(conn, trials[0], status="done", scores={"test": {"loss": 1.0}})
    store.update_trial(conn, trials[1], status="diverged", error="NaN at step 3", scores={"test": {"loss": 0.1}})
    store.add_cost(conn, race, "a", kind="forward", length=8, milliseconds=1, load=5.0)
    tree = store.load_race(conn, race)
    table = tabulate(tree)
    assert table.rows[0].quality.values == (1.0,), "a diverged seed has no score"
    notes = words.notes(tree, table)
    assert notes[0] == "a: 1 of 2 seeds gave no result (NaN at step 3)." and "busy machine (load 5.0 on 2" in notes[1]
    store.update_trial(conn, trials[0], status="failed", error="killed")
    assert tabulate(store.load_race(conn, race)).failed[0].failure == "killed; NaN at step 3"


def test_verdict_calls_a_tie_a_tie(races):
    tie = words.verdict(races["forecast_race"], tabulate(races["forecast_race"]))
    assert any("call it a tie" in sentence for sentence in tie)
    clear = words.verdict(races["text_race"], tabulate(races["text_race"]))
    assert any("more than the seeds vary" in sentence for sentence in clear)
    single = words.verdict(races["image_race"], tabulate(races["image_race"]))
    assert any("with one seed" in sentence for sentence in single)
    assert words.verdict(races["empty_race"], tabulate(races["empty_race"])) == ["No contender has a score yet."]


def test_command_is_the_one_kept_or_made_of_the_options(races):
    assert words.command(races["text_race"]).endswith("--budget 10m --size 2M --seeds 3")
    made = words.command(races["crowded_race"])
    assert "'attention(heads=8, window=256, position=rope)'" in made and "--match params" in made


def test_curves_average_seeds_where_they_reach(tmp_path):
    conn = store.open_store(tmp_path / "races.sqlite")
    race = store.create_race(conn, "x", options={}, machine={}, source={"metric": "loss"})
    store.add_contender(conn, race, "a", text="a")
    for seed, values in enumerate([(3.0, 2.0, 1.0), (5.0, 4.0)]):
        trial = store.add_trial(conn, race, "a", phase="main", seed=seed)
        rows = [(i, 10 * i, float(i), "validation", "loss", value) for i, value in enumerate(values, 1)]
        store.add_points(conn, trial, [*rows, (9, 90, 9.0, "validation", "loss", float("nan"))])
    lines = curves.lines(tabulate(store.load_race(conn, race)), "validation", "loss")
    assert [(p["tokens"], p["mean"], p["low"], p["high"]) for p in lines] == [
        (10, 4.0, 3.0, 5.0), (20, 3.0, 2.0, 4.0), (30, 1.0, 1.0, 1.0),
    ]  # fmt: skip
