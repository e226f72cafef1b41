"""Whole races, small ones: results, files, divergence, deaths, kills and resumes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import MINE, OPTIONS, small_race, words

from formwright import data
from formwright.build import build
from formwright.data import DataError
from formwright.race import generate, predict, race, store, trained
from formwright.race.contenders import RaceProblem
from formwright.race.samples import samples


def load(folder, race_id):
    conn = store.open_store(folder / "runs" / "races.sqlite")
    loaded = store.load_race(conn, race_id)
    conn.close()
    return loaded


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One race with everything in it: a sweep, two seeds, a user's mixers, one that explodes, one that can't be."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "mine.py").write_text(MINE)
    events = []
    texts = ["attention", f"{folder}/mine.py:Mine", f"{folder}/mine.py:Exploding", "fourier"]
    options = {"budget": "48steps", "seeds": 2, "lr": "auto", "measure": True, "name": "first", "workers": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("formwright.race.phases.MEASURE_SECONDS", 1.0)
        assert small_race(folder, texts, events=events, **options) == "first"
    (folder / "mine.py").unlink()  # the race's own copy has to do from here on
    return folder, load(folder, "first"), events


def test_every_contender_is_scored_or_has_its_reason(finished):
    _, loaded, _ = finished
    attention, mine, exploding, fourier = loaded.contenders
    assert loaded.status == "done" and loaded.finished
    assert [c.name for c in loaded.contenders] == ["attention", "mine", "exploding", "fourier"]
    assert "causal" in fourier.error and not fourier.trials
    assert "no learning rate of its sweep gave a score" in exploding.error and "diverged" in exploding.error
    assert {t.status for t in exploding.trials} == {"diverged"}
    for contender in (attention, mine):
        main = [t for t in contender.trials if t.phase == "main"]
        assert [(t.seed, t.status, t.steps, t.attempts) for t in main] == [(0, "done", 48, 1), (1, "done", 48, 1)]
        for trial in main:
            assert trial.tokens == 48 * 128 and trial.tokens_per_second > 0
            for split in ("validation", "test"):
                assert 0 < trial.scores[split]["bits_per_byte"] < 8
            losses = [p for p in trial.points if p.split == "train"]
            assert [p.step for p in losses] == list(range(1, 49)) and losses[-1].value < losses[0].value
            assert max(p.step for p in trial.points if p.split == "validation") == 48
        assert main[0].scores != main[1].scores
    assert abs(mine.params / attention.params - 1) <= 0.03


def test_the_rate_is_the_best_on_validation_and_only_main_runs_touch_test(finished):
    _, loaded, _ = finished
    for contender in loaded.contenders[:2]:
        swept = [t for t in contender.trials if t.phase == "sweep"]
        assert len(swept) == 4 and all("test" not in t.scores for t in swept)
        best = min(swept, key=lambda t: t.scores["validation"]["bits_per_byte"])
        assert {t.lr for t in contender.trials if t.phase == "main"} == {best.lr}
    assert any("25% of its training" in note for note in loaded.options["notes"])


def test_models_on_disk_compute_and_bring_their_users_part_along(finished):
    folder, loaded, _ = finished
    model, source, name = trained("first", contender="mine", runs=folder / "runs")
    assert name.startswith("mine, seed ")
    scored = min(t.scores["validation"]["bits_per_byte"] for t in loaded.contenders[1].trials if t.phase == "main")
    from formwright.train import evaluate

    items = json.loads((folder / "runs/first/plan.json").read_text())["items"]["validation"]
    again = evaluate(model, source, "validation", 4, items)["bits_per_byte"]
    assert again == pytest.approx(scored, rel=1e-4)
    for seed in (0, 1):
        place = folder / "runs/first/mine" / f"seed{seed}"
        assert (place / "model.safetensors").is_file() and (place / "mine.py").is_file()
        assert all(json.loads(line) for line in (place / "log.jsonl").read_text().splitlines())


def test_costs_are_measured_and_samples_kept(finished):
    _, loaded, _ = finished
    attention, mine, *_ = loaded.contenders
    assert {c.kind for c in attention.costs} == {"forward", "decode"}
    assert {c.kind for c in mine.costs} == {"forward"}  # it has no state to decode with, and a note says so
    assert any(note.startswith("mine: its decoding") for note in loaded.options["notes"])
    assert all(c.milliseconds > 0 and c.macs > 0 for c in attention.costs)
    assert [s.kind for s in attention.samples] == ["text", "text"]
    assert attention.samples[0].content["prompt"] and attention.samples[0].content["generated"]


def test_events_tell_the_whole_story(finished):
    _, _, events = finished
    kinds = [e["event"] for e in events]
    assert kinds[0] == "race" and kinds[-1] == "end" and events[-1]["status"] == "done"
    assert [e["phase"] for e in events if e["event"] == "phase"] == ["sweep", "main", "measure"]
    step = next(e for e in events if e["event"] == "step" and e["phase"] == "main")
    assert {"trial", "contender", "seed", "lr", "step", "steps", "loss", "tokens_per_second"} <= step.keys()


def test_generating(finished):
    folder, _, _ = finished
    model, source, _ = trained("first", contender="attention", runs=folder / "runs")
    said = generate(model, source, "alpha be", 12, seed=1)
    assert said == generate(model, source, "alpha be", 12, seed=1)
    assert generate(model, source, "alpha be", 12, temperature=0) == generate(
        model, source, "alpha be", 12, temperature=0.8, top_k=1, seed=5
    )
    ids = source.encode("alpha be")
    likeliest = []
    for _ in range(12):
        likeliest.append(int(model(torch.tensor([ids + likeliest]))[0, -1].argmax()))
    assert generate(model, source, "alpha be", 12, temperature=0) == source.decode(likeliest)
    grown = []
    assert generate(model, source, "", 4, seed=2, on_text=grown.append) == grown[-1] and len(grown) == 4
    for wrong in ({"tokens": 0}, {"temperature": -1.0}, {"top_k": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            generate(model, source, "a", **{"tokens": 2, **wrong})


def test_a_users_mixer_without_a_state_generates_too(finished):
    folder, _, _ = finished
    model, source, _ = trained("first", contender="mine", runs=folder / "runs")
    assert len(source.encode(generate(model, source, "alpha", 5, temperature=0))) >= 5


def test_predicting_a_text_gives_its_bits(finished, tmp_path):
    folder, _, _ = finished
    model, source, _ = trained("first", contender="attention", runs=folder / "runs")
    (tmp_path / "new.txt").write_text("gamma delta " * 6)
    (tmp_path / "empty.txt").write_text("")
    rows = predict(model, source, str(tmp_path / "new.txt"))
    assert [r["offset"] for r in rows] == list(range(72)) and "".join(r["token"] for r in rows) == "gamma delta " * 6
    ids = source.encode("gamma delta " * 6)
    with torch.no_grad():
        logits = model(torch.tensor([[0, *ids[:9]]]))[0, 9].log_softmax(-1)
    assert rows[9]["bits"] == pytest.approx(-float(logits[ids[9]]) / math.log(2), rel=1e-4)
    for missing in ("none.txt", "empty.txt"):
        with pytest.raises(DataError):
            predict(model, source, str(tmp_path / missing))


def test_asking_for_what_is_not_there(finished):
    folder, _, _ = finished
    runs = folder / "runs"
    with pytest.raises(RaceProblem, match="names 0 contenders"):
        trained("first", contender="nobody", runs=runs)
    with pytest.raises(RaceProblem, match="no finished run of exploding"):
        trained("first", contender="exploding", runs=runs)
    with pytest.raises(RaceProblem, match="is finished"):
        race(resume="first", runs=runs)
    with pytest.raises(RaceProblem, match="leave them out"):
        race(["attention"], "x", resume="first", runs=runs)


@pytest.mark.parametrize(
    ("options", "words_in_error"),
    [
        ({"match": "size"}, "match is params, macs, state or time"),
        ({"engine": "slurm"}, "engine is local or ray"),
        ({"seeds": 0}, "seeds is 0"),
        ({"budget": "soon"}, "no budget"),
        ({"size": "big"}, "is no size"),
        ({"name": "../x"}, "can't be a folder's"),
    ],
)
def test_misuse_is_answered_before_anything_is_written(tmp_path, options, words_in_error):
    with pytest.raises(ValueError, match=words_in_error):
        small_race(tmp_path, ["pooling"], **options)
    assert not (tmp_path / "runs").exists()


def test_a_rate_far_too_high_is_reported_as_diverged(tmp_path):
    name = small_race(tmp_path, ["attention"], budget="120steps", lr=1e6)
    (trial,) = load(tmp_path, name).contenders[0].trials
    assert trial.status == "diverged" and "training diverged" in trial.error and "learning rate" in trial.error


def test_a_dead_worker_is_replaced_once(tmp_path):
    pids, killed = {}, []

    def kill(event):
        if event["event"] == "started":
            pids[event["trial"]] = event["pid"]
        once = event["event"] == "step" and event["contender"] == "pooling" and event["step"] == 8 and not killed
        if once or (event["event"] == "started" and event["contender"] == "attention"):
            killed.append(event["contender"])
            os.kill(pids[event["trial"]], signal.SIGKILL)

    name = small_race(tmp_path, ["pooling", "attention"], on_event=kill, budget="20steps", workers=1)
    pooling, attention = (c.trials[0] for c in load(tmp_path, name).contenders)
    assert killed == ["pooling", "attention", "attention"]
    assert (pooling.status, pooling.attempts, len([p for p in pooling.points if p.split == "train"])) == ("done", 2, 20)
    assert (attention.status, attention.attempts) == ("failed", 2)
    assert "SIGKILL" in attention.error and "memory" in attention.error


SCRIPT = """
import json, signal, sys
from formwright.race import race
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have told its background jobs to ignore it
options = json.loads(sys.argv[1])
race(on_event=lambda e: print(json.dumps(e, default=str), flush=True), **options)
"""


def run_until(options, step):
    """Start a race in a process of its own, and read its events until a run is past that step."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(options)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pids = set()
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "started":
            pids.add(event["pid"])
        if event["event"] == "step" and event["step"] >= step:
            return process, pids
    raise AssertionError(process.stderr.read())


def gone(pid):
    for _ in range(100):
        # A zombie, whose parent has not asked for it yet, has ended too.
        status = Path(f"/proc/{pid}/stat")
        try:
            os.kill(pid, 0)
            if status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.1)
    return False


def test_stopped_killed_and_resumed_to_the_same_bits(tmp_path):
    options = {**OPTIONS, "runs": str(tmp_path / "runs"), "budget": "600steps", "workers": 1, "threads": 1}
    options |= {"name": "broken", "checkpoint_every": 0.5, "contenders": ["attention"], "data_spec": words(tmp_path)}

    process, pids = run_until(options, 20)
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(timeout=60) != 0 and all(map(gone, pids))
    loaded = load(tmp_path, "broken")
    assert loaded.status == "interrupted" and loaded.contenders[0].trials[0].status == "interrupted"

    process, pids = run_until({"resume": "broken", "runs": options["runs"]}, 60)
    with pytest.raises(RaceProblem, match="under way in another process"):
        race(resume="broken", runs=options["runs"])
    process.kill()
    process.wait()
    assert all(map(gone, pids)), "workers outlive the race"

    assert race(resume="broken", runs=options["runs"]) == "broken"
    whole = race(**{**options, "name": "whole"})
    (broken_trial,), (whole_trial,) = (load(tmp_path, r).contenders[0].trials for r in ("broken", whole))
    assert broken_trial.status == "done" and broken_trial.attempts == 3
    assert broken_trial.scores == whole_trial.scores
    curves = [[(p.step, p.split, p.score, p.value) for p in t.points] for t in (broken_trial, whole_trial)]
    assert curves[0] == curves[1]
    weights = [load_file(tmp_path / "runs" / r / "attention/seed0/model.safetensors") for r in ("broken", "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.parametrize(
    ("spec", "kind", "keys"),
    [
        ("digits", "image", {"png", "truth", "predicted", "confidence"}),
        ("macro", "forecast", {"history", "truth", "forecast", "names"}),
        ("diabetes", "table", {"truth", "predicted", "name"}),
        ("copying", None, set()),
    ],
)
def test_samples_of_other_kinds_of_data(spec, kind, keys):
    source = data.open(spec)
    model = build("pooling + mlp", source, dim=16)
    made = samples(model, source)
    assert {k for k, _ in made} == ({kind} if kind else set())
    for _, content in made:
        assert content.keys() == keys
        json.dumps(content)
    if kind == "forecast":
        content, batch = made[0][1], next(source.evaluation("test", 1, 3))
        expected = source.unscale(batch.targets[0])[:, : len(content["names"])]
        assert content["truth"] == pytest.approx(expected, nan_ok=True)
    if kind == "image":
        assert all(content["truth"] != content["predicted"] for _, content in made)


def test_widths_of_equal_measured_time(tmp_path):
    options = {"budget": "2steps", "match": "time", "size": "100k", "workers": 1}
    events = []
    loaded = load(tmp_path, small_race(tmp_path, ["attention", "pooling"], events=events, **options))
    attention, pooling = loaded.contenders
    assert [t.status for c in (attention, pooling) for t in c.trials] == ["done", "done"]
    # Which width a busy machine's times ask for can't be said: tests/race/test_size.py gives times and looks at widths.
    assert attention.params == pytest.approx(100_000, rel=0.05) and pooling.dim > 0
    assert [e["phase"] for e in events if e["event"] == "phase"] == ["size", "main"]
