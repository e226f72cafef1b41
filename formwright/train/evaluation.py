"""Scores of a model over a split: sums over batches, turned into means and derived scores by the source."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from formwright.train.device import Ranks, autocast, choose_precision, gather, move, start


def evaluate(
    model: nn.Module,
    source: Any,
    split: str,
    batch_size: int = 32,
    limit: int | None = None,
    *,
    precision: str = "auto",
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """The scores of `model` on a split of `source` ("validation", "test", "train"), such as {"loss": 1.2, "accuracy":
    0.6}, in evaluation mode and without gradients. With `limit`, of about so many of its items. Several processes share
    the batches. The model is moved to the run's device and keeps its training mode.

    Raises ValueError where the split holds nothing."""
    ranks = ranks or start()
    precision = choose_precision(precision, ranks.device)
    model.to(ranks.device)
    was_training = model.training
    model.eval()
    totals: dict[str, tuple[float, int]] = {}
    items = 0
    try:
        # Not inference_mode: tensors that a part caches in it could not be used by later training steps.
        with torch.no_grad():
            for number, batch in enumerate(source.evaluation(split, batch_size, limit)):
                items += batch.items
                if number % ranks.world == ranks.rank:
                    with autocast(ranks.device, precision):
                        scores = model.scores(move(batch, ranks.device))
                    for name, (total, count) in scores.items():
                        before = totals.get(name, (0.0, 0))
                        totals[name] = (before[0] + float(total), before[1] + int(count))
                if limit is not None and items >= limit:
                    break
    finally:
        model.train(was_training)
    if items == 0:
        raise ValueError(f"the {split} part of {source.name} holds no item to score")
    return source.report(_added(gather(totals, ranks)), split)


def _added(parts: list[dict[str, tuple[float, int]]]) -> dict[str, tuple[float, int]]:
    """The parts' sums and counts added name by name, in the order of ranks."""
    names = list(dict.fromkeys(name for part in parts for name in part))
    zero = (0.0, 0)
    return {
        name: (sum(part.get(name, zero)[0] for part in parts), sum(part.get(name, zero)[1] for part in parts))
        for name in names
    }
