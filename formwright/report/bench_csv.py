"""The verdicts of a bench as one tidy table: a line for each seed of each mixer on each ability."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from formwright.bench.verdict import results
from formwright.race.records import Bench

COLUMNS = (
    "bench", "suite", "ability", "mixer", "verdict", "seed", "metric", "score", "baseline", "baseline_score", "mark",
    "share", "params", "state_bytes", "lr", "data", "reason",
)  # fmt: skip


def write(bench: Bench, path: str | Path) -> Path:
    """Write the table of a loaded bench to `path`, in one move, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, restval="")
        table.writeheader()
        table.writerows(lines(bench))
    os.replace(part, path)
    return path


def lines(bench: Bench) -> Iterator[dict]:
    """The table's lines; mixers without a score have one line, with the reason."""
    found = results(bench)
    races = {race.ability: race for race in bench.races}
    for ability in found.abilities:
        name, bar, race = ability["name"], found.bars[ability["name"]], races.get(ability["name"])
        for mixer in found.mixers:
            verdict = found.verdicts[mixer, name]
            line = {"bench": bench.id, "suite": bench.suite, "ability": name, "mixer": mixer, "data": ability["data"]}
            line |= {"verdict": verdict.word, "reason": verdict.reason, "params": verdict.params}
            line |= {"state_bytes": verdict.state_bytes}
            if bar is not None:
                line |= {"metric": bar.metric, "baseline": bar.baseline, "baseline_score": bar.base, "mark": bar.mark}
            contender = next((c for c in race.contenders if c.name == mixer), None) if race else None
            scored = [t for t in contender.trials if t.phase == "main"] if contender else []
            if not (verdict.scores and scored):
                yield line
                continue
            for trial in scored:
                score = trial.scores.get("test", {}).get(bar.metric)
                share = None if score is None else bar.share(score)
                yield line | {"seed": trial.seed, "lr": trial.lr, "score": score, "share": share}
