"""Opening a store of races: made where it is missing, brought to this version where it is older, refused where it is
newer or no store."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from formwright.race.records import MIGRATIONS, SCHEMA, VERSION, StoreError

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
    if not version and conn.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0]:
        # Another process may have made the tables since user_version was read; otherwise the file is someone else's.
        if conn.execute("PRAGMA user_version").fetchone()[0] == VERSION:
            return
        raise StoreError(f"{path} is an SQLite file, but not a store of races: choose another folder for the runs")
    conn.execute("PRAGMA journal_mode = WAL")
    conn.isolation_level = None
    try:
        conn.execute("BEGIN IMMEDIATE")
        version = conn.execute("PRAGMA user_version").fetchone()[0]
        steps = [MIGRATIONS[older] for older in range(version, VERSION)] if version else [SCHEMA]
        for statement in ";".join(steps).split(";"):
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
