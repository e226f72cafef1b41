from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tiny_training import TinyModel, TinySource, same_bits, weights

from formwright.train import CheckpointError, checkpoint, fit
from formwright.train.interrupt import Interrupt

HERE = Path(__file__).parent
OPTIONS = {"steps": 20, "batch_size": 8, "evaluate_every": 4}


def stopping_at(step, error):
    def listen(event):
        if event["event"] == "step" and event["step"] == step:
            raise error

    return listen


def test_killed_at_random_moments_and_resumed_it_ends_in_the_same_bits(tmp_path):
    paths = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(HERE / "kill_training.py"), str(tmp_path), "10"],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["killed"] >= 6 and answer["places"] >= 4, answer
    assert answer["same"] and answer["fit"] and answer["left"] == 1, answer


def test_interrupted_at_every_step_it_ends_in_the_same_bits(tmp_path):
    whole = TinyModel()
    expected = fit(whole, TinySource(), **OPTIONS)
    for step in range(1, 20):
        with pytest.raises(KeyboardInterrupt):
            listen = stopping_at(step, KeyboardInterrupt())
            fit(TinyModel(seed=step), TinySource(), **OPTIONS, folder=tmp_path, resume=True, on_event=listen) if (
                step > 1
            ) else fit(TinyModel(), TinySource(), **OPTIONS, folder=tmp_path, on_event=listen)
    model = TinyModel(seed=99)
    result = fit(model, TinySource(), **OPTIONS, folder=tmp_path, resume=True)
    assert same_bits(weights(model), weights(whole))
    assert [(e["step"], e["loss"]) for e in result.evaluations] == [
        (e["step"], e["loss"]) for e in expected.evaluations
    ]
    assert [(p["step"], p["loss"]) for p in result.curve] == [(p["step"], p["loss"]) for p in expected.curve]
    assert result.tokens == expected.tokens and result.scores == expected.scores


def test_interrupted_inside_an_evaluation_it_is_done_again(tmp_path):
    source = TinySource()
    evaluation, calls = source.evaluation, []

    def breaking(split, size, limit=None):
        calls.append(split)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluation(split, size, limit)

    source.evaluation = breaking
    with pytest.raises(KeyboardInterrupt):
        fit(TinyModel(), source, **OPTIONS, folder=tmp_path)
    result = fit(TinyModel(seed=3), source, **OPTIONS, folder=tmp_path, resume=True)
    assert [e["step"] for e in result.evaluations] == [4, 8, 12, 16, 20]


def test_a_finished_run_is_given_back(tmp_path):
    model = TinyModel()
    first = fit(model, TinySource(), **OPTIONS, folder=tmp_path)
    other, events = TinyModel(seed=5), []
    second = fit(other, TinySource(), **OPTIONS, folder=tmp_path, resume=True, on_event=events.append)
    assert second == first and same_bits(weights(model), weights(other))
    assert [event["event"] for event in events] == ["start", "end"]


def test_a_time_budget_is_measured_once(tmp_path):
    options = {"steps": "0.5s", "batch_size": 8, "evaluate_every": 7}
    with pytest.raises(KeyboardInterrupt):
        fit(TinyModel(), TinySource(), **options, folder=tmp_path, on_event=stopping_at(5, KeyboardInterrupt()))
    planned = checkpoint.read(checkpoint.latest(tmp_path))[1]["fit"]["steps"]
    model, whole = TinyModel(seed=1), TinyModel()
    assert fit(model, TinySource(), **options, folder=tmp_path, resume=True).step == planned
    fit(whole, TinySource(), **{**options, "steps": planned})
    assert same_bits(weights(model), weights(whole))


def test_an_old_run_is_not_overwritten(tmp_path):
    fit(TinyModel(), TinySource(), **OPTIONS, folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"already holds a run.*resume=True"):
        fit(TinyModel(), TinySource(), **OPTIONS, folder=tmp_path)


def test_another_recipe_model_or_data_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(TinyModel(), TinySource(), **OPTIONS, folder=tmp_path, on_event=stopping_at(3, KeyboardInterrupt()))
    go_on = {**OPTIONS, "folder": tmp_path, "resume": True}
    with pytest.raises(CheckpointError, match=r"lr was 0.001 and is 0.002"):
        fit(TinyModel(), TinySource(), **go_on, lr=0.002)
    with pytest.raises(CheckpointError, match="steps was '20steps' and is '30steps'"):
        fit(TinyModel(), TinySource(), **{**go_on, "steps": 30})
    with pytest.raises(CheckpointError, match="data was 'tiny-1' and is 'other'"):
        fit(TinyModel(), TinySource(fingerprint="other"), **go_on)
    with pytest.raises(CheckpointError, match=r"of another model: phase is \(16,\) there"):
        fit(TinyModel(dim=8), TinySource(), **go_on)


def test_other_threads_are_told(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(TinyModel(), TinySource(), **OPTIONS, folder=tmp_path, on_event=stopping_at(3, KeyboardInterrupt()))
    events, threads = [], torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        fit(TinyModel(), TinySource(), **OPTIONS, folder=tmp_path, resume=True, on_event=events.append)
    finally:
        torch.set_num_threads(threads)
    assert any("agree to rounding" in event.get("text", "") for event in events)


def test_a_broken_checkpoint_is_named(tmp_path):
    path = checkpoint.write(tmp_path, {"model": {"w": torch.ones(3)}}, {"step": 1})
    (path / "model.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(CheckpointError, match=r"checkpoint-00000000 cannot be read .*remove that folder"):
        checkpoint.read(path)
    (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read(path)


def test_tensors_come_back_as_they_were(tmp_path):
    model = TinyModel()
    path = checkpoint.write(tmp_path, {"model": checkpoint.model_tensors(model)}, {})
    other = TinyModel(seed=1)
    assert not same_bits(weights(model), weights(other))
    checkpoint.copy_tensors(checkpoint.read(path)[0]["model"], checkpoint.model_tensors(other))
    assert same_bits(weights(model), weights(other))
    assert "head.weight" not in checkpoint.model_tensors(model)  # one tensor with embed.weight: kept once


@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace"])
def test_a_write_broken_anywhere_leaves_the_last_one_whole(tmp_path, monkeypatch, call):
    def state():
        return checkpoint.read(checkpoint.latest(tmp_path))[1]["step"]

    def failing(original, after):
        left = [after]

        def run(*args, **kwargs):
            if left[0] == 0:
                raise OSError(28, "No space left on device")
            left[0] -= 1
            return original(*args, **kwargs)

        return run

    tensors = {"model": {"w": torch.ones(3)}, "optimizer": {"m": torch.ones(2)}}
    checkpoint.write(tmp_path, tensors, {"step": 0})
    for after in range({"mkdir": 2, "fsync": 4, "replace": 1}[call]):
        with monkeypatch.context() as patch:
            target = Path if call == "mkdir" else os
            patch.setattr(target, call, failing(getattr(target, call), after))
            with pytest.raises(CheckpointError, match=r"No space left on device.*free some space"):
                checkpoint.write(tmp_path, tensors, {"step": 1})
        assert state() == 0 and len(list(tmp_path.iterdir())) == 1
    checkpoint.write(tmp_path, tensors, {"step": 2})
    assert state() == 2 and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_ends_the_run_with_a_sentence(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))  # smaller than the weights
    try:
        with pytest.raises(CheckpointError, match=r"cannot write a checkpoint into .*File too large"):
            fit(TinyModel(), TinySource(), **OPTIONS, folder=tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_that_cannot_be_is_told_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    events = []
    with pytest.raises(CheckpointError, match=r"cannot write a checkpoint into .*choose a folder"):
        fit(TinyModel(), TinySource(), **OPTIONS, folder=tmp_path / "file" / "run", on_event=events.append)
    assert not any(event["event"] == "step" for event in events)


def test_ctrl_c_waits_for_the_end_of_a_step(tmp_path):
    interrupt = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        interrupt.on_signal(2, None)
    interrupt.busy = True
    interrupt.on_signal(2, None)
    with pytest.raises(KeyboardInterrupt):
        interrupt.done()
    interrupt.busy = True
    with pytest.raises(KeyboardInterrupt):  # the second
        interrupt.on_signal(2, None)


def test_a_real_ctrl_c_leaves_a_checkpoint_to_go_on_from(tmp_path):
    options = {"steps": 300, "batch_size": 8, "checkpoint_every": None, "folder": tmp_path}
    threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
    steps = []
    with pytest.raises(KeyboardInterrupt):
        fit(
            TinyModel(),
            TinySource(),
            **options,
            on_event=lambda e: (steps.append(e["step"]), time.sleep(0.005)) if e["event"] == "step" else None,
        )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    state = checkpoint.read(checkpoint.latest(tmp_path))[1]["fit"]
    assert 0 < steps[-1] <= state["step"] <= steps[-1] + 1 < 300
    model, whole = TinyModel(seed=1), TinyModel()
    fit(model, TinySource(), **options, resume=True)
    fit(whole, TinySource(), steps=300, batch_size=8)
    assert same_bits(weights(model), weights(whole))
