"""How a race's budget is shared out: equally among contenders and seeds, the same batches and schedule for all.

A time budget T is the wall clock of the whole race. With C contenders, S seeds, k learning rates, W workers:

    T = set-up + sweep + main + measuring
    sweep = share (T - set-up - measuring),  C k runs of sweep / ceil(C k / W) seconds each
    main  = what is then left,               C S runs of main / ceil(C S / W) seconds each

Of a run's seconds TRAINING are spent in steps, the rest in evaluations; steps = seconds / measured seconds per step. A
budget in steps, tokens or multiply-adds is that of each main run, and the sweep comes on top: share / (1 - share) of
what the main runs of its contender take. A forward costs a third of a training step, from which the numbers of scored
items follow; they are the same for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from formwright.race.contenders import Entry, RaceProblem
from formwright.train import budget as budgets

SHARE = 0.25  # of each contender's training, spent on its sweep
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
FEW_STEPS = 60  # where some contender's sweep runs would be shorter, the lowest rate is left out
LEAST_STEPS = 8  # where they would be shorter still, nothing is learned from a sweep, and all take USUAL_RATE
USUAL_RATE = 3e-3
BATCH_TOKENS = 2048  # on a CPU; eight times as many where there is an accelerator
LARGEST_BATCH = 128
POINTS = 30
TRAINING = 0.85
CURVE, VALIDATION, TEST = 0.06, 0.03, 0.06  # shares of a main run for its evaluations
SWEEP_VALIDATION = 0.15  # share of a sweep run for the evaluation that it is chosen by
MEASURING = 0.12  # of a time budget


@dataclass(frozen=True)
class Speed:
    """What calibration found of a contender under the race's conditions: seconds of one step, and of what a run needs
    before its first step (building, opening)."""

    step: float
    start: float = 0.0


def batch_size(source: Any, batch_tokens: int | None, *, accelerated: bool = False) -> int:
    """Rows of everyone's batch: as many as hold `batch_tokens` (2048), at most 128, never more than a quarter of the
    training part."""
    if batch_tokens is not None and batch_tokens < 1:
        raise RaceProblem(f"batch_tokens is {batch_tokens}, but a batch holds at least one token")
    rows = (batch_tokens or BATCH_TOKENS * (8 if accelerated else 1)) // source.tokens_per_item
    most = LARGEST_BATCH if batch_tokens is None else rows
    return max(1, min(rows, most, source.counts["train"] // 4))


def learning_rates(lr: str | float, rates: tuple[float, ...] = RATES) -> list[float]:
    """The rates to try: "auto" gives several, a number itself. Raises RaceProblem for anything else."""
    if lr == "auto":
        return list(rates)
    try:
        value = float(lr)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise RaceProblem(f"lr is 'auto' or a number above zero such as 3e-3, not {lr!r}")
    return [value]


def main_steps(
    budget: budgets.Budget, entries: list[Entry], speeds: dict[str, Speed], *, seconds: float, batch: int, source: Any
) -> dict[str, int]:
    """Contender -> steps of each of its main runs; `seconds` is a run's share of a time budget."""
    tokens = batch * source.tokens_per_item
    result = {}
    for entry in entries:
        if budget.unit == "seconds":
            result[entry.name] = timed_steps(seconds, speeds[entry.name])
        else:
            # A backward costs two forwards.
            result[entry.name] = budgets.steps(budget, tokens_per_step=tokens, macs_per_step=3 * entry.macs * tokens)
    return result


def timed_steps(seconds: float, speed: Speed) -> int:
    """Steps of a run that may take so many seconds in all."""
    return max(1, int(TRAINING * (seconds - speed.start) / speed.step))


def run_seconds(total: float, runs: int, workers: int) -> float:
    """What each of `runs` equal runs may take where `workers` share them and all must end within `total` seconds."""
    return total / max(1, math.ceil(runs / workers))


def sweep_steps(main: dict[str, int], rates: int, seeds: int, share: float = SHARE) -> dict[str, int]:
    """Contender -> steps of each sweep run, for budgets counted in the main runs' steps."""
    return {name: max(1, round(share / (1 - share) * steps * seeds / rates)) for name, steps in main.items()}


def items(steps: dict[str, int], batch: int, share: float, most: int, *, times: int = 1, least: int = 1) -> int:
    """How many items each of `times` evaluations may score, so that they take at most `share` of the shortest run."""
    wanted = share / TRAINING * 3 * min(steps.values()) * batch / times
    return max(min(least, most), min(most, int(wanted)))


def scored_items(steps: dict[str, int], batch: int, source: Any, points: int = POINTS) -> dict[str, int]:
    """Items that each main run scores on its curve's points, at the end on validation, and on test."""
    count = source.counts
    points = max(1, min(points, min(steps.values())))
    return {
        "points": points,
        "curve": items(steps, batch, CURVE, count["validation"], times=points, least=min(batch, 8)),
        "validation": items(steps, batch, VALIDATION, count["validation"], least=64),
        "test": items(steps, batch, TEST, count["test"], least=64),
    }
