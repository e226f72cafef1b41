"""Reading a store of races: one race or bench as a tree, all of them, or the one that a user's word names.

Each read is one snapshot, so that a race still being written by another process is seen at one moment.
"""

from __future__ import annotations

import difflib
import json
import math
import sqlite3
from pathlib import Path

from formwright.race.records import Bench, Contender, Measured, Point, Race, RaceNotFound, Sample, Trial


def load_race(conn: sqlite3.Connection, race: str) -> Race:
    """The whole race as a tree, read in one snapshot. Raises RaceNotFound for an id that is not there."""
    with conn:
        conn.execute("BEGIN")
        tree = _trees(conn, "WHERE id = ?", (race,))
        if not tree:
            raise RaceNotFound(f"there is no race '{race}' in {_file(conn)}")
        contenders = {contender.name: contender for contender in tree[0].contenders}
        trials = {trial.id: trial for contender in tree[0].contenders for trial in contender.trials}
        for trial, *rest, value in conn.execute(
            "SELECT p.* FROM points p JOIN trials t ON t.id = p.trial WHERE t.race = ? ORDER BY p.trial, p.step",
            (race,),
        ):
            trials[trial].points.append(Point(*rest, math.nan if value is None else value))
        for _, name, *rest in conn.execute("SELECT * FROM costs WHERE race = ? ORDER BY kind, batch, length", (race,)):
            contenders[name].costs.append(Measured(*rest))
        for name, seed, kind, content in conn.execute(
            "SELECT contender, seed, kind, content FROM samples WHERE race = ? ORDER BY rowid", (race,)
        ):
            contenders[name].samples.append(Sample(seed, kind, json.loads(content)))
    return tree[0]


def list_races(conn: sqlite3.Connection) -> list[Race]:
    """All races, newest first, each with its contenders and trials but without points, costs and samples."""
    with conn:
        conn.execute("BEGIN")
        return _trees(conn, "WHERE bench IS NULL", ())


def load_bench(conn: sqlite3.Connection, bench: str) -> Bench:
    """A bench with its races, each as `list_races` gives them. Raises RaceNotFound for an id that is not there."""
    found = [each for each in list_benches(conn) if each.id == bench]
    if not found:
        raise RaceNotFound(f"there is no bench '{bench}' in {_file(conn)}")
    return found[0]


def list_benches(conn: sqlite3.Connection) -> list[Bench]:
    """All benches, newest first, with their races."""
    with conn:
        conn.execute("BEGIN")
        races = _trees(conn, "WHERE bench IS NOT NULL", ())
        benches = []
        for id, created, finished, status, suite, options, machine in conn.execute(
            "SELECT * FROM benches ORDER BY julianday(created) DESC, rowid DESC"
        ):
            mine = [race for race in reversed(races) if race.bench == id]
            home = _file(conn).parent / id
            benches.append(
                Bench(id, created, finished, status, suite, json.loads(options), json.loads(machine), home, mine)
            )
    return benches


def find_race(conn: sqlite3.Connection, what: str | Path) -> str:
    """The id of the race that `what` names: an id, the unique start of one, 'latest', or a path in its run folder.

    Raises RaceNotFound, naming the nearest ids, when none or several answer.
    """
    newest = "ORDER BY julianday(created) DESC, rowid DESC"
    ids = [row[0] for row in conn.execute(f"SELECT id FROM races {newest}")]
    if not ids:
        raise RaceNotFound(f"there is no race in {_file(conn)} yet: start one with `formwright race`")
    alone = [row[0] for row in conn.execute(f"SELECT id FROM races WHERE bench IS NULL {newest}")]
    return _named(conn, str(what), ids, (alone or ids)[0], "race")


def find_bench(conn: sqlite3.Connection, what: str | Path) -> str:
    """The id of the bench that `what` names, as for find_race."""
    ids = [row[0] for row in conn.execute("SELECT id FROM benches ORDER BY julianday(created) DESC, rowid DESC")]
    if not ids:
        raise RaceNotFound(f"there is no bench in {_file(conn)} yet: start one with `formwright bench`")
    return _named(conn, str(what), ids, ids[0], "bench")


def find(conn: sqlite3.Connection, what: str | Path) -> Race | Bench:
    """The bench or race that `what` names, loaded, 'latest' being the newer of both. The start of a bench's id names
    the bench, though its races' ids begin alike.

    Raises RaceNotFound."""
    what = str(what)
    benches = dict(conn.execute("SELECT id, julianday(created) FROM benches"))
    races = dict(conn.execute("SELECT id, julianday(created) FROM races WHERE bench IS NULL"))
    if what == "latest":
        bench = bool(benches) and (not races or max(benches.values()) >= max(races.values()))
    else:
        starting = [id for id in (*benches, *races) if what and id.startswith(what)]
        bench = what in benches or (len(starting) == 1 and starting[0] in benches)
    if not bench:
        try:
            return load_race(conn, find_race(conn, what))
        except RaceNotFound:
            if not benches or not Path(what).exists():
                raise
    return load_bench(conn, find_bench(conn, what))


def _named(conn: sqlite3.Connection, what: str, ids: list[str], latest: str, kind: str) -> str:
    """The one of these ids, newest first, that `what` names."""
    if what in ids:
        return what
    if what == "latest":
        return latest
    if Path(what).exists():
        home = _file(conn).parent.resolve()
        folders = [home / id for id in ids]
        inside = [f for f in (Path(what).resolve(), *Path(what).resolve().parents) if f in folders]
        if inside:
            return ids[folders.index(inside[0])]
    starting = [id for id in ids if what and id.startswith(what)]
    if len(starting) == 1:
        return starting[0]
    if starting:
        many = "benches" if kind == "bench" else "races"
        raise RaceNotFound(f"'{what}' is the start of {len(starting)} {many}: {_few(starting)}. Write more of the id")
    near = difflib.get_close_matches(what, ids, n=3, cutoff=0.4) or ids[:3]
    raise RaceNotFound(f"there is no {kind} '{what}'; the nearest are {_few(near)} (or say 'latest')")


def _trees(conn: sqlite3.Connection, where: str, values: tuple) -> list[Race]:
    home = _file(conn).parent
    races: dict[str, Race] = {}
    for id, created, finished, status, data, options, machine, source, bench, ability in conn.execute(
        f"SELECT * FROM races {where} ORDER BY julianday(created) DESC, rowid DESC", values
    ):
        loaded = map(json.loads, (options, machine, source))
        place = {"folder": home / id, "bench": bench, "ability": ability}
        races[id] = Race(id, created, finished, status, data, *loaded, **place)
    for race, tree in races.items():
        rows = conn.execute("SELECT * FROM contenders WHERE race = ? ORDER BY position, name", (race,))
        tree.contenders = [Contender(*row[1:]) for row in rows]
        by_name = {contender.name: contender for contender in tree.contenders}
        for row in conn.execute("SELECT * FROM trials WHERE race = ? ORDER BY id", (race,)):
            id, _, name, *middle, scores, error, folder = row
            by_name[name].trials.append(Trial(id, name, *middle, json.loads(scores or "{}"), error, folder))
    return list(races.values())


def _file(conn: sqlite3.Connection) -> Path:
    return Path(conn.execute("PRAGMA database_list").fetchone()[2])


def _few(ids: list[str]) -> str:
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
