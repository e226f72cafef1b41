"""The cost suite: who is measured and how, what its rows say, and a small real measurement."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest
import torch

from formwright.bench import cost
from formwright.bench.cost_contenders import models
from formwright.bench.cost_report import record, rendered, write_csv, write_png
from formwright.bench.work import ready, work
from formwright.contract import Unsupported
from formwright.lang import SyntaxProblem
from formwright.race import store
from formwright.race.contenders import RaceProblem


def small(texts, **options):
    options = {"longest": 64, "match": "params", "size": None, "dim": 32, "depth": 1} | options
    return models(texts, device="cpu", dtype=torch.float32, **options)


def test_contenders_are_alone_and_equal_in_parameters():
    made, contenders, notes = small(["gla", "linear_attention"])
    assert list(made) == ["attention", "gla", "linear_attention"] and not any(c["error"] for c in contenders)
    assert "swiglu" not in " ".join(c["expression"] for c in contenders)
    assert {c["baseline"] for c in contenders} == {"attention"}
    params = [c["params"] for c in contenders]
    assert max(params) / min(params) < 1.1 or notes
    assert contenders[0]["dim"] == 32 and contenders[1]["claimed"] == {"time": "N", "state": "1"}


def test_equal_width_and_equal_state():
    made, *_ = small(["gla", "hyena"], match="width")
    assert {m.dim for m in made.values()} == {32}
    made, *_ = small(["retention"], match="state", dim=64)
    state = {name: model.cost((64,)).state_bytes for name, model in made.items()}
    assert state["retention"] == pytest.approx(state["attention"], rel=0.15)


def test_what_looks_both_ways_is_held_against_attention_that_does():
    made, contenders, notes = small(["fourier", "gla"])
    baseline = {c["name"]: c["baseline"] for c in contenders}
    assert baseline["fourier"] == "attention (both ways)" and baseline["gla"] == "attention"
    assert made["gla"].causal and not made["fourier"].causal and not made["attention (both ways)"].causal
    # fourier has no weights to be made equal by
    assert made["fourier"].dim == 32 and any(note.startswith("fourier would need") for note in notes)


def test_a_misspelt_option_is_refused_at_once():
    with pytest.raises(SyntaxProblem, match="no option 'haeds'"):
        small(["gla(haeds=2)"])


def test_one_that_cant_be_built_says_so_and_the_others_run():
    made, contenders, _ = small(["gla(heads=7)", "linear_attention"], match="width")
    (failed,) = [c for c in contenders if c["error"]]
    assert failed["name"] == "gla(heads=7)" and "linear_attention" in made


@pytest.mark.parametrize("kind", ["forward", "training", "prefill", "decode"])
def test_kinds_of_work(kind):
    (model, *_) = small([])[0].values()
    with ready([model], kind):
        task = work(model, kind, 16, batch=2)
        for _ in range(2):
            if task.before:
                task.before()
            task.call()
        grads = [p.grad is not None for p in model.parameters()]
        assert all(grads) if kind == "training" else not any(grads)
        tokens = task.state()["tokens"] if task.state else None
        assert tokens == {"forward": None, "training": None, "prefill": 16, "decode": 18}[kind]
    assert not any(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match="kind is one of"):
        work(model, "sleep", 16)


def test_a_model_that_cannot_extend_refuses_to_prefill():
    model = small(["fourier"])[0]["fourier"]
    with pytest.raises(Unsupported):
        work(model, "prefill", 8)


def test_an_encoder_decoder_is_measured_with_a_source():
    text = "encoder_decoder(attention + swiglu, attention + cross(attention) + swiglu)"
    found = cost.cost_suite([text], lengths=(8, 16), dim=32, depth=1, seconds=1e6, longest_call=1e6, repeats=3)
    (name,) = [c["name"] for c in found.contenders if c["name"] != "attention"]
    assert {row["kind"] for row in found.rows if row["contender"] == name} == {
        "forward",
        "training",
        "prefill",
        "decode",
    }


@pytest.fixture(scope="module")
def found():
    told = []
    costs = cost.cost_suite(
        ["linear_attention", "fourier"], lengths=(64, 768), batches=(1, 2), dim=32, depth=1, seconds=1e6,
        longest_call=1e6, repeats=3, match="width", on_row=told.append,
    )  # fmt: skip
    assert told == costs.rows
    return costs


def test_rows_say_everything_and_where_it_was_measured(found):
    names = {
        "contender", "kind", "length", "batch", "milliseconds", "low", "high", "tokens_per_second", "peak_bytes",
        "state_bytes", "macs", "bytes", "intensity", "params", "dim", "load", "device", "threads", "dtype", "os",
        "formwright", "torch", "python",
    }  # fmt: skip
    for row in found.rows:
        assert set(row) == names
        assert 0 < row["low"] <= row["milliseconds"] <= row["high"]
        tokens = row["batch"] * (1 if row["kind"] == "decode" else row["length"])
        assert row["tokens_per_second"] == pytest.approx(1e3 * tokens / row["milliseconds"])
        assert row["intensity"] == pytest.approx(2 * row["macs"] / row["bytes"])
        assert (row["torch"], row["threads"]) == (torch.__version__, torch.get_num_threads())
        assert (row["state_bytes"] is None) == (row["kind"] in ("forward", "training"))
    causal = {(k, n, b) for k in ("forward", "training", "prefill", "decode") for n in (64, 768) for b in (1, 2)}
    for name in ("attention", "linear_attention"):
        assert {(r["kind"], r["length"], r["batch"]) for r in found.rows if r["contender"] == name} == causal
    assert {r["kind"] for r in found.rows if r["contender"] == "fourier"} == {"forward", "training"}


def test_counts_grow_as_they_must(found):
    grown = {(row["contender"], row["kind"], row["batch"]): row for row in found.grown}
    assert grown["linear_attention", "forward", 1]["macs"] == pytest.approx(1, abs=0.01)
    assert 1.3 < grown["attention", "forward", 1]["macs"] <= 2
    assert grown["attention", "decode", 1]["state_bytes"] == pytest.approx(1, abs=0.01)
    assert grown["linear_attention", "decode", 1]["state_bytes"] == pytest.approx(0, abs=0.01)
    one, two = (
        [r["macs"] for r in found.rows if r["batch"] == b and r["kind"] == "forward" and r["contender"] == "attention"]
        for b in (1, 2)
    )
    assert two == [2 * n for n in one]
    train = {r["length"]: r["macs"] for r in found.rows if r["kind"] == "training" and r["batch"] == 1}
    forward = {r["length"]: r["macs"] for r in found.rows if r["kind"] == "forward" and r["batch"] == 1}
    assert all(1.5 * forward[n] < train[n] <= 3.6 * forward[n] for n in train)


def test_all_tokens_take_longer_than_one_more(found):
    def at(kind):
        (row,) = [
            r for r in found.rows
            if (r["contender"], r["kind"], r["length"], r["batch"]) == ("attention", kind, 768, 1)
        ]  # fmt: skip
        return row

    # the lower quartiles, since other work on the machine only adds
    assert min(at("training")["low"], at("forward")["low"]) > at("decode")["low"]
    assert at("prefill")["state_bytes"] == at("decode")["state_bytes"]


def test_efficiency_lengths_are_told_of_everyone_but_the_baseline(found):
    told = {(row["contender"], row["kind"]) for row in found.efficiency if row["of"] == "milliseconds"}
    assert told == {
        *(("linear_attention", kind) for kind in ("forward", "training", "prefill")),
        *(("fourier", kind) for kind in ("forward", "training")),
    }
    for row in found.efficiency:
        assert 64 <= row["length"].length <= 768
        if row["of"] == "milliseconds" and not row["length"].never:
            assert row["earliest"].length <= row["length"].length
    # without weights and scores, 768 tokens are cheaper than attention's on any machine
    (fast,) = [r for r in found.efficiency if (r["contender"], r["kind"], r["batch"], r["of"]) == (
        "fourier", "training", 2, "milliseconds")]  # fmt: skip
    assert not fast["length"].never


def test_tables_files_and_the_store(found, tmp_path):
    from rich.console import Console

    console = Console(width=100, record=True, file=open(tmp_path / "out", "w"))  # noqa: SIM115
    console.print(rendered(found))
    text = console.export_text()
    assert "cheaper than attention" in text and "growth with N" in text and torch.__version__ in text
    rows, growth, efficiency = write_csv(found, tmp_path / "costs.csv")
    with rows.open() as stream:
        assert [r["contender"] for r in csv.DictReader(stream)] == [r["contender"] for r in found.rows]
    assert "from" in efficiency.read_text() or "never" in efficiency.read_text() or growth.stat().st_size
    assert write_png(found, tmp_path / "costs.png").stat().st_size > 10_000
    conn = store.open_store(tmp_path / "races.sqlite")
    race = store.load_race(conn, record(found, conn))
    measured = {c.name: c.costs for c in race.contenders}
    assert len(measured["attention"]) == 16 and {m.kind for m in measured["fourier"]} == {"forward", "training"}
    assert all(m.bytes > 0 and m.milliseconds > 0 for m in measured["attention"])
    assert race.source["growth"] == found.grown
    conn.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lengths": ()}, "lengths"),
        ({"batches": (0,)}, "batches"),
        ({"match": "time"}, "match is one of"),
        ({"kinds": ("nap",)}, "kinds are among"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(RaceProblem, match=words):
        cost.cost_suite(["gla"], **options)


def test_when_the_time_is_up_the_rest_is_left_out_and_said():
    found = cost.cost_suite([], lengths=(16, 32), dim=16, depth=1, kinds=("forward",), seconds=-1.0)
    assert found.rows == [] and any("time was up" in note for note in found.notes)
    found = cost.cost_suite(
        [], lengths=(16, 4096), dim=16, depth=1, kinds=("forward",), longest_call=1e-9, repeats=3
    )  # fmt: skip
    assert {r["length"] for r in found.rows} == {16}
    assert any("measured up to 16 tokens: time" in note for note in found.notes)


def test_the_command_prints_tables(tmp_path):
    command = [sys.executable, "-m", "formwright.cli", "cost", "linear_attention", "--lengths", "16", "--dim", "16"]
    command += ["--kinds", "forward,decode", "--seconds", "20", "--csv", str(tmp_path / "out.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cheaper than attention" in done.stdout
    assert "never up to 16" in done.stdout or "from 16" in done.stdout
    assert (tmp_path / "out.csv").is_file()
    wrong = [*command[:4], "gla", "--batch", "none"]
    done = subprocess.run(wrong, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--batch takes numbers" in done.stderr
