"""Trials: one model trained on one source at one learning rate from one seed, run in a pool, kept by definition.

A trial is a function of its fields alone, so that its scores are kept in a file named by them: what was run once is not
run again, and a run that was stopped goes on. Findings that ask for the same trial share it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

KEPT = Path(__file__).parent.parent / "runs" / "findings"


@dataclass(frozen=True)
class Trial:
    """What is trained, on what, how long and from which seed.

    data     a source's text, opened with seed 0: all contenders and seeds see the same task
    options  further options of formwright.data.open, ((name, value), ...)
    after    "module:function" called with (model, source, fit) when training is done -> further scores by name
    limit    items of the test part that are scored, all without it"""

    expression: str
    data: str
    steps: int
    batch: int = 32
    rate: float = 1e-3
    seed: int = 0
    weight_decay: float = 0.1
    options: tuple[tuple[str, Any], ...] = ()
    after: str = ""
    limit: int | None = None

    @property
    def name(self) -> str:
        """A digest of the definition."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


Scores = dict[str, Any]
Done = dict[Trial, Scores]


def train(trial: Trial) -> Scores:
    """{"validation": scores, "test": scores, "after": scores, "params", "seconds": of CPU time}; of a run that diverged
    {"diverged": why, "params", "seconds"}."""
    import torch

    import formwright
    from formwright.train import Diverged, evaluate, fit

    torch.set_num_threads(1)
    began = time.process_time()
    source = formwright.data.open(trial.data, **dict(trial.options))
    model = formwright.build(trial.expression, data=source, seed=trial.seed)
    scores: Scores = {"params": sum(p.numel() for p in model.parameters())}
    recipe = {"batch_size": trial.batch, "lr": trial.rate, "weight_decay": trial.weight_decay, "seed": trial.seed}
    try:
        run = fit(model, source, steps=trial.steps, checkpoint_every=None, **recipe)
    except Diverged as cause:
        return scores | {"diverged": str(cause), "seconds": time.process_time() - began}
    scores |= {"validation": run.scores, "test": evaluate(model, source, "test", trial.batch, trial.limit)}
    scores["baselines"] = source.baselines
    if trial.after:
        module, _, function = trial.after.partition(":")
        scores["after"] = getattr(importlib.import_module(module), function)(model.eval(), source, run)
    return scores | {"seconds": time.process_time() - began}


def kept(trials: Iterable[Trial], folder: Path = KEPT) -> Done:
    """Those of the trials whose scores are on disk."""
    found = {}
    for trial in trials:
        path = folder / f"{trial.name}.json"
        if path.is_file():
            found[trial] = json.loads(path.read_text())["scores"]
    return found


def keep(trial: Trial, scores: Scores, folder: Path = KEPT) -> None:
    """Write a trial's scores, in one move."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{trial.name}.part"
    part.write_text(json.dumps({"trial": asdict(trial), "scores": scores}, indent=1))
    os.replace(part, folder / f"{trial.name}.json")


def run(wanted: Callable[[Done], list[Trial]], workers: int, folder: Path = KEPT) -> Iterator[tuple[Trial, Scores]]:
    """Train what is wanted, and what is then wanted, until nothing is: each trial with its scores, as they come.

    wanted(done) -> the trials that can begin now, the most urgent first; kept ones are handed back without training."""
    done: Done = {}
    running: dict[Any, Trial] = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while True:
            todo = [t for t in dict.fromkeys(wanted(done)) if t not in done and t not in running.values()]
            found = kept(todo, folder)
            if found:
                done |= found
                yield from found.items()
                continue
            for trial in todo[: workers - len(running)]:
                running[pool.submit(train, trial)] = trial
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                trial = running.pop(future)
                done[trial] = future.result()
                keep(trial, done[trial], folder)
                yield trial, done[trial]


def best_rate(sweep: dict[float, Scores], metric: str, lower_is_better: bool) -> float | None:
    """The learning rate best on validation; None where every one diverged."""
    scored = {rate: s["validation"][metric] for rate, s in sweep.items() if "diverged" not in s}
    if not scored:
        return None
    return (min if lower_is_better else max)(scored, key=scored.get)


def chosen(trial: Trial, rates: tuple[float, ...], metric: str, lower: bool, done: Done) -> float | None:
    """The rate that a contender's sweep chose, where the sweep is done and not all diverged."""
    sweep = {rate: done.get(replace(trial, rate=rate)) for rate in rates}
    return None if None in sweep.values() else best_rate(sweep, metric, lower)


def spread(values: list[float]) -> dict[str, float]:
    """Mean, least and greatest."""
    return {"mean": statistics.fmean(values), "low": min(values), "high": max(values)}
