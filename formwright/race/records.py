"""The tables of a store of races, and races and benches as trees of plain records, which every report is made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = 3  # PRAGMA user_version of the file; raise it with every change of SCHEMA, and say in MIGRATIONS what changed

SCHEMA = """
CREATE TABLE races (
    id TEXT PRIMARY KEY, created TEXT NOT NULL, finished TEXT, status TEXT NOT NULL, data TEXT NOT NULL,
    options TEXT NOT NULL, machine TEXT NOT NULL, source TEXT NOT NULL, bench TEXT REFERENCES benches(id),
    ability TEXT);
CREATE TABLE benches (
    id TEXT PRIMARY KEY, created TEXT NOT NULL, finished TEXT, status TEXT NOT NULL, suite TEXT NOT NULL,
    options TEXT NOT NULL, machine TEXT NOT NULL);
CREATE TABLE contenders (
    race TEXT NOT NULL REFERENCES races(id), name TEXT NOT NULL, position INTEGER NOT NULL, text TEXT NOT NULL,
    expression TEXT, dim INTEGER, params INTEGER, macs INTEGER, folder TEXT, error TEXT,
    state_bytes INTEGER, PRIMARY KEY (race, name));
CREATE TABLE trials (
    id INTEGER PRIMARY KEY, race TEXT NOT NULL, contender TEXT NOT NULL,
    phase TEXT NOT NULL CHECK (phase IN ('sweep', 'main')), seed INTEGER NOT NULL, lr REAL, steps INTEGER,
    batch_size INTEGER,
    status TEXT NOT NULL CHECK (status IN ('waiting', 'running', 'done', 'diverged', 'failed', 'interrupted')),
    attempts INTEGER NOT NULL DEFAULT 0, seconds REAL, tokens INTEGER, tokens_per_second REAL, scores TEXT, error TEXT,
    folder TEXT, FOREIGN KEY (race, contender) REFERENCES contenders(race, name));
CREATE INDEX trials_of_race ON trials (race, contender);
CREATE TABLE points (
    trial INTEGER NOT NULL REFERENCES trials(id), step INTEGER NOT NULL, tokens INTEGER NOT NULL, seconds REAL NOT NULL,
    split TEXT NOT NULL CHECK (split IN ('train', 'validation')), score TEXT NOT NULL, value REAL,
    PRIMARY KEY (trial, split, score, step)) WITHOUT ROWID;
CREATE TABLE costs (
    race TEXT NOT NULL, contender TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('forward', 'training', 'prefill', 'decode')),
    length INTEGER NOT NULL, batch INTEGER NOT NULL, milliseconds REAL, low REAL, high REAL, peak_bytes INTEGER,
    state_bytes INTEGER, macs INTEGER, load REAL, bytes INTEGER, PRIMARY KEY (race, contender, kind, length, batch),
    FOREIGN KEY (race, contender) REFERENCES contenders(race, name)) WITHOUT ROWID;
CREATE TABLE samples (
    race TEXT NOT NULL, contender TEXT NOT NULL, seed INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('text', 'forecast', 'image', 'table')), content TEXT NOT NULL,
    FOREIGN KEY (race, contender) REFERENCES contenders(race, name));
CREATE INDEX samples_of_race ON samples (race, contender);
"""

MIGRATIONS = {  # what brings a file of that version to the next one
    1: """
CREATE TABLE benches (
    id TEXT PRIMARY KEY, created TEXT NOT NULL, finished TEXT, status TEXT NOT NULL, suite TEXT NOT NULL,
    options TEXT NOT NULL, machine TEXT NOT NULL);
ALTER TABLE races ADD COLUMN bench TEXT REFERENCES benches(id);
ALTER TABLE races ADD COLUMN ability TEXT;
ALTER TABLE contenders ADD COLUMN state_bytes INTEGER;
""",
    # SQLite changes no CHECK in place: the table is made anew
    2: """
CREATE TABLE costs_now (
    race TEXT NOT NULL, contender TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('forward', 'training', 'prefill', 'decode')),
    length INTEGER NOT NULL, batch INTEGER NOT NULL, milliseconds REAL, low REAL, high REAL, peak_bytes INTEGER,
    state_bytes INTEGER, macs INTEGER, load REAL, bytes INTEGER, PRIMARY KEY (race, contender, kind, length, batch),
    FOREIGN KEY (race, contender) REFERENCES contenders(race, name)) WITHOUT ROWID;
INSERT INTO costs_now SELECT *, NULL FROM costs;
DROP TABLE costs;
ALTER TABLE costs_now RENAME TO costs;
""",
}


class StoreError(ValueError):
    """The file can't serve as a store of races. The message says why and what to do."""


class RaceNotFound(LookupError):
    """No race or bench, or more than one, answers to what was asked for. The message names the nearest ones."""


@dataclass
class Point:
    """One score at one step of a trial; value is NaN where the score was not finite."""

    step: int
    tokens: int
    seconds: float
    split: str
    score: str
    value: float


@dataclass
class Trial:
    """One training run of one contender: a step of its learning-rate sweep, or one seed of the main phase."""

    id: int
    contender: str
    phase: str
    seed: int
    lr: float | None
    steps: int | None
    batch_size: int | None
    status: str
    attempts: int
    seconds: float | None
    tokens: int | None
    tokens_per_second: float | None
    scores: dict[str, dict[str, float | None]]
    error: str | None
    folder: str | None
    points: list[Point] = field(default_factory=list)


@dataclass
class Measured:
    """A measured cost: one contender, one kind of work ("forward", "training", "prefill", "decode"), one length and
    batch. macs and bytes are of that work; `bytes` are those that its operations read and write."""

    kind: str
    length: int
    batch: int
    milliseconds: float | None
    low: float | None
    high: float | None
    peak_bytes: int | None
    state_bytes: int | None
    macs: int | None
    load: float | None
    bytes: int | None = None


@dataclass
class Sample:
    """Something a trained contender made: a text, a forecast, a misread image, a table of predictions."""

    seed: int
    kind: str
    content: dict[str, Any]


@dataclass
class Contender:
    """One architecture of a race, with everything that happened to it. `state_bytes` are by formula: what decoding
    keeps of one row after the data's length, None where it doesn't decode."""

    name: str
    position: int
    text: str
    expression: str | None
    dim: int | None
    params: int | None
    macs: int | None
    folder: str | None
    error: str | None
    state_bytes: int | None = None
    trials: list[Trial] = field(default_factory=list)
    costs: list[Measured] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


@dataclass
class Race:
    """A race as a tree; `folder` is where its models and its report lie, `bench` and `ability` what it is part of."""

    id: str
    created: str
    finished: str | None
    status: str
    data: str
    options: dict[str, Any]
    machine: dict[str, Any]
    source: dict[str, Any]
    folder: Path
    contenders: list[Contender] = field(default_factory=list)
    bench: str | None = None
    ability: str | None = None


@dataclass
class Bench:
    """A suite of races on the same contenders, one race an ability, in the order they were run. `options` hold the
    abilities as they were defined then, the contenders' texts, and what was asked for."""

    id: str
    created: str
    finished: str | None
    status: str
    suite: str
    options: dict[str, Any]
    machine: dict[str, Any]
    folder: Path
    races: list[Race] = field(default_factory=list)
