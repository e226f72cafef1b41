"""Where a race is written down: one SQLite file, `runs/races.sqlite`, in WAL mode.

The racing process is the one writer; any number of others may read while it writes. Writers are plain functions on a
connection, each one transaction. `load_race` gives the whole race back as a tree of dataclasses, which is all that
reports need. JSON columns hold no NaN: figures that are not finite are stored as null, and points come back as NaN.

Folders beside the file: `runs/<race id>/<contender>/seed<k>/` and `runs/<race id>/report.html`.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from formwright.race.opening import open_store, store_path
from formwright.race.reading import find, find_bench, find_race, list_benches, list_races, load_bench, load_race
from formwright.race.records import (
    VERSION,
    Bench,
    Contender,
    Measured,
    Point,
    Race,
    RaceNotFound,
    Sample,
    StoreError,
    Trial,
)

__all__ = [
    "VERSION", "Bench", "Contender", "Measured", "Point", "Race", "RaceNotFound", "Sample", "StoreError", "Trial",
    "add_contender", "add_cost", "add_points", "add_sample", "add_trial", "create_bench", "create_race", "find",
    "find_bench", "find_race", "list_benches", "list_races", "load_bench", "load_race", "now", "open_store",
    "remove_race", "store_path", "update_bench", "update_contender", "update_race", "update_trial",
]  # fmt: skip

_TABLES = {"race": "races", "bench": "benches"}


def now() -> str:
    """The time of day as the store writes it: ISO 8601, to the second, with the zone's offset."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def create_race(
    conn: sqlite3.Connection,
    data: str,
    *,
    options: dict[str, Any],
    machine: dict[str, Any],
    source: dict[str, Any],
    status: str = "running",
    id: str | None = None,
    created: str | None = None,
    bench: str | None = None,
    ability: str | None = None,
) -> str:
    """Write a new race and return its id, made of the data's name and the time unless `id` is given.

    Raises ValueError when a race of that id exists.
    """
    created = created or now()
    id = _free_id(conn, id, Path(data).stem, created)
    row = (id, created, status, data, _dump(options), _dump(machine), _dump(source), bench, ability)
    with conn:
        conn.execute(
            "INSERT INTO races (id, created, status, data, options, machine, source, bench, ability)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )
    return id


def create_bench(
    conn: sqlite3.Connection, suite: str, *, options: dict[str, Any], machine: dict[str, Any], id: str | None = None
) -> str:
    """Write a new bench and return its id, made of the suite's name and the time unless `id` is given.

    Raises ValueError when a bench or race of that id exists.
    """
    created = now()
    id = _free_id(conn, id, suite, created)
    row = (id, created, "running", suite, _dump(options), _dump(machine))
    with conn:
        conn.execute(
            "INSERT INTO benches (id, created, status, suite, options, machine) VALUES (?, ?, ?, ?, ?, ?)", row
        )
    return id


def update_bench(conn: sqlite3.Connection, bench: str, **changes: Any) -> None:
    """Change named columns of a bench: finished, status, options."""
    _update(conn, "benches", {"id": bench}, changes, ("finished", "status", "options"))


def _free_id(conn: sqlite3.Connection, id: str | None, stem: str, created: str) -> str:
    """`id`, or one made of `stem` and the time, that no race or bench has. Raises ValueError where `id` is taken."""
    taken = {row[0]: kind for kind in ("race", "bench") for row in conn.execute(f"SELECT id FROM {_TABLES[kind]}")}
    if id in taken:
        raise ValueError(f"a {taken[id]} with the id '{id}' exists: choose another id")
    if id is not None:
        return id
    stem = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:32].rstrip("-") or "race"
    first = f"{stem}-{datetime.fromisoformat(created):%Y%m%d-%H%M%S}"
    return next(name for name in [first, *(f"{first}-{n}" for n in range(2, 1000))] if name not in taken)


def update_race(conn: sqlite3.Connection, race: str, **changes: Any) -> None:
    """Change named columns of a race: finished, status, data, options, machine, source."""
    _update(conn, "races", {"id": race}, changes, ("finished", "status", "data", "options", "machine", "source"))


def remove_race(conn: sqlite3.Connection, race: str) -> None:
    """Take out a race that has no trials yet."""
    with conn:
        conn.execute("DELETE FROM contenders WHERE race = ?", (race,))
        conn.execute("DELETE FROM races WHERE id = ?", (race,))


def add_contender(
    conn: sqlite3.Connection,
    race: str,
    name: str,
    *,
    text: str,
    position: int | None = None,
    expression: str | None = None,
    dim: int | None = None,
    params: int | None = None,
    macs: int | None = None,
    folder: str | None = None,
    error: str | None = None,
    state_bytes: int | None = None,
) -> None:
    """Write one contender: `text` as the user wrote it, `macs` per token, `position` the next free one unless given."""
    with conn:
        if position is None:
            position = conn.execute("SELECT count(*) FROM contenders WHERE race = ?", (race,)).fetchone()[0]
        conn.execute(
            "INSERT INTO contenders VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            _plain((race, name, position, text, expression, dim, params, macs, folder, error, state_bytes)),
        )


def update_contender(conn: sqlite3.Connection, race: str, name: str, **changes: Any) -> None:
    """Change named columns of a contender: expression, dim, params, macs, folder, error, state_bytes."""
    columns = ("expression", "dim", "params", "macs", "folder", "error", "state_bytes")
    _update(conn, "contenders", {"race": race, "name": name}, changes, columns)


def add_trial(
    conn: sqlite3.Connection,
    race: str,
    contender: str,
    *,
    phase: str,
    seed: int,
    lr: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    status: str = "waiting",
    folder: str | None = None,
) -> int:
    """Write one trial and return its id. phase: 'sweep' or 'main'."""
    with conn:
        cursor = conn.execute(
            "INSERT INTO trials (race, contender, phase, seed, lr, steps, batch_size, status, folder)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            _plain((race, contender, phase, seed, lr, steps, batch_size, status, folder)),
        )
    return cursor.lastrowid


def update_trial(conn: sqlite3.Connection, trial: int, **changes: Any) -> None:
    """Change named columns of a trial: lr, steps, batch_size, status, attempts, seconds, tokens, tokens_per_second,
    scores ({"validation": {...}, "test": {...}}), error, folder. None clears a column."""
    columns = ("lr", "steps", "batch_size", "status", "attempts", "seconds", "tokens", "tokens_per_second")
    _update(conn, "trials", {"id": trial}, changes, (*columns, "scores", "error", "folder"))


def add_points(
    conn: sqlite3.Connection, trial: int, points: Iterable[tuple[int, int, float, str, str, float | None]]
) -> None:
    """Write scores of a trial in one transaction, each (step, tokens, seconds, split, score, value).

    A score already written for that step and split is replaced, so a resumed trial leaves no doubles.
    """
    rows = [(trial, *_plain(point)) for point in points]
    with conn:
        conn.executemany("INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


def add_cost(
    conn: sqlite3.Connection,
    race: str,
    contender: str,
    *,
    kind: str,
    length: int,
    batch: int = 1,
    milliseconds: float | None = None,
    low: float | None = None,
    high: float | None = None,
    peak_bytes: int | None = None,
    state_bytes: int | None = None,
    macs: int | None = None,
    load: float | None = None,
    bytes: int | None = None,
) -> None:
    """Write one measured cost (kind: 'forward', 'training', 'prefill', 'decode'); measuring again replaces it."""
    figures = (milliseconds, low, high, peak_bytes, state_bytes, macs, load, bytes)
    with conn:
        conn.execute(
            "INSERT OR REPLACE INTO costs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            _plain([race, contender, kind, length, batch, *figures]),
        )


def add_sample(
    conn: sqlite3.Connection, race: str, contender: str, *, seed: int, kind: str, content: dict[str, Any]
) -> None:
    """Write one sample (kind: 'text', 'forecast', 'image', 'table'); the same one twice is kept once."""
    row = (race, contender, seed, kind, _dump(content))
    with conn:
        conn.execute(
            "INSERT INTO samples SELECT ?, ?, ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM samples"
            " WHERE race = ? AND contender = ? AND seed = ? AND kind = ? AND content = ?)",
            (*row, *row),
        )


def _update(conn: sqlite3.Connection, table: str, key: dict, changes: dict, columns: tuple[str, ...]) -> None:
    unknown = sorted(set(changes) - set(columns))
    if unknown:
        raise TypeError(f"{table} have no column {', '.join(unknown)} to change; they have {', '.join(columns)}")
    if not changes:
        return
    values = [_dump(v) if isinstance(v, dict | list) else _plain(v) for v in changes.values()]
    with conn:
        cursor = conn.execute(
            f"UPDATE {table} SET {', '.join(f'{column} = ?' for column in changes)}"
            f" WHERE {' AND '.join(f'{column} = ?' for column in key)}",
            (*values, *key.values()),
        )
    if cursor.rowcount != 1:
        raise LookupError(f"there is no row {key} among the {table} to change")


def _dump(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """Python numbers for those of NumPy and PyTorch, None for what is not finite, text for paths."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, float):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
