"""The results of a race as one tidy table: a line for each score of each run and for each measured cost."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from formwright.race.records import Race

COLUMNS = (
    "race", "contender", "expression", "params", "kind", "trial", "seed", "lr", "split", "length", "batch", "figure",
    "value", "unit",
)  # fmt: skip
TRIAL = {"steps": "", "seconds": "s", "tokens": "", "tokens_per_second": "1/s", "status": "", "error": ""}
COST = {"milliseconds": "ms", "low": "ms", "high": "ms", "peak_bytes": "B", "state_bytes": "B", "macs": "", "load": ""}


def write(race: Race, path: str | Path) -> Path:
    """Write the table of a loaded race to `path`, in one move, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, restval="")
        table.writeheader()
        table.writerows(lines(race))
    os.replace(part, path)
    return path


def lines(race: Race) -> Iterator[dict]:
    """The table's lines. kind: 'contender', 'sweep', 'main' (runs), 'forward', 'decode', 'prefill' (costs)."""
    for contender in race.contenders:
        about = {"race": race.id, "contender": contender.name, "expression": contender.expression or contender.text}
        about["params"] = "" if contender.params is None else contender.params
        for figure in ("dim", "macs", "error"):
            if getattr(contender, figure) is not None:
                yield about | {"kind": "contender", "figure": figure, "value": getattr(contender, figure)}
        for trial in contender.trials:
            lr = "" if trial.lr is None else trial.lr
            run = about | {"kind": trial.phase, "trial": trial.id, "seed": trial.seed, "lr": lr}
            for figure, unit in TRIAL.items():
                if getattr(trial, figure) is not None:
                    yield run | {"figure": figure, "value": getattr(trial, figure), "unit": unit}
            for split, scores in trial.scores.items():
                for score, value in scores.items():
                    yield run | {"split": split, "figure": score, "value": "" if value is None else value}
        for cost in contender.costs:
            where = about | {"kind": cost.kind, "length": cost.length, "batch": cost.batch}
            for figure, unit in COST.items():
                if getattr(cost, figure) is not None:
                    yield where | {"figure": figure, "value": getattr(cost, figure), "unit": unit}
