"""A run in memory and on disk: its steps, its evaluations, its checkpoints.

`Fit` is what a run came to and, while it runs, all it must remember besides tensors; `Run` holds that together with the
model, the optimizer and the recipe. The functions do one thing each to a Run; loop.py puts them in order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from formwright.train import checkpoint
from formwright.train.device import Ranks, share_weights
from formwright.train.divergence import Guard
from formwright.train.evaluation import evaluate
from formwright.train.optimizer import adamw
from formwright.train.recipe import Recipe
from formwright.train.schedule import learning_rate
from formwright.train.step import seed_step, step_batches, train_step

Listener = Callable[[dict[str, Any]], None]

POINTS = 500  # a learning curve has at most about so many points


@dataclass
class Fit:
    """What a run came to.

    step, steps  steps done, steps planned
    tokens       learned from; seconds: spent in steps, evaluations and checkpoints not counted
    scores       of the last evaluation on validation
    curve        [{"step", "tokens", "seconds", "loss"}]: training losses, each a mean since the point before
    evaluations  [{"step", "tokens", "seconds", "split", <scores>}]
    best         {"step", <metric>} of the best evaluation, where keep_best was asked for
    stopped      "finished", "enough" or "deadline"; "" while there are steps to do
    pending      losses since the curve's last point; guard: see divergence.py
    """

    step: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    stopped: str = ""
    pending: list[float] = field(default_factory=list)
    guard: Guard = field(default_factory=Guard)

    @property
    def tokens_per_second(self) -> float:
        """The mean rate of training."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass
class Run:
    """A model under training. `emit` takes events; `folder` is None where nothing is to be written."""

    model: nn.Module
    source: Any
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    budget: str
    ranks: Ranks
    folder: Path | None
    emit: Listener
    fit: Fit = field(default_factory=Fit)
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def begin(
    model: nn.Module,
    source: Any,
    recipe: Recipe,
    budget: str,
    ranks: Ranks,
    folder: str | Path | None = None,
    on_event: Listener | None = None,
) -> Run:
    """A run before its first step, its model on the ranks' device and equal in all of them."""
    model.to(ranks.device)
    share_weights(model, ranks)
    optimizer = adamw(model, lr=recipe.lr, weight_decay=recipe.weight_decay, betas=recipe.betas)
    emit = on_event if on_event is not None and ranks.main else lambda event: None
    return Run(model, source, optimizer, recipe, budget, ranks, None if folder is None else Path(folder), emit)


def step_rate(run: Run, step: int) -> float:
    """The learning rate of a step of this run."""
    recipe = run.recipe
    return learning_rate(step, run.fit.steps, lr=recipe.lr, warmup=recipe.warmup, min_lr=recipe.min_lr)


def do_step(run: Run, step: int, lr: float, optimizer: torch.optim.Optimizer | None = None) -> tuple[float, float, int]:
    """Train by step number `step` -> (loss, gradient norm, tokens)."""
    recipe = run.recipe
    seed_step(recipe.seed, step, run.ranks.rank)
    batches = step_batches(run.source, step, recipe.batch_size, recipe.accumulate, recipe.seed)
    loss, norm = train_step(
        run.model,
        optimizer or run.optimizer,
        batches,
        lr=lr,
        clip=recipe.clip,
        ranks=run.ranks,
        precision=recipe.precision,
    )
    return loss, norm, sum(batch.tokens for batch in batches)


def record(run: Run, loss: float) -> None:
    """Add a step's loss to the learning curve."""
    fit = run.fit
    fit.pending.append(loss)
    if fit.step == 1 or fit.step == fit.steps or fit.step % max(1, fit.steps // POINTS) == 0:
        mean = sum(fit.pending) / len(fit.pending)
        fit.curve.append({"step": fit.step, "tokens": fit.tokens, "seconds": fit.seconds, "loss": mean})
        fit.pending.clear()


def validate(run: Run, limit: int | None, *, final: bool = False) -> None:
    """Score the validation part, and keep the weights if they are the best so far and that was asked for."""
    fit, recipe = run.fit, run.recipe
    scores = evaluate(
        run.model,
        run.source,
        "validation",
        recipe.batch_size,
        limit,
        precision=recipe.precision,
        ranks=run.ranks,
    )
    where = {"step": fit.step, "tokens": fit.tokens, "seconds": fit.seconds, "split": "validation"}
    fit.scores = scores
    fit.evaluations.append({**where, **scores})
    run.emit({"event": "evaluation", "final": final, **where, **scores})
    if recipe.keep_best and not final:
        metric = run.source.metric
        sign = 1 if run.source.lower_is_better else -1
        if not fit.best or sign * scores[metric] < sign * fit.best[metric]:
            fit.best = {"step": fit.step, metric: scores[metric]}
            tensors = checkpoint.model_tensors(run.model)
            run.best_weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def good_enough(run: Run) -> bool:
    """Whether the last evaluation reached the score that the recipe calls enough."""
    enough, sign = run.recipe.enough, 1 if run.source.lower_is_better else -1
    return enough is not None and sign * run.fit.scores[run.source.metric] <= sign * enough


def save(run: Run, why: str) -> None:
    """Write a checkpoint, if there is a folder and this is the main process."""
    if run.folder is None or not run.ranks.main:
        return
    tensors = {
        "model": checkpoint.model_tensors(run.model),
        "optimizer": checkpoint.optimizer_tensors(run.model, run.optimizer),
    }
    if run.best_weights:
        tensors["best"] = run.best_weights
    state = {"recipe": _identity(run), "place": _place(run), "fit": asdict(run.fit)}
    path = checkpoint.write(run.folder, tensors, state)
    run.emit({"event": "checkpoint", "step": run.fit.step, "why": why, "path": str(path)})


def restore(run: Run, path: Path) -> None:
    """Take a checkpoint's place.

    Raises CheckpointError where it is of another model, recipe or data."""
    tensors, state = checkpoint.read(path)
    try:
        then, stored_place, fit = state["recipe"], state["place"], dict(state["fit"])
        fit["guard"] = Guard(**fit["guard"])
        restored = Fit(**fit)
        weights, moments = tensors["model"], tensors["optimizer"]
    except (KeyError, TypeError) as error:
        raise checkpoint.CheckpointError(
            f"{path} is no checkpoint of this version ({error}): remove that folder to start afresh"
        ) from error
    now = _identity(run)
    differing = [f"{key} was {then.get(key)!r} and is {now[key]!r}" for key in now if then.get(key) != now[key]]
    if differing:
        raise checkpoint.CheckpointError(
            f"cannot go on from {path}: {'; '.join(differing)}; give the options it began with, or another folder"
        )
    checkpoint.copy_tensors(weights, checkpoint.model_tensors(run.model))
    checkpoint.restore_optimizer(run.model, run.optimizer, moments)
    run.best_weights = tensors.get("best", {})
    run.fit = restored
    place = _place(run)
    changed = [key for key in place if stored_place.get(key) != place[key]]
    moved = [f"{key} {stored_place.get(key)} then, {place[key]} now" for key in changed]
    if moved:
        text = f"resumed elsewhere than it began ({'; '.join(moved)}): results agree to rounding, not to the bit"
        run.emit({"event": "note", "step": run.fit.step, "text": text})


def _identity(run: Run) -> Mapping[str, Any]:
    """What must be the same for a checkpoint to be of this run, in JSON's types."""
    known = {
        **asdict(run.recipe),
        "steps": run.budget,
        "data": run.source.fingerprint,
        "expression": getattr(run.model, "expression", None),
    }
    return json.loads(json.dumps(known, default=str))


def _place(run: Run) -> dict[str, Any]:
    """What may differ, and then costs the last bits."""
    return {
        "device": run.ranks.device.type,
        "processes": run.ranks.world,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
