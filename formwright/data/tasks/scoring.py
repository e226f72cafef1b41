"""Scores that tasks add to the head's accuracy: Task.score and Task.derive. Outputs are logits (B, N, V), or (B, V);
targets (B, N), or (B,), of which those below 0 are not scored. Scores named with a leading "_" are not shown."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Scores = dict[str, tuple[float, int]]


def per_class(outputs: Tensor, inputs: Tensor, targets: Tensor) -> Scores:
    """How many answers of each class are right, out of how many: what `macro` takes the mean of."""
    return _by_group("_class {}", outputs.argmax(-1) == targets, targets >= 0, targets)


def macro(means: dict[str, float]) -> dict[str, float]:
    """macro_accuracy: the mean over classes of the share of each class's answers that are right."""
    classes = [mean for name, mean in means.items() if name.startswith("_class ")]
    return {"macro_accuracy": sum(classes) / len(classes)} if classes else {}


def whole_rows(outputs: Tensor, inputs: Tensor, targets: Tensor) -> Scores:
    """string_accuracy: the share of rows all of whose answers are right."""
    asked = targets >= 0
    right = ((outputs.argmax(-1) == targets) | ~asked).all(-1) & asked.any(-1)
    return {"string_accuracy": (int(right.sum()), int(asked.any(-1).sum()))}


def mean_of_rows(outputs: Tensor, inputs: Tensor, targets: Tensor) -> Scores:
    """accuracy: the mean over rows of the share of a row's answers that are right, in place of that over answers."""
    asked = targets >= 0
    right, number = ((outputs.argmax(-1) == targets) & asked).sum(-1), asked.sum(-1)
    return {"accuracy": (float((right / number.clamp(min=1)).sum()), int((number > 0).sum()))}


def grouped(
    name: str, groups: Callable[[Tensor, Tensor], Tensor], rows: bool = False
) -> Callable[[Tensor, Tensor, Tensor], Scores]:
    """The accuracy of each group by itself, under `name` with the group's number for {}: "accuracy at {} pairs".

    groups  (inputs, targets) -> whole numbers from 0, in a shape that broadcasts to the targets'
    rows    True where rows count as a whole: right where all their answers are; groups are then (B,)"""

    def score(outputs: Tensor, inputs: Tensor, targets: Tensor) -> Scores:
        asked, which = targets >= 0, groups(inputs, targets)
        right = outputs.argmax(-1) == targets
        if rows:
            return _by_group(name, (right | ~asked).all(-1), asked.any(-1), which)
        return _by_group(name, right, asked, which.expand(targets.shape))

    return score


def both(*scores: Callable[[Tensor, Tensor, Tensor], Scores]) -> Callable[[Tensor, Tensor, Tensor], Scores]:
    """Several scores at once."""
    return lambda *batch: {name: value for score in scores for name, value in score(*batch).items()}


def _by_group(name: str, right: Tensor, asked: Tensor, groups: Tensor) -> Scores:
    number = torch.bincount(groups[asked])
    hits = torch.bincount(groups[asked & right], minlength=len(number)).tolist()
    return {name.format(g): (hits[g], n) for g, n in enumerate(number.tolist()) if n}


def macro_share(guesses: np.ndarray, targets: np.ndarray) -> float:
    """macro_accuracy of guesses without a model."""
    right = guesses == targets
    return float(np.mean([right[targets == c].mean() for c in np.unique(targets[targets >= 0])]))
