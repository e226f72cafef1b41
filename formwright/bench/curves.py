"""Accuracy by serial position: where in a list an item stood, and how often a trained model recalls it.

Works on every source whose rows show distinct things and ask for each of them once later, such as working_memory and
mqar: see `serial_places`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from formwright.data.source import Source
from formwright.data.tasks.working_memory import serial_places
from formwright.train.device import autocast, choose_precision, move, start


@dataclass(frozen=True)
class Recalled:
    """Of lists of `length` things, the share of those at `position` (from 1) recalled rightly, and their number."""

    length: int
    position: int
    accuracy: float
    number: int


def accuracy_by_position(
    model: nn.Module,
    source: Source,
    split: str = "test",
    *,
    batch_size: int = 64,
    limit: int | None = None,
    recognised: bool = False,
    precision: str = "auto",
) -> list[Recalled]:
    """The serial-position curve of each list length, ordered by length and position. recognised=True for rows that ask
    of things shown again whether they had been shown (working_memory(recall=free)).

    Raises ValueError where nothing shown is asked for again."""
    device = start().device
    precision = choose_precision(precision, device)
    model.to(device)
    was_training = model.training
    model.eval()
    totals: dict[tuple[int, int], list[int]] = {}
    try:
        with torch.no_grad():
            for batch in source.evaluation(split, batch_size, limit):
                batch = move(batch, device)
                with autocast(device, precision):
                    right = model(batch.inputs, batch.layout).argmax(-1) == batch.targets
                place, count = serial_places(batch.inputs, batch.targets, recognised=recognised)
                held = place > 0
                keys = torch.stack((count[:, None].expand_as(place)[held], place[held], right[held].long()), dim=1)
                for (length, position, hit), number in zip(*_times(keys), strict=True):
                    total = totals.setdefault((length, position), [0, 0])
                    total[0] += hit * number
                    total[1] += number
    finally:
        model.train(was_training)
    if not totals:
        raise ValueError(f"{source.name} asks for nothing that its rows have shown, so it has no serial positions")
    return [Recalled(*key, hits / number, number) for key, (hits, number) in sorted(totals.items())]


def primacy_and_recency(curve: list[Recalled], length: int | None = None) -> dict[str, float]:
    """How much better the first thing and the last are recalled than those between, for lists of `length` (the longest
    without): {"primacy", "recency", "between"}. Raises ValueError for lists of fewer than three."""
    length = max(point.length for point in curve) if length is None else length
    points = {point.position: point for point in curve if point.length == length}
    middle = [point for position, point in points.items() if 1 < position < length]
    if not middle or 1 not in points or length not in points:
        raise ValueError(f"lists of {length} have no first, last and middle; give another length")
    between = sum(p.accuracy * p.number for p in middle) / sum(p.number for p in middle)
    return {"primacy": points[1].accuracy - between, "recency": points[length].accuracy - between, "between": between}


def _times(keys: torch.Tensor) -> tuple[list, list]:
    rows, number = torch.unique(keys, dim=0, return_counts=True)
    return rows.tolist(), number.tolist()
