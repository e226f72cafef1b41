"""One piece of a race's work, in whatever process an engine gives it: a training run, a calibration, or measuring.

A job is a plain dictionary, and what comes of it are plain dictionaries handed to `emit`; the last of them is "done",
"diverged", "failed" or "interrupted". A training run keeps checkpoints in its folder and goes on from the last one
there; once it is done the folder holds model.safetensors, log.jsonl and copies of the user's files that it needs.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Emit = Callable[[dict[str, Any]], None]
FINAL = ("done", "diverged", "failed", "interrupted")
TOLD = ("step", "evaluation", "scored", "checkpoint", "note")  # of a run's events; the log has them all


def run_job(job: dict[str, Any], emit: Emit, sources: dict[str, Any]) -> None:
    """Do the job, whatever it is, and tell how it ended; only a second Ctrl-C gets out of here.

    `sources` keeps opened data between the jobs of one process."""
    from formwright.train import Diverged

    kinds = {"train": train, "calibrate": calibrate, "measure": measure}
    try:
        emit({"event": "done", **kinds[job["kind"]](job, emit, sources)})
    except Diverged as error:
        emit({"event": "diverged", "error": str(error)})
    except KeyboardInterrupt:
        emit({"event": "interrupted"})
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        first = str(error).strip().split("\n")[0]
        emit({"event": "failed", "error": f"{type(error).__name__}: {first}" if first else type(error).__name__})


def train(job: dict[str, Any], emit: Emit, sources: dict[str, Any]) -> dict[str, Any]:
    """Train, score validation, and for a main run test too; save the model."""
    from formwright import save
    from formwright.race.samples import samples
    from formwright.train import evaluate, fit

    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    source, model = prepare(job, sources, folder)
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:

        def tell(event: dict[str, Any]) -> None:
            log.write(json.dumps(event, default=str) + "\n")
            log.flush()
            if event["event"] in TOLD:
                emit(event)

        result = fit(
            model,
            source,
            steps=job["steps"],
            batch_size=job["batch_size"],
            lr=job["lr"],
            seed=job["seed"],
            evaluate_every=max(1, math.ceil(job["steps"] / job["points"])),
            evaluation_items=job["items"]["curve"],
            checkpoint_every=job["checkpoint_every"],
            enough=job["enough"],
            folder=folder / "checkpoints",
            resume=True,
            device=job["device"],
            on_event=thinned(tell),
        )
        scores = {"validation": result.scores}
        for split in ("validation", "test"):
            limit = job["items"].get(split)
            if limit and (split, limit) != ("validation", job["items"]["curve"]):
                scores[split] = evaluate(model, source, split, job["batch_size"], limit)
                tell({"event": "scored", "split": split, "items": limit, **scores[split]})
        if job["keep"]:
            save(model, folder / "model.safetensors")
    if job["samples"]:
        for kind, content in samples(model, source, seed=job["seed"]):
            emit({"event": "sample", "kind": kind, "content": content})
    return {
        "scores": scores,
        "steps": result.step,
        "seconds": result.seconds,
        "tokens": result.tokens,
        "tokens_per_second": result.tokens_per_second,
        "curve": result.curve,
        "evaluations": result.evaluations,
    }


def calibrate(job: dict[str, Any], emit: Emit, sources: dict[str, Any]) -> dict[str, Any]:
    """The seconds of one training step, and of what comes before a run's first step."""
    from formwright import train

    source, model = prepare(job, sources)
    # A source that is open already is not opened again by the next run, so the start is timed from here.
    began = time.perf_counter()
    prepare(job, sources)
    started = time.perf_counter() - began
    step = train.calibrate(model, source, seconds=job["seconds"], batch_size=job["batch_size"], device=job["device"])
    return {"step_seconds": step, "start_seconds": started + 2 * step}


def measure(job: dict[str, Any], emit: Emit, sources: dict[str, Any]) -> dict[str, Any]:
    """Costs at several lengths, as rows for the store, and notes on them."""
    from formwright.race.measuring import measure_costs

    source, model = prepare(job, sources)
    return measure_costs(model, source, seconds=job["seconds"])


def prepare(job: dict[str, Any], sources: dict[str, Any], folder: Path | None = None) -> tuple[Any, Any]:
    """The job's source and its model, fresh from the seed. With a folder, users' files are copied into it and loaded
    from there, so that the saved model finds them beside itself."""
    from formwright import data, parts
    from formwright.build import build

    for target in job["files"]:
        path, _, class_name = target.rpartition(":")
        if folder is not None:
            path = shutil.copyfile(path, folder / Path(path).name)
        parts.load(f"{path}:{class_name}")
    key = json.dumps(job["source"], sort_keys=True)
    if key not in sources:
        sources.clear()
        sources[key] = data.open(**job["source"])
    source = sources[key]
    return source, build(job["expression"], source, seed=job["seed"])


def thinned(emit: Emit) -> Emit:
    """Pass on the steps that are points of the learning curve, each with the mean loss since the one before, and all
    other events."""
    from formwright.train.run import POINTS

    losses: list[float] = []

    def pass_on(event: dict[str, Any]) -> None:
        if event["event"] != "step":
            emit(event)
            return
        losses.append(event["loss"])
        step, steps = event["step"], event["steps"]
        if step in (1, steps) or step % max(1, steps // POINTS) == 0:
            emit({**event, "loss": sum(losses) / len(losses)})
            losses.clear()

    return pass_on
