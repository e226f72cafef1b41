"""From a budget to a number of steps, with what a step costs measured where no formula knows it."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from formwright.train import budget as budgets
from formwright.train.device import agree, choose_precision, start
from formwright.train.optimizer import adamw
from formwright.train.recipe import Recipe
from formwright.train.run import Run, begin, do_step
from formwright.train.step import own_randomness, seconds_per_step, untouched

TRAINING_SHARE = 0.87  # of a time budget; evaluations and checkpoints have the rest
CALIBRATION_SHARE = 0.03  # of a time budget


def planned_steps(run: Run, plan: budgets.Budget) -> int:
    """The steps that the budget pays for."""
    recipe = run.recipe
    if plan.unit == "steps":
        return budgets.steps(plan)
    batch = run.source.batch("train", 0, recipe.batch_size, seed=recipe.seed)
    if plan.unit == "tokens":
        return budgets.steps(plan, tokens_per_step=batch.tokens * recipe.accumulate)
    if plan.unit == "macs":
        # Backward makes two matrix products for each of the forward's.
        forward = run.model.cost(run.source.shape, batch=batch.items).macs
        return budgets.steps(plan, macs_per_step=3 * forward * recipe.accumulate)
    began = time.perf_counter()
    each = _measured(run, CALIBRATION_SHARE * plan.amount)
    left = max(TRAINING_SHARE * plan.amount - (time.perf_counter() - began), each)
    count = agree(budgets.steps(budgets.Budget(left, "seconds"), seconds_per_step=each), run.ranks)
    run.emit({"event": "note", "step": 0, "text": f"a step takes {each:.3g} s: {plan} give {count} steps"})
    return count


def calibrate(
    model: nn.Module,
    source: Any,
    *,
    seconds: float = 3.0,
    batch_size: int = 32,
    accumulate: int = 1,
    precision: str = "auto",
    device: str | torch.device | None = None,
) -> float:
    """The seconds that a training step of `model` takes: the median of some real ones, timed for about `seconds`. The
    model is afterwards as it was."""
    ranks = start(device)
    precision = choose_precision(precision, ranks.device)
    run = begin(model, source, Recipe(batch_size=batch_size, accumulate=accumulate, precision=precision), "", ranks)
    with own_randomness(ranks.device):
        return _measured(run, seconds)


def _measured(run: Run, allowance: float) -> float:
    """The seconds of a step, by steps with an optimizer and weights that are given up afterwards."""
    recipe = run.recipe
    was_training = run.model.training
    run.model.train()
    scratch = adamw(run.model, lr=recipe.lr, weight_decay=recipe.weight_decay, betas=recipe.betas)
    try:
        with untouched(run.model):
            return seconds_per_step(lambda i: do_step(run, i, recipe.lr, scratch), allowance=allowance, ranks=run.ranks)
    finally:
        run.model.train(was_training)
