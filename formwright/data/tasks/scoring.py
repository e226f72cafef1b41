"""Scores that tasks add to the head's accuracy: Task.score and Task.derive. Outputs are logits (B, N, V), or (B, V);
targets (B, N), or (B,), of which those below 0 are not scored. Scores named with a leading "_" are not shown."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Scores = dict[str, tuple[float, int]]


def per_class(outputs: Tensor, inputs: Tensor, targets: Tensor) -> Scores:
    """How many answers of each class are right, out of how many: what `macro` takes the mean of."""
    return _by_group("_class {}", outputs.argmax(-1) == targets, targets, targets)


def macro(means: dict[str, float]) -> dict[str, float]:
    """macro_accuracy: the mean over classes of the share of each class's answers that are right."""
    classes = [mean for name, mean in means.items() if name.startswith("_class ")]
    return {"macro_accuracy": sum(classes) / len(classes)} if classes else {}


def whole_rows(outputs: Tensor, inputs: Tensor, targets: Tensor) -> Scores:
    """string_accuracy: the share of rows all of whose answers are right."""
    asked = targets >= 0
    right = ((outputs.argmax(-1) == targets) | ~asked).all(-1) & asked.any(-1)
    return {"string_accuracy": (float(right.sum()), int(asked.any(-1).sum()))}


def grouped(name: str, groups: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Scores]:
    """The accuracy of each group by itself, under `name` with the group's number in place of {}: "accuracy ({} pairs)".

    groups  (inputs, targets) -> whole numbers from 0, in a shape that broadcasts to the targets'"""

    def score(outputs: Tensor, inputs: Tensor, targets: Tensor) -> Scores:
        which = groups(inputs, targets).expand(targets.shape)
        return _by_group(name, outputs.argmax(-1) == targets, targets, which)

    return score


def both(*scores: Callable[[Tensor, Tensor, Tensor], Scores]) -> Callable[[Tensor, Tensor, Tensor], Scores]:
    """Several scores at once."""
    return lambda *batch: {name: value for score in scores for name, value in score(*batch).items()}


def _by_group(name: str, right: Tensor, targets: Tensor, groups: Tensor) -> Scores:
    asked = targets >= 0
    number = torch.bincount(groups[asked])
    hits = torch.bincount(groups[asked & right], minlength=len(number)).tolist()
    return {name.format(g): (hits[g], n) for g, n in enumerate(number.tolist()) if n}
