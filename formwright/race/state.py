"""A race under way, and what it must remember besides its results to be taken up again."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from formwright import lang, parts
from formwright.race import plan, store
from formwright.race.contenders import Entry
from formwright.train.budget import Budget


@dataclass
class State:
    """What a race must remember besides its results, kept in plan.json: how its data are opened, what was planned.

    whole_sweep  sweep runs are as long as main runs, and the chosen one is the main run of seed 0
    enough       a validation score at which runs end early; samples: whether main runs make some"""

    source: dict[str, Any]
    fingerprint: str
    budget: str
    seeds: int
    rates: list[float]
    batch_size: int
    workers: int
    threads: int
    device: str | None
    measure: bool
    checkpoint_every: float
    sized: bool
    whole_sweep: bool = False
    enough: float | None = None
    samples: bool = True
    points: int = plan.POINTS
    spent: float = 0.0
    speeds: dict[str, dict[str, float]] = field(default_factory=dict)
    sweep: dict[str, int] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    main: dict[str, int] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)
    measured: list[str] = field(default_factory=list)


@dataclass
class Race:
    """A race under way: where it is written, what runs in it, and who listens. `began` is when this process took it up,
    in time.monotonic()'s seconds."""

    conn: sqlite3.Connection
    id: str
    folder: Path
    source: Any
    entries: list[Entry]
    budget: Budget
    state: State
    options: dict[str, Any]
    listen: Callable[[dict[str, Any]], None]
    began: float

    @property
    def running(self) -> list[Entry]:
        """The contenders still in the race."""
        return [entry for entry in self.entries if not entry.error]

    @property
    def spent(self) -> float:
        """Seconds this race has taken, in all processes that worked at it."""
        return self.state.spent + time.monotonic() - self.began


def save_state(race: Race) -> None:
    """Write plan.json, whole or not at all."""
    path = race.folder / "plan.json"
    scratch = path.with_suffix(".writing")
    entries = [{**asdict(replace(entry, tree=None)), "tree": str(entry.tree)} for entry in race.entries]
    stored = {**asdict(race.state), "spent": race.spent, "entries": entries}
    scratch.write_text(json.dumps(stored, indent=1), encoding="utf-8")
    os.replace(scratch, path)


def note(race: Race, text: str) -> None:
    """Add a sentence to the race's notes, once, and tell it."""
    notes = race.options.setdefault("notes", [])
    if text not in notes:
        notes.append(text)
        store.update_race(race.conn, race.id, options=race.options)
        race.listen({"event": "note", "text": text})


def drop(race: Race, name: str, reason: str) -> None:
    """Take a contender out of the race, with its reason."""
    race.entries = [replace(e, error=reason) if e.name == name else e for e in race.entries]
    store.update_contender(race.conn, race.id, name, error=reason)
    race.listen({"event": "contender", "contender": name, "error": reason})


def read_state(folder: Path) -> tuple[State, list[Entry]]:
    """What save_state wrote. Raises FileNotFoundError."""
    stored = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    entries = []
    for entry in stored.pop("entries"):
        for target in entry["files"].values():
            parts.load(target)
        entries.append(Entry(**{**entry, "tree": lang.parse(entry["tree"])}))
    return State(**stored), entries
