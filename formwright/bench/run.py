"""A suite of abilities put to mixers: one race an ability, all in one engine, whose processes live on between them.

In each race every mixer tries the same learning rates, each over a whole run with seed 0; the best on validation is
kept, that run is seed 0's, and the other seeds are trained at that rate. Budgets are steps, so that a bench comes out
the same on a slow machine. A run ends early once its validation score is beyond the mark (suites.py says where).
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from formwright.bench.patterns import contender
from formwright.bench.suites import SUITES, Ability
from formwright.bench.verdict import results
from formwright.data.source import DataError
from formwright.race import plan, store
from formwright.race.beginning import MATCHES, begin, check_name, divide, take_up, whole
from formwright.race.contenders import RaceProblem, check_words, read_contenders
from formwright.race.local import RunJobs
from formwright.race.machine import describe
from formwright.race.racing import ENGINES, alone, hold, many
from formwright.race.size import parse_size
from formwright.race.state import Race

Listener = Callable[[dict[str, Any]], None]
POINTS = 8  # evaluations of a run, at which it may end early
STORE = "races.sqlite"


def bench(
    suite: str | None = None,
    mixers: Sequence[str] = (),
    *,
    seeds: int = 3,
    match: str = "params",
    size: str | int | None = None,
    steps: int | None = None,
    rates: Sequence[float] | None = None,
    only: Sequence[str] | None = None,
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    runs: str | Path = "runs",
    name: str | None = None,
    resume: str | None = None,
    command: list[str] | None = None,
    on_event: Listener | None = None,
) -> str:
    """Put a suite to mixers; the bench's id, under which the store (`runs`/races.sqlite) holds it and its races.

    suite    one of suites.SUITES
    mixers   names with or without options, whole stacks, `file.py:Class`
    seeds    runs of each mixer at the rate that was best; a verdict asks for 3
    match    what is held equal: "params", "macs", "state" (bytes of decoding) or "time"
    size, steps, rates  in place of each ability's own
    only     the abilities of the suite to settle, by name; all without it
    resume   go on with this bench (id, start of an id, "latest") in place of a new one; other options but engine,
             address, runs and on_event are then those it began with
    on_event is given {"event": "bench" | "ability" | "verdicts" | "end", ...} and the events of the races

    Raises RaceProblem, SyntaxProblem, UnknownPart or RaceNotFound for what is wrong, before anything is trained;
    KeyboardInterrupt, with the bench kept to be resumed, after Ctrl-C."""
    listen = on_event or (lambda event: None)
    if engine not in ENGINES:
        raise RaceProblem(f"engine is {' or '.join(ENGINES)}, not {engine!r}")
    if resume is not None:
        if suite or mixers:
            raise RaceProblem("a resumed bench has its suite and mixers already: leave them out")
        conn, under_way = _taken_up(resume, Path(runs))
    else:
        whole(seeds=seeds, steps=steps, workers=workers, threads=threads)
        check_name(name)
        changes = {"size": None if size is None else parse_size(size), "steps": steps, "rates": _rates(rates)}
        abilities = _planned(suite, list(mixers), match, only, changes)
        workers, threads = divide(workers, threads, device, len(mixers) * max(seeds, len(abilities[0].rates)))
        options = {"mixers": list(mixers), "seeds": seeds, "match": match, "workers": workers, "threads": threads}
        options |= {"device": device, "command": command, "abilities": [asdict(a) for a in abilities]}
        conn, under_way = _begun(suite, options, Path(runs), name)
    with contextlib.closing(conn), alone(under_way.folder):
        listen({"event": "bench", "bench": under_way.id, "abilities": under_way.options["abilities"]})
        store.update_bench(conn, under_way.id, status="running", finished=None)
        ended = {"status": "interrupted"}
        try:
            _run(conn, under_way, engine, address, listen)
            ended = {"status": "done", "finished": store.now()}
        except Exception:
            ended = {"status": "failed"}
            raise
        finally:
            store.update_bench(conn, under_way.id, **ended)
            listen({"event": "end", "bench": under_way.id, **ended})
    return under_way.id


def _begun(suite: str, options: dict[str, Any], runs: Path, name: str | None) -> tuple[Any, store.Bench]:
    """A new bench, written down."""
    conn = store.open_store(runs / STORE)
    bench_id = store.create_bench(conn, suite, options=options, machine=describe(), id=name)
    folder = (runs / bench_id).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    options["mixers"] = _kept(options["mixers"], folder)
    store.update_bench(conn, bench_id, options=options)
    return conn, store.load_bench(conn, bench_id)


def _taken_up(what: str, runs: Path) -> tuple[Any, store.Bench]:
    """A bench of the store, as it stands."""
    conn = store.open_store(store.store_path(what, runs / STORE), create=False)
    found = store.load_bench(conn, store.find_bench(conn, what))
    if found.status == "done":
        raise RaceProblem(f"bench {found.id} is finished: see formwright report {found.id}")
    return conn, found


def _run(conn: Any, bench: store.Bench, engine: str, address: str | None, listen: Listener) -> None:
    """All abilities, from wherever the bench stands."""
    options = bench.options
    with many(engine, options["workers"], options["threads"], options["device"], address) as run_jobs:
        for ability in options["abilities"]:
            _settle(conn, bench, Ability(**ability), run_jobs, listen)


def _planned(
    suite: str | None, mixers: list[str], match: str, only: Sequence[str] | None, changes: dict[str, Any]
) -> list[Ability]:
    """The suite's abilities with what was asked for in place of their own. Raises for what is wrong."""
    if suite not in SUITES:
        near = get_close_matches(str(suite), SUITES, 1)
        hint = f"did you mean {near[0]}?" if near else f"the suites are {', '.join(SUITES)}"
        raise RaceProblem(f"there is no suite {suite!r}; {hint}")
    if not mixers:
        raise RaceProblem(f"name the mixers that shall be put to it: formwright bench {suite} attention gla")
    if match not in MATCHES:
        raise RaceProblem(f"match is {', '.join(MATCHES[:-1])} or {MATCHES[-1]}, not {match!r}")
    for entry in read_contenders(mixers):
        check_words(entry, None)
    named = {ability.name: ability for ability in SUITES[suite]}
    for name in only or ():
        if name not in named:
            near = get_close_matches(name, named, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"its abilities are {', '.join(named)}"
            raise RaceProblem(f"suite {suite} has no ability {name!r}; {hint}")
    given = {name: value for name, value in changes.items() if value is not None}
    return [replace(named[name], **given) for name in only or named]


def _rates(rates: Sequence[float | str] | None) -> tuple[float, ...] | None:
    return tuple(sorted({plan.learning_rates(rate)[0] for rate in rates})) if rates else None


def _kept(mixers: list[str], folder: Path) -> list[str]:
    """Users' own mixers by the path of a copy in the bench's folder: what is benched is one state of a file."""
    texts = []
    for number, text in enumerate(mixers):
        path, _, class_name = text.rpartition(":")
        if path.endswith(".py") and Path(path).is_file():
            copy = folder / "parts" / str(number) / Path(path).name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            text = f"{copy}:{class_name}"
        texts.append(text)
    return texts


def _settle(conn: Any, bench: store.Bench, ability: Ability, run_jobs: RunJobs, listen: Listener) -> None:
    """Hold an ability's race, from wherever it stands, unless it has ended."""
    race_id, runs, began = f"{bench.id}/{ability.name}", bench.folder.parent, time.monotonic()
    listen({"event": "ability", "bench": bench.id, "ability": ability.name, "question": ability.question})
    there = {race.ability: race for race in store.load_bench(conn, bench.id).races}.get(ability.name)
    if there and there.finished:
        return
    if there and (there.folder / "plan.json").exists():
        race = take_up(race_id, runs, listen, began)
    else:
        if there:  # ended by force before its plan was written
            store.remove_race(conn, race_id)
        try:
            race = _new_race(bench, ability, listen, began)
        except (DataError, ImportError) as problem:
            bench.options["missing"] = {**(bench.options.get("missing") or {}), ability.name: str(problem)}
            store.update_bench(conn, bench.id, options=bench.options)
            listen({"event": "note", "text": f"{ability.name} is left out: {problem}"})
            return
    # A race that no mixer can run has its reasons written down, which is its result.
    with contextlib.suppress(RaceProblem):
        hold(race, functools.partial(contextlib.nullcontext, run_jobs))
    _tidy(race.folder)
    found = results(store.load_bench(conn, bench.id))
    words = {mixer: found.verdicts[mixer, ability.name].word for mixer in found.mixers}
    listen({"event": "verdicts", "bench": bench.id, "ability": ability.name, "verdicts": words})


def _new_race(bench: store.Bench, ability: Ability, listen: Listener, began: float) -> Race:
    """The race of an ability, written down."""
    options = bench.options
    more = {"whole_sweep": True, "samples": False, "points": POINTS, "enough": ability.enough}
    asked = {"budget": f"{ability.steps}steps", "size": ability.size, "match": options["match"]}
    asked |= {"seeds": options["seeds"], "lr": "auto", "engine": "local"}
    command = options["command"] or ["formwright", "bench", bench.suite, *options["mixers"]]
    return begin(
        options["mixers"], ability.data, asked, rates=tuple(ability.rates), data_options={}, depth=2,
        batch_tokens=ability.batch_tokens, workers=options["workers"], threads=options["threads"],
        device=options["device"], measure=False, checkpoint_every=60.0, runs=bench.folder.parent, name=None,
        command=command, listen=listen, began=began, stack=ability.stack, bench=(bench.id, ability.name),
        plan_more=more, refuses=ability.pattern and (lambda text, source: contender(text, ability.pattern, source)[1]),
    )  # fmt: skip


def _tidy(folder: Path) -> None:
    """Leave models and logs of an ended race alone: its checkpoints are of no more use."""
    for checkpoints in folder.glob("*/*/checkpoints"):
        shutil.rmtree(checkpoints, ignore_errors=True)
