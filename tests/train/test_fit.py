from __future__ import annotations

import io
import json
import random

import numpy
import pytest
import torch
from tiny_training import LENGTH, TinyModel, TinySource, same_bits, weights
from torch import nn

from formwright.contract import Norm
from formwright.train import calibrate, evaluate, fit, progress
from formwright.train.optimizer import adamw, undecayed


def test_it_learns_and_tells():
    events = []
    model, source = TinyModel(dropout=0.0), TinySource()
    before = evaluate(model, source, "validation")
    result = fit(model, source, steps=200, batch_size=16, lr=1e-2, on_event=events.append)
    assert result.stopped == "finished" and result.step == result.steps == 200
    assert result.tokens == 200 * 16 * LENGTH and result.seconds > 0
    assert result.scores["loss"] < 0.5 * before["loss"] and result.scores["accuracy"] > 0.5
    assert result.scores == evaluate(model, source, "validation", 16)
    assert evaluate(model, source, "test")["loss"] < 0.6 * before["loss"]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start" and kinds[-1] == "end" and kinds.count("step") == 200
    assert kinds.count("evaluation") == 10 and [e["step"] for e in result.evaluations] == list(range(20, 201, 20))
    step = next(event for event in events if event["event"] == "step")
    assert set(step) >= {"step", "tokens", "seconds", "loss", "lr", "grad_norm", "tokens_per_second"}
    assert result.curve[-1]["step"] == 200 and result.curve[-1]["loss"] < result.curve[0]["loss"]
    json.dumps(events)
    assert model.training and all(p.grad is None for p in model.parameters())


def test_the_same_seed_gives_the_same_bits_and_leaves_the_callers_randomness():
    torch.manual_seed(3), random.seed(3), numpy.random.seed(3)
    expected = torch.rand(1), random.random(), numpy.random.rand()
    results = []
    for seed in (0, 0, 1):
        model = TinyModel()
        torch.manual_seed(3), random.seed(3), numpy.random.seed(3)
        fit(model, TinySource(), steps=12, batch_size=8, seed=seed)
        assert (torch.rand(1), random.random(), numpy.random.rand()) == expected
        results.append(weights(model))
    assert same_bits(results[0], results[1]) and not same_bits(results[0], results[2])


def test_accumulated_batches_give_the_gradient_of_the_whole():
    curves = []
    for size, accumulate in ((20, 1), (5, 4)):
        model, events = TinyModel(dropout=0.0).double(), []
        fit(model, TinySource(), steps=15, batch_size=size, accumulate=accumulate, lr=1e-2, on_event=events.append)
        curves.append([(e["loss"], e["grad_norm"]) for e in events if e["event"] == "step"])
    assert torch.tensor(curves[0]).allclose(torch.tensor(curves[1]), rtol=1e-5)


def test_token_batch_sets_accumulate():
    result = fit(TinyModel(), TinySource(), steps=2, batch_size=4, token_batch=100)
    assert result.tokens == 2 * 3 * 4 * LENGTH  # three batches of 48 tokens hold 100
    with pytest.raises(ValueError, match="not both"):
        fit(TinyModel(), TinySource(), steps=2, batch_size=4, token_batch=100, accumulate=2)


def test_an_update_is_adamw_of_the_clipped_gradient():
    source, model, other = TinySource(), TinyModel(dropout=0.0), TinyModel(dropout=0.0)
    fit(model, source, steps=1, batch_size=8, lr=0.01, warmup=0, min_lr=1.0, clip=0.05, weight_decay=0.3)
    other.loss(source.batch("train", 0, 8)).backward()
    norm = torch.stack([p.grad.abs().square().sum() for p in other.parameters()]).sum().sqrt()
    assert norm > 0.05
    spared = {"embed.weight", "norm.weight", "norm.bias", "mix.bias", "phase", "out.bias"}
    assert undecayed(other) == spared
    for name, p in other.named_parameters():
        grad = p.grad * 0.05 / norm
        if p.is_complex():
            update = torch.complex(grad.real / (grad.real.abs() + 1e-8), grad.imag / (grad.imag.abs() + 1e-8))
        else:
            update = grad / (grad.abs() + 1e-8)
        expected = p * (1 - 0.01 * (0.0 if name in spared else 0.3)) - 0.01 * update
        torch.testing.assert_close(dict(model.named_parameters())[name], expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_decay():
    class MatrixNorm(Norm):
        def __init__(self, dim):
            super().__init__(dim)
            self.table = nn.Parameter(torch.ones(dim, dim))

    model = nn.ModuleDict({"norm": MatrixNorm(4), "linear": nn.Linear(4, 4), "marked": nn.Linear(4, 4, bias=False)})
    model["marked"].weight.no_decay = True
    assert undecayed(model) == {"norm.table", "linear.bias", "marked.weight"}
    groups = adamw(model, lr=1.0, weight_decay=0.1, betas=(0.9, 0.95)).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.1), (3, 0.0)]
    with pytest.raises(ValueError, match="nothing to train"):
        adamw(model.requires_grad_(False), lr=1.0, weight_decay=0.1, betas=(0.9, 0.95))


def test_budgets():
    source = TinySource()
    assert fit(TinyModel(), source, steps="1ktokens", batch_size=8).step == 1000 // (8 * LENGTH)
    assert fit(TinyModel(), source, steps="1e5macs", batch_size=8, accumulate=2).step == 2  # 3 * 1000 * 8 * 2 a step
    notes = []
    timed = fit(TinyModel(), source, steps="1s", batch_size=8, on_event=notes.append)
    assert timed.step == timed.steps > 10 and timed.seconds < 2
    assert any("a step takes" in event.get("text", "") for event in notes)


def test_calibration_leaves_no_trace():
    model, source = TinyModel(), TinySource()
    before = weights(model)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert 0 < calibrate(model, source, seconds=0.05, batch_size=8) < 1
    assert torch.rand(1) == expected
    assert same_bits(weights(model), before) and all(p.grad is None for p in model.parameters())
    timed, plain = TinyModel(), TinyModel()
    steps = fit(timed, source, steps="0.2s", batch_size=8).step
    fit(plain, source, steps=steps, batch_size=8)
    assert same_bits(weights(timed), weights(plain))


def test_a_deadline_ends_a_run_early():
    result = fit(TinyModel(), TinySource(), steps=100000, batch_size=8, deadline=0.2, evaluate_every=10**6)
    assert result.stopped == "deadline" and 0 < result.step < 100000 and "loss" in result.scores


def test_evaluations_are_bounded():
    source, seen = TinySource(items=200), []
    count = source.evaluation
    source.evaluation = lambda split, size, limit=None: seen.append(limit) or count(split, size, limit)
    fit(TinyModel(), source, steps=4, batch_size=8, evaluate_every=2, evaluation_items=10)
    assert seen == [10, 10]
    seen.clear()
    fit(TinyModel(), source, steps=4, batch_size=8, evaluate_every=2)
    assert seen == [8, None]
    notes = []
    fit(TinyModel(), TinySource(held_out=1500), steps=4, batch_size=8, on_event=notes.append)
    assert any("scores 512 of 1500 items" in event.get("text", "") for event in notes)


@pytest.mark.parametrize("lower", [True, False])
def test_the_best_weights_are_kept(lower):
    model, source, seen = TinyModel(dropout=0.0), TinySource(lower_is_better=lower), {}

    def listen(event):
        if event["event"] == "evaluation" and not event["final"]:
            seen[event["step"]] = event["loss"]

    options = {"steps": 60, "batch_size": 8, "lr": 1e-2, "evaluate_every": 5, "evaluation_items": 40}
    result = fit(model, source, **options, keep_best=True, on_event=listen)
    assert list(seen) == list(range(5, 61, 5))
    assert result.best["loss"] == (min if lower else max)(seen.values()) == seen[result.best["step"]]
    assert result.scores["loss"] == result.best["loss"] == evaluate(model, source, "validation", 8)["loss"]
    assert lower or result.best["step"] < 30


def test_bfloat16_on_request():
    model, dtypes = TinyModel(), []
    model.mix.register_forward_hook(lambda module, args, out: dtypes.append(out.dtype))
    fit(model, TinySource(), steps=2, batch_size=8, precision="bfloat16")
    assert set(dtypes) == {torch.bfloat16} and model.mix.weight.dtype == torch.float32
    dtypes.clear()
    fit(model, TinySource(), steps=2, batch_size=8)
    assert set(dtypes) == {torch.float32}


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"accumulate": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"min_lr": 2.0},
        {"warmup": -1},
        {"clip": 0.0},
        {"evaluate_every": 0},
        {"evaluation_items": 0},
        {"precision": "float16"},
        {"seed": -1},
        {"weight_decay": -0.1},
    ],
)
def test_options_that_make_no_sense_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        fit(TinyModel(), TinySource(), steps=2, **options)


def test_an_empty_part_cannot_be_scored():
    source = TinySource()
    source.counts["test"] = 0
    with pytest.raises(ValueError, match="the test part of tiny holds no item"):
        evaluate(TinyModel(), source, "test", limit=None)


def test_progress_bar_shows_loss_rate_and_time():
    from rich.console import Console

    text = io.StringIO()
    with progress.bar("tiny", Console(file=text, force_terminal=True, width=80)) as listen:
        fit(TinyModel(), TinySource(poison={1}), steps=8, batch_size=8, on_event=listen)
    shown = text.getvalue()
    for word in ("tiny", "8/8", "loss", "tok/s", "val ", "done", "the loss is nan at step 2"):
        assert word in shown
    assert progress.time_text(3725) == "1:02:05" and progress.rate_text(12345) == "12.3k tok/s"


def test_log_reads_as_if_never_stopped(tmp_path):
    def losses(folder, stop_at=None):
        def stop(event):
            if event["event"] == "step" and event["step"] == stop_at:
                raise ConnectionError

        with progress.log(folder / "log.jsonl") as listen:
            fit(
                TinyModel(),
                TinySource(),
                steps=12,
                batch_size=8,
                folder=folder,
                resume=True,
                checkpoint_every=None,
                on_event=progress.both(listen, stop),
            )
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return [(line["step"], line["loss"]) for line in lines if line["event"] == "step"]

    whole = losses(tmp_path / "whole")
    with pytest.raises(ConnectionError):
        losses(tmp_path / "broken", stop_at=7)
    with (tmp_path / "broken" / "log.jsonl").open("a") as file:
        file.write('{"event": "st')
    assert losses(tmp_path / "broken") == whole
