"""The store: what is written comes back, a newer or foreign file is refused, a reader never waits for the writer."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from formwright.race import store


def small_race(conn, name="notes.txt", **more):
    race = store.create_race(conn, name, options={"seeds": 2}, machine={"cores": 2}, source={"metric": "mse"}, **more)
    store.add_contender(conn, race, "a", text="attention", params=10)
    store.add_contender(conn, race, "b", text="gla", error="too deep")
    return race


@pytest.fixture
def conn(tmp_path):
    connection = store.open_store(tmp_path / "runs" / "races.sqlite")
    yield connection
    connection.close()


def test_a_race_comes_back_as_it_was_written(conn, tmp_path):
    race = small_race(conn, created="2026-01-02T03:04:05+00:00")
    assert race == "notes-20260102-030405"
    trial = store.add_trial(conn, race, "a", phase="main", seed=7, lr=1e-3, steps=20, batch_size=4)
    store.add_points(conn, trial, [(2, 64, 0.5, "train", "loss", 1.5), (1, 32, 0.2, "train", "loss", math.nan)])
    store.update_trial(conn, trial, status="done", attempts=1, scores={"test": {"mse": 0.25, "mae": math.inf}})
    store.add_cost(conn, race, "a", kind="forward", length=512, batch=2, milliseconds=1.5, peak_bytes=99, load=0.5)
    store.add_sample(conn, race, "a", seed=7, kind="text", content={"prompt": "Ünï", "generated": "</script>"})
    store.update_contender(conn, race, "a", dim=64, expression="attention")
    store.update_race(conn, race, status="done", finished="2026-01-02T04:00:00+00:00", source={"metric": "mae"})

    tree = store.load_race(conn, race)
    assert (tree.id, tree.status, tree.data, tree.options) == (race, "done", "notes.txt", {"seeds": 2})
    assert tree.source == {"metric": "mae"} and tree.folder == tmp_path / "runs" / race
    a, b = tree.contenders
    assert (a.name, a.position, a.dim, a.params, b.position, b.error) == ("a", 0, 64, 10, 1, "too deep")
    (found,) = a.trials
    assert (found.id, found.seed, found.lr, found.steps, found.status) == (trial, 7, 1e-3, 20, "done")
    assert found.scores == {"test": {"mse": 0.25, "mae": None}}
    assert [p.step for p in found.points] == [1, 2]
    assert math.isnan(found.points[0].value) and found.points[1].value == 1.5
    assert a.costs == [store.Measured("forward", 512, 2, 1.5, None, None, 99, None, None, 0.5)]
    assert a.samples == [store.Sample(7, "text", {"prompt": "Ünï", "generated": "</script>"})]
    assert not b.trials and not b.costs and not b.samples


def test_writing_again_replaces_points_and_costs_and_keeps_one_sample(conn):
    race = small_race(conn)
    trial = store.add_trial(conn, race, "a", phase="main", seed=0)
    for value in (1.0, 2.0):
        store.add_points(conn, trial, [(5, 10, 0.1, "train", "loss", value)])
        store.add_cost(conn, race, "a", kind="decode", length=8, milliseconds=value)
        store.add_sample(conn, race, "a", seed=0, kind="text", content={"prompt": "p"})
    a = store.load_race(conn, race).contenders[0]
    assert [p.value for p in a.trials[0].points] == [2.0]
    assert [c.milliseconds for c in a.costs] == [2.0]
    assert len(a.samples) == 1


def test_numbers_of_numpy_are_stored_as_numbers(conn):
    race = small_race(conn)
    trial = store.add_trial(conn, race, "a", phase="sweep", seed=np.int64(3), lr=np.float32(0.5))
    store.add_points(conn, trial, [(np.int64(1), 2, np.float32(0.25), "train", "loss", np.float32(0.5))])
    store.update_trial(conn, trial, scores={"validation": {"mse": np.float32(0.5)}})
    (found,) = store.load_race(conn, race).contenders[0].trials
    assert (found.seed, found.lr, found.scores) == (3, 0.5, {"validation": {"mse": 0.5}})
    assert (found.points[0].step, found.points[0].seconds, found.points[0].value) == (1, 0.25, 0.5)


def test_changes_name_real_columns_and_rows(conn):
    race = small_race(conn)
    with pytest.raises(TypeError, match="no column statsu to change; they have lr"):
        store.update_trial(conn, 1, statsu="done")
    with pytest.raises(LookupError, match="no row"):
        store.update_race(conn, "elsewhere", status="done")
    with pytest.raises(sqlite3.IntegrityError):
        store.add_trial(conn, race, "nobody", phase="main", seed=0)
    with pytest.raises(sqlite3.IntegrityError):
        store.add_trial(conn, race, "a", phase="mane", seed=0)
    with pytest.raises(ValueError, match="exists"):
        store.create_race(conn, "x", options={}, machine={}, source={}, id=race)


def test_two_races_of_one_second_have_two_ids(conn):
    made = [small_race(conn, "My Notes!.txt", created="2026-01-02T03:04:05+00:00") for _ in range(2)]
    assert made == ["my-notes-20260102-030405", "my-notes-20260102-030405-2"]


def test_find_race(conn, tmp_path):
    with pytest.raises(store.RaceNotFound, match="start one with"):
        store.find_race(conn, "latest")
    # the offsets matter: the second is the later moment although its text sorts first
    old = small_race(conn, "digits", created="2026-03-01T10:30:00+02:00")
    new = small_race(conn, "notes.txt", created="2026-03-01T09:00:00+00:00")
    assert store.find_race(conn, "latest") == new
    assert store.find_race(conn, old) == old
    assert store.find_race(conn, "dig") == old
    folder = tmp_path / "runs" / old / "a" / "seed0"
    folder.mkdir(parents=True)
    assert store.find_race(conn, folder) == old
    assert store.find_race(conn, f"{tmp_path}/runs/{old}/") == old
    assert store.store_path(str(folder), "elsewhere.sqlite") == (tmp_path / "runs" / "races.sqlite").resolve()
    assert str(store.store_path("dig", "elsewhere.sqlite")) == "elsewhere.sqlite"
    with pytest.raises(store.RaceNotFound, match=f"no race 'digts-2026'; the nearest are {old}"):
        store.find_race(conn, "digts-2026")
    small_race(conn, "digits", created="2026-03-02T10:30:00+02:00")
    with pytest.raises(store.RaceNotFound, match="start of 2 races"):
        store.find_race(conn, "digits")
    with pytest.raises(store.RaceNotFound, match="there is no race ''"):
        store.find_race(conn, "")


def test_list_is_newest_first_and_light(conn):
    old = small_race(conn, "one", created="2026-03-01T10:30:00+02:00")
    new = small_race(conn, "two", created="2026-03-01T09:00:00+00:00")
    trial = store.add_trial(conn, old, "a", phase="main", seed=0)
    store.add_points(conn, trial, [(1, 1, 1.0, "train", "loss", 1.0)])
    races = store.list_races(conn)
    assert [race.id for race in races] == [new, old]
    assert races[1].contenders[0].trials[0].points == []
    with pytest.raises(store.RaceNotFound):
        store.load_race(conn, "elsewhere")


OLD = """
CREATE TABLE races (
    id TEXT PRIMARY KEY, created TEXT NOT NULL, finished TEXT, status TEXT NOT NULL, data TEXT NOT NULL,
    options TEXT NOT NULL, machine TEXT NOT NULL, source TEXT NOT NULL);
CREATE TABLE contenders (
    race TEXT NOT NULL REFERENCES races(id), name TEXT NOT NULL, position INTEGER NOT NULL, text TEXT NOT NULL,
    expression TEXT, dim INTEGER, params INTEGER, macs INTEGER, folder TEXT, error TEXT, PRIMARY KEY (race, name));
CREATE TABLE trials (
    id INTEGER PRIMARY KEY, race TEXT NOT NULL, contender TEXT NOT NULL, phase TEXT, seed INTEGER, lr REAL,
    steps INTEGER, batch_size INTEGER, status TEXT, attempts INTEGER, seconds REAL, tokens INTEGER,
    tokens_per_second REAL, scores TEXT, error TEXT, folder TEXT);
CREATE TABLE points (trial INTEGER, step INTEGER, tokens INTEGER, seconds REAL, split TEXT, score TEXT, value REAL);
CREATE TABLE costs (
    race TEXT, contender TEXT, kind TEXT, length INTEGER, batch INTEGER, milliseconds REAL, low REAL, high REAL,
    peak_bytes INTEGER, state_bytes INTEGER, macs INTEGER, load REAL);
CREATE TABLE samples (race TEXT, contender TEXT, seed INTEGER, kind TEXT, content TEXT);
INSERT INTO races VALUES ('old', '2026-01-01T00:00:00+00:00', NULL, 'done', 'notes.txt', '{"seeds": 1}', '{}', '{}');
INSERT INTO contenders VALUES ('old', 'a', 0, 'gla', 'gla', 64, 1000, 10, NULL, NULL);
INSERT INTO costs VALUES ('old', 'a', 'decode', 128, 1, 2.5, 2.0, 3.0, 1000, 64, 10, 0.5);
PRAGMA user_version = 1;
"""


def test_a_store_of_the_first_version_is_brought_to_this_one(tmp_path):
    path = tmp_path / "races.sqlite"
    raw = sqlite3.connect(path)
    raw.executescript(OLD)
    raw.close()
    conn = store.open_store(path)
    old = store.load_race(conn, "old")
    assert (old.options, old.bench, old.ability, old.contenders[0].dim) == ({"seeds": 1}, None, None, 64)
    (cost,) = old.contenders[0].costs
    assert (cost.kind, cost.milliseconds, cost.load, cost.bytes) == ("decode", 2.5, 0.5, None)
    store.add_cost(conn, "old", "a", kind="training", length=128, milliseconds=7.0, bytes=99)
    assert store.load_race(conn, "old").contenders[0].costs[-1].bytes == 99
    bench = store.create_bench(conn, "quick", options={"seeds": 3}, machine={})
    race = small_race(conn, id=f"{bench}/recall", bench=bench, ability="recall")
    store.update_contender(conn, race, "a", state_bytes=640)
    conn.close()
    conn = store.open_store(path)
    (found,) = store.list_benches(conn)
    assert (found.id, found.suite, found.status, found.options) == (bench, "quick", "running", {"seeds": 3})
    assert [(r.id, r.ability, r.contenders[0].state_bytes) for r in found.races] == [(race, "recall", 640)]
    assert found.races[0].folder == tmp_path / bench / "recall"
    conn.close()


def test_races_of_a_bench_stand_under_it(conn, tmp_path):
    alone = small_race(conn, created="2026-01-02T03:04:05+00:00")
    bench = store.create_bench(conn, "quick", options={}, machine={}, id="mine")
    race = small_race(conn, id="mine/recall", bench=bench, ability="recall")
    assert [r.id for r in store.list_races(conn)] == [alone] and store.find_race(conn, "latest") == alone
    assert store.find_race(conn, "mine/re") == race and store.find_bench(conn, "latest") == bench
    (tmp_path / "runs" / "mine" / "recall" / "gla").mkdir(parents=True)
    assert store.find_race(conn, tmp_path / "runs" / "mine" / "recall" / "gla") == race
    assert store.find_bench(conn, tmp_path / "runs" / "mine" / "recall") == bench
    with pytest.raises(store.RaceNotFound, match="no bench 'qick'; the nearest are mine"):
        store.find_bench(conn, "qick")
    with pytest.raises(ValueError, match="a bench with the id 'mine' exists"):
        small_race(conn, id="mine")
    store.update_bench(conn, bench, status="done", finished=store.now())
    assert store.load_bench(conn, bench).status == "done"
    store.remove_race(conn, race)
    assert store.load_bench(conn, bench).races == []


def test_files_that_are_no_store_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no race yet"):
        store.open_store(tmp_path / "none.sqlite", create=False)
    newer = tmp_path / "newer.sqlite"
    store.open_store(newer).close()
    with sqlite3.connect(newer) as raw:
        raw.execute(f"PRAGMA user_version = {store.VERSION + 1}")
    with pytest.raises(store.StoreError, match="newer formwright"):
        store.open_store(newer)
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as raw:
        raw.execute("CREATE TABLE songs (title TEXT)")
    with pytest.raises(store.StoreError, match="not a store of races"):
        store.open_store(foreign)
    text = tmp_path / "text.sqlite"
    text.write_text("this is no database, and long enough for SQLite to notice it. " * 20)
    with pytest.raises(store.StoreError, match="cannot use"):
        store.open_store(text)
    with pytest.raises(store.StoreError, match="cannot open"):
        store.open_store(tmp_path)


WRITER = """
import sys
from formwright.race import store
conn = store.open_store(sys.argv[1])
conn.execute("BEGIN IMMEDIATE")
conn.execute("UPDATE races SET status = 'half-written'")
print("writing", flush=True)
sys.stdin.readline()
conn.execute("COMMIT")
"""


def test_reading_goes_on_while_another_process_writes(conn, tmp_path):
    race = small_race(conn)
    path = tmp_path / "runs" / "races.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "writing\n"
        conn.execute("PRAGMA busy_timeout = 0")  # a read that had to wait would raise
        assert store.load_race(conn, race).status == "running"
        assert store.open_store(path).execute("SELECT count(*) FROM races").fetchone() == (1,)
        writer.communicate("\n")
    assert store.load_race(conn, race).status == "half-written"


def test_store_and_terminal_report_do_not_import_torch():
    code = (
        "import sys, formwright.race.store, formwright.report.terminal, formwright.report.page, formwright.report.png, "
        "formwright.report.csv; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
