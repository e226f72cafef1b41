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

from formwright.race.reading import find_race, list_races, load_race
from formwright.race.records import (
    SCHEMA,
    VERSION,
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
    "Contender", "Measured", "Point", "Race", "RaceNotFound", "Sample", "StoreError", "Trial", "add_contender",
    "add_cost", "add_points", "add_sample", "add_trial", "create_race", "find_race", "list_races", "load_race",
    "now", "open_store", "store_path", "update_contender", "update_race", "update_trial",
]  # fmt: skip

BUSY_SECONDS = 30.0  # how long a write waits for another process's write before it gives up


def open_store(path: str | Path, *, create: bool = True) -> sqlite3.Connection:
    """Open the store at `path`, made if it is missing and `create` is set. Readers and one writer may share it.

    Raises FileNotFoundError when it is missing and may not be made, StoreError when the file is no store or was written
    by a newer formwright.
    """
    path = Path(path)
    if not create and not path.exists():
        raise FileNotFoundError(f"there is no race yet: {path} does not exist. Start one with `formwright race`")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        conn = sqlite3.connect(path, timeout=BUSY_SECONDS)
    except sqlite3.OperationalError as error:
        raise StoreError(f"cannot open the store of races at {path}: {error}") from error
    try:
        _prepare(conn, path)
    except sqlite3.DatabaseError as error:
        conn.close()
        raise StoreError(f"cannot use {path} as a store of races: {error}") from error
    except StoreError:
        conn.close()
        raise
    return conn


def _prepare(conn: sqlite3.Connection, path: Path) -> None:
    version = conn.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise StoreError(
            f"{path} was written by a newer formwright (schema {version}, this one knows {VERSION}): "
            "upgrade formwright, or choose another folder for the runs"
        )
    conn.execute("PRAGMA foreign_keys = ON")
    if version == VERSION:
        return
    if conn.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0]:
        # Another process may have made the tables since user_version was read; otherwise the file is someone else's.
        if conn.execute("PRAGMA user_version").fetchone()[0] == VERSION:
            return
        raise StoreError(f"{path} is an SQLite file, but not a store of races: choose another folder for the runs")
    conn.execute("PRAGMA journal_mode = WAL")
    conn.isolation_level = None
    try:
        conn.execute("BEGIN IMMEDIATE")
        if conn.execute("PRAGMA user_version").fetchone()[0] < VERSION:
            for statement in SCHEMA.split(";"):
                conn.execute(statement)
            conn.execute(f"PRAGMA user_version = {VERSION}")
        conn.execute("COMMIT")
    finally:
        conn.isolation_level = ""


def store_path(what: str, default: str | Path) -> Path:
    """The store that `what` belongs to: the one beside a run folder (or above a file in it), else `default`."""
    here = Path(what)
    if here.exists():
        for folder in (here.resolve(), *here.resolve().parents):
            if (folder / "races.sqlite").is_file():
                return folder / "races.sqlite"
    return Path(default)


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
) -> str:
    """Write a new race and return its id, made of the data's name and the time unless `id` is given.

    Raises ValueError when a race of that id exists.
    """
    created = created or now()
    taken = {row[0] for row in conn.execute("SELECT id FROM races")}
    if id in taken:
        raise ValueError(f"a race with the id '{id}' exists: choose another id")
    if id is None:
        stem = re.sub(r"[^a-z0-9]+", "-", Path(data).stem.lower()).strip("-")[:32].rstrip("-") or "race"
        first = f"{stem}-{datetime.fromisoformat(created):%Y%m%d-%H%M%S}"
        id = next(name for name in [first, *(f"{first}-{n}" for n in range(2, 1000))] if name not in taken)
    row = (id, created, status, data, _dump(options), _dump(machine), _dump(source))
    with conn:
        conn.execute(
            "INSERT INTO races (id, created, status, data, options, machine, source) VALUES (?, ?, ?, ?, ?, ?, ?)", row
        )
    return id


def update_race(conn: sqlite3.Connection, race: str, **changes: Any) -> None:
    """Change named columns of a race: finished, status, data, options, machine, source."""
    _update(conn, "races", {"id": race}, changes, ("finished", "status", "data", "options", "machine", "source"))


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
) -> None:
    """Write one contender: `text` as the user wrote it, `macs` per token, `position` the next free one unless given."""
    with conn:
        if position is None:
            position = conn.execute("SELECT count(*) FROM contenders WHERE race = ?", (race,)).fetchone()[0]
        conn.execute(
            "INSERT INTO contenders (race, name, position, text, expression, dim, params, macs, folder, error)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            _plain((race, name, position, text, expression, dim, params, macs, folder, error)),
        )


def update_contender(conn: sqlite3.Connection, race: str, name: str, **changes: Any) -> None:
    """Change named columns of a contender: expression, dim, params, macs, folder, error."""
    columns = ("expression", "dim", "params", "macs", "folder", "error")
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
) -> None:
    """Write one measured cost (kind: 'forward', 'decode', 'prefill'); measuring again replaces it."""
    row = _plain([race, contender, kind, length, batch, milliseconds, low, high, peak_bytes, state_bytes, macs, load])
    with conn:
        conn.execute("INSERT OR REPLACE INTO costs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)


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
