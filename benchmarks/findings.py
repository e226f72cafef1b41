"""Published findings, each a small experiment with a stated pass condition.

    python benchmarks/findings.py [NAME ...] [--list] [--workers 2] [--quick]

Each finding is a file of claims/; how its contenders are trained: claims/__init__.py. Trials are kept in runs/findings
by their definition, so that a run that was stopped goes on. Writes results/findings.csv, a line a finding, and
results/findings-contenders.csv, a line a contender. A finding that does not hold is reported as such; the command ends
with 0 all the same, for that is a result.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import trials
from claims import Condition, Finding, Result, findings
from driving import stamp, write_csv
from trials import Done, Trial

COLUMNS = ("finding", "verdict", "claim", "source", "published", "conditions", "seeds", "contenders", "rates", "steps",
    "cpu_seconds", "tried")  # fmt: skip
EACH = ("finding", "contender", "expression", "data", "metric", "mean", "low", "high", "scores", "more", "seeds",
    "rate", "rates", "steps", "batch", "weight_decay", "params", "cpu_seconds", "note")  # fmt: skip


def wanted(finding: Finding, done: Done) -> list[Trial]:
    """The trials that a finding can begin now: a contender's sweep, then its other seeds at the rate chosen."""
    todo = []
    for trial in finding.contenders.values():
        first = replace(trial, seed=finding.seeds[0])
        sweep = [replace(first, rate=rate) for rate in finding.rates]
        rate = trials.chosen(first, finding.rates, finding.choose_by or finding.metric, finding.lower_is_better, done)
        rest = [] if rate is None else [replace(trial, rate=rate, seed=seed) for seed in finding.seeds[1:]]
        todo += [t for t in (*sweep, *rest) if t not in done]
    return todo


def results(finding: Finding, done: Done) -> list[Result]:
    """What the contenders of a finished finding came to."""
    found = []
    for name, trial in finding.contenders.items():
        first = replace(trial, seed=finding.seeds[0])
        rate = trials.chosen(first, finding.rates, finding.choose_by or finding.metric, finding.lower_is_better, done)
        sweep = {t: done[t] for t in (replace(first, rate=r) for r in finding.rates)}
        if rate is None:
            note = f"diverged at every rate: {next(iter(sweep.values()))['diverged']}"
            found.append(Result(name, (float("nan"),), seconds=sum(s["seconds"] for s in sweep.values()), note=note))
            continue
        seeds = {t: done[t] for t in (replace(trial, rate=rate, seed=seed) for seed in finding.seeds)}
        kept = [s for s in seeds.values() if "diverged" not in s]
        seconds = sum(s["seconds"] for s in (sweep | seeds).values())
        more = {key: tuple(s["after"][key] for s in kept) for key in kept[0].get("after", {})}
        scores = tuple(s["test"][finding.metric] for s in kept)
        note = f"{len(seeds) - len(kept)} of {len(seeds)} seeds diverged" if len(kept) < len(seeds) else ""
        found.append(Result(name, scores, more, rate, kept[0]["params"], seconds, note))
    return found


def quick(finding: Finding) -> Finding:
    """The same, hardly trained, from one seed: to see that it runs."""
    small = {name: replace(t, steps=max(2, t.steps // 100), limit=64) for name, t in finding.contenders.items()}
    return replace(finding, contenders=small, seeds=finding.seeds[:1], rates=finding.rates[:1])


def verdict(conditions: list[Condition]) -> str:
    """In words."""
    holding = sum(c.holds for c in conditions)
    if holding == len(conditions):
        return "reproduced"
    return f"in part ({holding} of {len(conditions)})" if holding else "not reproduced"


def line(name: str, finding: Finding, found: list[Result], conditions: list[Condition], said: str) -> dict[str, Any]:
    """A finding's line of the table."""
    told = "; ".join(f"[{'x' if c.holds else ' '}] {c.text}: {c.found}" for c in conditions)
    about = {"claim": finding.claim, "source": finding.source, "published": finding.published, "tried": finding.tried}
    steps = sorted({t.steps for t in finding.contenders.values()})
    about |= {"contenders": len(found), "rates": _written(finding.rates) if finding.contenders else ""}
    about |= {"seeds": max(len(r.scores) for r in found) if finding.contenders else "", "steps": _written(steps)}
    return {"finding": name, "verdict": said, "conditions": told, **about, "cpu_seconds": sum(r.seconds for r in found)}


def lines(name: str, finding: Finding, found: list[Result]) -> list[dict[str, Any]]:
    """Its contenders' lines."""
    rows = []
    for r in found:
        row = {"finding": name, "contender": r.contender, "metric": finding.metric, **trials.spread(list(r.scores))}
        row |= {"scores": _written(r.scores), "seeds": len(r.scores), "rate": r.rate, "params": r.params}
        row |= {"more": "; ".join(f"{k} {_written(v)}" for k, v in r.more.items()), "note": r.note}
        row |= {"cpu_seconds": r.seconds}
        trial = finding.contenders.get(r.contender)
        if trial is not None:
            row |= {"expression": trial.expression, "data": trial.data, "steps": trial.steps, "batch": trial.batch}
            row |= {"weight_decay": trial.weight_decay, "rates": _written(finding.rates)}
        rows.append(row)
    return rows


def _written(values: Any) -> str:
    return " ".join(f"{v:.4g}" for v in values)


def show(name: str, finding: Finding, found: list[Result], conditions: list[Condition], said: str) -> None:
    print(f"\n{name}: {said.upper()}\n  {finding.claim}\n  {finding.source}")
    for r in found:
        more = "".join(f"  {k} {_written(v)}" for k, v in r.more.items())
        rate = f"  rate {r.rate:g}" if r.rate else ""
        print(f"    {r.contender:36} {finding.metric} {r.mean:.3f} ({_written(r.scores)}){rate}{more}  {r.note}")
    for c in conditions:
        print(f"    [{'x' if c.holds else ' '}] {c.text}: {c.found}")
    sys.stdout.flush()


def _merged(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, and those of other findings that the table at `path` holds already."""
    names = {row["finding"] for row in rows}
    before = []
    if path.is_file():
        with path.open(newline="") as file:
            before = [row for row in csv.DictReader(file) if row["finding"] not in names]
    return sorted(before + rows, key=lambda row: row["finding"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="findings; all of them if left out")
    parser.add_argument("--list", action="store_true", help="say what the findings are, and end")
    parser.add_argument("--workers", type=int, default=2, help="processes, of a thread each")
    parser.add_argument("--quick", action="store_true", help="hardly any training: only to see that all of it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    every = findings()
    for name in options.names:
        if name not in every:
            near = get_close_matches(name, every, 1)
            hint = f"did you mean {near[0]}?" if near else f"the findings are {', '.join(every)}"
            parser.error(f"there is no finding {name!r}; {hint}")
    asked = {name: f for name, f in every.items() if not options.names or name in options.names}
    if options.list:
        for name, finding in asked.items():
            print(f"{name}\n    {finding.claim}\n    {finding.source}\n    published: {finding.published}")
        return 0
    if options.quick:
        asked = {name: quick(finding) for name, finding in asked.items()}
        options.out = trials.KEPT / "quick"
    options.out.mkdir(parents=True, exist_ok=True)
    marks = stamp(1, ())
    print(
        f"{marks['machine']}, {options.workers} workers; {marks['versions']}; load {os.getloadavg()[0]:.2f}", flush=True
    )
    began, done, table, each, left = time.perf_counter(), {}, [], [], dict(asked)

    def finish(name: str, finding: Finding, found: list[Result]) -> None:
        conditions = finding.judge({r.contender: r for r in found})
        said = "hardly trained, not judged" if options.quick else verdict(conditions)
        show(name, finding, found, conditions, said)
        table.append(line(name, finding, found, conditions, said) | marks)
        each.extend(row | marks for row in lines(name, finding, found))
        for file, rows, columns in (("findings", table, COLUMNS), ("findings-contenders", each, EACH)):
            path = options.out / f"{file}.csv"
            write_csv(path, _merged(path, rows), (*columns, *marks))

    trained = [finding for finding in asked.values() if not finding.measure]
    for trial, scores in trials.run(lambda have: [t for f in trained for t in wanted(f, have)], options.workers):
        done[trial] = scores
        told = scores.get("diverged") or " ".join(f"{k} {v:.4g}" for k, v in scores["test"].items())
        print(
            f"  {scores['seconds']:6.1f} s  rate {trial.rate:g} seed {trial.seed}  {trial.expression}  {told}",
            flush=True,
        )
        for name, finding in list(left.items()):
            if not finding.measure and not wanted(finding, done):
                finish(name, left.pop(name), results(finding, done))
    for name, finding in left.items():
        finish(name, finding, finding.measure(options.quick))
    print(f"\n{time.perf_counter() - began:.0f} s in all")
    for row in table:
        print(f"  {row['verdict']:28} {row['finding']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
