"""The training loop: one model, one source, one recipe, a number of steps.

    for t in 0..T-1:  g = clip(grad mean loss(batch_t));  w = AdamW(w, g, lr_t)

with lr_t from schedule.py and batch_t a function of (seed, t); evaluations and checkpoints come in between. The loop
prints nothing: it tells what it does by events, plain dictionaries handed to `on_event`.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from formwright.train import budget as budgets
from formwright.train import checkpoint
from formwright.train.device import agree, choose_precision, start
from formwright.train.divergence import Diverged
from formwright.train.interrupt import Interrupt, interruptible
from formwright.train.plan import planned_steps
from formwright.train.recipe import Recipe
from formwright.train.run import (
    Fit,
    Listener,
    Run,
    begin,
    do_step,
    good_enough,
    record,
    restore,
    save,
    step_rate,
    validate,
)
from formwright.train.schedule import warmup_steps
from formwright.train.step import own_randomness

EVALUATIONS = 10  # of a run, where evaluate_every is left open
EVALUATION_SHARE = 1 / 6  # items evaluated for one trained on: at a third of a step's cost, a twentieth of the time
LEAST_FINAL_ITEMS = 512


def fit(
    model: nn.Module,
    source: Any,
    *,
    steps: int | str | budgets.Budget,
    batch_size: int = 32,
    accumulate: int = 1,
    token_batch: int | None = None,
    lr: float = 1e-3,
    warmup: float = 0.05,
    min_lr: float = 0.1,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    clip: float | None = 1.0,
    seed: int = 0,
    evaluate_every: int | None = None,
    evaluation_items: int | None = None,
    checkpoint_every: float | None = 30.0,
    folder: str | Path | None = None,
    resume: bool = False,
    keep_best: bool = False,
    enough: float | None = None,
    precision: str = "auto",
    device: str | torch.device | None = None,
    on_event: Listener | None = None,
    deadline: float | None = None,
) -> Fit:
    """Train `model` on `source`, in place: `fit(model, source, steps=200)`.

    steps             how many, or a budget ("10m", "500steps", "2Mtokens", "1e13macs"); a time becomes steps by timing
                      a few that leave no trace
    batch_size        rows of a global batch; a step learns from `accumulate` of them. `token_batch` sets accumulate:
                      the fewest batches that hold so many tokens
    lr                the highest learning rate; `warmup` is a share of the steps (or a number of them), `min_lr` the
                      share of lr where the cosine ends, `clip` the largest gradient norm (None: any)
    seed              of data order and dropout; the weights begin as they are
    evaluate_every    steps between evaluations on validation (None: a tenth of the run)
    evaluation_items  the most items an evaluation scores. None: during the run as many as cost about a twentieth of
                      the training; at the end the whole part, unless that too would cost more, and then a note says so
    folder            for checkpoints, one every `checkpoint_every` seconds (None: at the end and on Ctrl-C alone).
                      `resume` goes on from the last, on CPU with as many threads to the same bits; where there is none
                      it begins
    keep_best         end with the weights of the best evaluation instead of the last
    enough            end early after an evaluation whose score in the source's metric is this good
    precision         "auto" (bfloat16 where the device has it, float32 on CPU), "float32" or "bfloat16"
    device            such as "cpu" or "cuda:1" (None: Accelerate chooses)
    on_event          is given dictionaries {"event": kind, ...}, of the kinds start, step, evaluation, checkpoint,
                      note, failed and end
    deadline          seconds spent in steps after which the run ends early, its schedule unfinished

    Processes started by torchrun share each batch. Raises ValueError for options that make no sense, Diverged,
    CheckpointError, and KeyboardInterrupt after a last checkpoint."""
    plan = budgets.parse(steps)
    ranks = start(device)
    if token_batch is not None:
        if accumulate != 1:
            raise ValueError("give accumulate or token_batch, not both: token_batch sets accumulate")
        accumulate = max(1, math.ceil(token_batch / source.batch("train", 0, batch_size, seed=seed).tokens))
    recipe = Recipe(
        batch_size=batch_size,
        accumulate=accumulate,
        lr=lr,
        warmup=warmup,
        min_lr=min_lr,
        weight_decay=weight_decay,
        betas=tuple(betas),
        clip=clip,
        seed=seed,
        evaluate_every=evaluate_every,
        evaluation_items=evaluation_items,
        keep_best=keep_best,
        enough=enough,
        precision=choose_precision(precision, ranks.device),
    )
    run = begin(model, source, recipe, str(plan), ranks, folder, on_event)
    was_training = model.training
    with own_randomness(ranks.device), interruptible() as interrupt:
        try:
            model.train()
            found = checkpoint.latest(run.folder) if run.folder is not None else None
            found = agree(found, ranks)
            if found is not None and not resume:
                raise checkpoint.CheckpointError(
                    f"{folder} already holds a run ({found.name}): pass resume=True to go on with it, or another folder"
                )
            if found is not None:
                restore(run, found)
            else:
                run.fit.steps = planned_steps(run, plan)
                save(run, "start")
            run.emit({"event": "start", "step": run.fit.step, "steps": run.fit.steps, "tokens": run.fit.tokens})
            if not run.fit.stopped:
                _train(run, interrupt, checkpoint_every, deadline)
                _finish(run)
            run.emit({"event": "end", "step": run.fit.step, "stopped": run.fit.stopped, **run.fit.scores})
        except KeyboardInterrupt:
            if not interrupt.busy and run.fit.steps:
                save(run, "interrupted")
            raise
        except Diverged as cause:
            run.emit({"event": "failed", "step": run.fit.step, "cause": str(cause)})
            raise
        finally:
            model.train(was_training)
            model.zero_grad(set_to_none=True)
    return run.fit


def _evaluation_every(run: Run) -> int:
    return run.recipe.evaluate_every or max(1, math.ceil(run.fit.steps / EVALUATIONS))


def _items_during(run: Run) -> int:
    """Items that an evaluation in the middle of the run scores at most."""
    recipe = run.recipe
    trained = _evaluation_every(run) * recipe.batch_size * recipe.accumulate
    return recipe.evaluation_items or max(recipe.batch_size, int(trained * EVALUATION_SHARE))


def _validates(run: Run) -> bool:
    return bool(run.source.counts.get("validation"))


def _evaluated(run: Run) -> bool:
    """True where these weights have been scored already."""
    return bool(run.fit.evaluations) and run.fit.evaluations[-1]["step"] == run.fit.step


def _train(run: Run, interrupt: Interrupt, checkpoint_every: float | None, deadline: float | None) -> None:
    """Steps until the last one, a score that is enough, or the deadline."""
    warm = warmup_steps(run.fit.steps, run.recipe.warmup)
    every, items = _evaluation_every(run), _items_during(run)
    saved, rate = time.perf_counter(), 0.0
    while run.fit.step < run.fit.steps:
        state = run.fit
        if _validates(run) and state.step and state.step % every == 0 and not _evaluated(run):
            validate(run, items)
            if good_enough(run):
                state.stopped = "enough"
                return
        if checkpoint_every is not None and time.perf_counter() - saved >= checkpoint_every and state.step:
            save(run, "interval")
            saved = time.perf_counter()
        if deadline is not None and agree(state.seconds >= deadline, run.ranks):
            state.stopped = "deadline"
            return
        began = time.perf_counter()
        lr = step_rate(run, state.step)
        interrupt.busy = True
        loss, norm, tokens = do_step(run, state.step, lr)
        took = time.perf_counter() - began
        note = state.guard.check(state.step + 1, state.steps, warm, loss, norm, lr)
        state.step += 1
        state.tokens += tokens
        state.seconds += took
        record(run, loss)
        interrupt.done()
        rate = 0.9 * rate + 0.1 * tokens / took if rate else tokens / took
        run.emit(
            {
                "event": "step",
                "step": state.step,
                "steps": state.steps,
                "tokens": state.tokens,
                "seconds": state.seconds,
                "loss": loss,
                "lr": lr,
                "grad_norm": norm,
                "tokens_per_second": rate,
            }
        )
        if note:
            run.emit({"event": "note", "step": state.step, "text": note})


def _finish(run: Run) -> None:
    """The last evaluation, on more items than those before, and the last checkpoint."""
    recipe = run.recipe
    stopped, run.fit.stopped = run.fit.stopped or "finished", ""
    save(run, "last step")
    if _validates(run):
        if recipe.keep_best:
            if not _evaluated(run):
                validate(run, _items_during(run))
            checkpoint.copy_tensors(run.best_weights, checkpoint.model_tensors(run.model))
        validate(run, _items_at_the_end(run), final=True)
    run.fit.stopped = stopped
    save(run, stopped)


def _items_at_the_end(run: Run) -> int | None:
    recipe, source = run.recipe, run.source
    if recipe.evaluation_items is not None:
        return recipe.evaluation_items
    size = source.counts["validation"]
    most = max(LEAST_FINAL_ITEMS, int(run.fit.step * recipe.batch_size * recipe.accumulate * EVALUATION_SHARE))
    if size <= most:
        return None
    text = f"the last validation scores {most} of {size} items: evaluation_items={size} would score all"
    run.emit({"event": "note", "step": run.fit.step, "text": text})
    return most
