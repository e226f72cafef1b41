"""From the events of jobs to the store, by the racing process alone, and on to whoever listens."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from formwright.race import store

Listener = Callable[[dict[str, Any]], None]
SCORES = ("step", "tokens", "seconds")


def recorder(conn: sqlite3.Connection, race: str, listen: Listener) -> Callable[[dict, dict], None]:
    """report(job, event) of training jobs: writes them down, then tells `listen`, with contender, phase and seed."""

    def report(job: dict[str, Any], event: dict[str, Any]) -> None:
        trial = job["id"]
        kind = event["event"]
        if kind == "started":
            changes = {"status": "running", "attempts": job["attempts"] + event["attempt"], "error": None}
            store.update_trial(conn, trial, **changes)
        elif kind == "step":
            store.add_points(conn, trial, [train_point(event)])
        elif kind == "evaluation":
            store.add_points(conn, trial, validation_points(event))
        elif kind == "sample":
            place = {"seed": job["seed"], "kind": event["kind"], "content": event["content"]}
            store.add_sample(conn, race, job["contender"], **place)
        elif kind == "done":
            points = [train_point(p) for p in event["curve"]]
            points += [point for e in event["evaluations"] for point in validation_points(e)]
            store.add_points(conn, trial, points)
            figures = {name: event[name] for name in ("seconds", "tokens", "tokens_per_second", "scores")}
            store.update_trial(conn, trial, status="done", **figures)
            event = {k: v for k, v in event.items() if k not in ("curve", "evaluations")}
        elif kind in ("diverged", "failed"):
            store.update_trial(conn, trial, status=kind, error=event["error"])
        elif kind == "interrupted":
            store.update_trial(conn, trial, status="interrupted")
        about = {name: job[name] for name in ("contender", "phase", "seed", "lr", "steps")}
        told = {name: value for name, value in event.items() if name not in ("job", "attempt") or kind == "started"}
        listen({**about, **told, "trial": trial})

    return report


def train_point(event: dict[str, Any]) -> tuple:
    """A row of `points`: the training loss at a step."""
    return (*(event[name] for name in SCORES), "train", "loss", event["loss"])


def validation_points(event: dict[str, Any]) -> list[tuple]:
    """Rows of `points`: every score of an evaluation."""
    where = tuple(event[name] for name in SCORES)
    known = {*SCORES, "event", "split", "final", "job", "attempt"}
    return [(*where, "validation", name, value) for name, value in event.items() if name not in known]
