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
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from formwright.bench.patterns import contender
from formwright.bench.suites import SUITES, Ability
from formwright.data.source import DataError
from formwright.race import plan, store
from formwright.race.beginning import MATCHES, begin, divide, take_up
from formwright.race.contenders import RaceProblem, check_words, read_contenders
from formwright.race.local import RunJobs
from formwright.race.machine import describe
from formwright.race.racing import ENGINES, alone, hold, many
from formwright.race.size import parse_size

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
    resume   go on with this bench (id, start of an id, "latest") in place of a new one; other options but engine,
             address, runs and on_event are then those it began with
    on_event is given {"event": "bench" | "ability" | "verdicts" | "end", ...} and the events of the races

    Raises RaceProblem, SyntaxProblem, UnknownPart or RaceNotFound for what is wrong, before anything is trained;
    KeyboardInterrupt, with the bench kept to be resumed, after Ctrl-C."""
    listen = on_event or (lambda event: None)
    runs = Path(runs)
    if engine not in ENGINES:
        raise RaceProblem(f"engine is {' or '.join(ENGINES)}, not {engine!r}")
    if resume is not None:
        if suite or mixers:
            raise RaceProblem("a resumed bench has its suite and mixers already: leave them out")
        conn = store.open_store(store.store_path(resume, runs / STORE), create=False)
        bench_id = store.find_bench(conn, resume)
        loaded = store.load_bench(conn, bench_id)
        if loaded.status == "done":
            raise RaceProblem(f"bench {bench_id} is finished: see formwright report {bench_id}")
        runs = loaded.folder.parent
    else:
        asked = {"seeds": seeds, "match": match, "size": size, "steps": steps, "rates": rates}
        abilities = _planned(suite, list(mixers), asked)
        workers, threads = divide(workers, threads, device, len(mixers) * max(seeds, len(abilities[0].rates)))
        options = {"mixers": list(mixers), "seeds": seeds, "match": match, "workers": workers, "threads": threads}
        options |= {"device": device, "command": command, "abilities": [asdict(a) for a in abilities]}
        conn = store.open_store(runs / STORE)
        bench_id = store.create_bench(conn, suite, options=options, machine=describe(), id=name)
        loaded = store.load_bench(conn, bench_id)
    options = loaded.options
    loaded.folder.mkdir(parents=True, exist_ok=True)
    listen({"event": "bench", "bench": bench_id, "suite": loaded.suite, "abilities": options["abilities"]})
    status = "interrupted"
    try:
        with (
            alone(loaded.folder),
            many(engine, options["workers"], options["threads"], options["device"], address) as run_jobs,
        ):
            store.update_bench(conn, bench_id, status="running", finished=None)
            for ability in options["abilities"]:
                _settle(conn, bench_id, Ability(**ability), options, run_jobs, runs, listen)
        status = "done"
    except Exception:
        status = "failed"
        raise
    finally:
        ended = {"finished": store.now()} if status == "done" else {}
        store.update_bench(conn, bench_id, status=status, **ended)
        conn.close()
        listen({"event": "end", "bench": bench_id, "status": status})
    return bench_id


def _planned(suite: str | None, mixers: list[str], asked: dict[str, Any]) -> list[Ability]:
    """The suite's abilities with what was asked for in place of their own. Raises for what is wrong."""
    if suite not in SUITES:
        near = get_close_matches(str(suite), SUITES, 1)
        hint = f"did you mean {near[0]}?" if near else f"the suites are {', '.join(SUITES)}"
        raise RaceProblem(f"there is no suite {suite!r}; {hint}")
    if not mixers:
        raise RaceProblem(f"name the mixers that shall be put to it: formwright bench {suite} attention gla")
    if asked["match"] not in MATCHES:
        raise RaceProblem(f"match is {', '.join(MATCHES[:-1])} or {MATCHES[-1]}, not {asked['match']!r}")
    for word in ("seeds", "steps"):
        value = asked[word]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise RaceProblem(f"{word} is {value!r}, but must be a whole number of at least 1")
    for entry in read_contenders(mixers):
        check_words(entry, None)
    changes: dict[str, Any] = {}
    if asked["size"] is not None:
        changes["size"] = parse_size(asked["size"])
    if asked["steps"] is not None:
        changes["steps"] = asked["steps"]
    if asked["rates"]:
        changes["rates"] = tuple(sorted({plan.learning_rates(rate)[0] for rate in asked["rates"]}))
    return [Ability(**{**asdict(ability), **changes}) for ability in SUITES[suite]]


def _settle(
    conn: Any, bench_id: str, ability: Ability, options: dict[str, Any], run_jobs: RunJobs, runs: Path, listen: Listener
) -> None:
    """Hold an ability's race, from wherever it stands, unless it has ended."""
    race_id = f"{bench_id}/{ability.name}"
    there = {race.id: race for race in store.load_bench(conn, bench_id).races}
    listen({"event": "ability", "bench": bench_id, "ability": ability.name, "question": ability.question})
    began = time.monotonic()
    if race_id in there and there[race_id].finished:
        return
    if race_id in there and (there[race_id].folder / "plan.json").exists():
        race = take_up(race_id, runs, listen, began)
    else:
        if race_id in there:  # ended by force before its plan was written
            store.remove_race(conn, race_id)
        try:
            race = _begun(bench_id, ability, options, runs, listen, began)
        except (DataError, ImportError) as problem:
            missing = {**(options.get("missing") or {}), ability.name: str(problem)}
            options["missing"] = missing
            store.update_bench(conn, bench_id, options=options)
            listen({"event": "note", "text": f"{ability.name} is left out: {problem}"})
            return
    # A race that no mixer can run has its reasons written down, which is its result.
    with contextlib.suppress(RaceProblem):
        hold(race, functools.partial(contextlib.nullcontext, run_jobs))
    _tidy(race.folder)


def _begun(bench_id: str, ability: Ability, options: dict[str, Any], runs: Path, listen: Listener, began: float) -> Any:
    more = {"whole_sweep": True, "samples": False, "points": POINTS}
    if ability.enough is not None:
        more["enough"] = ability.enough
    asked = {"budget": f"{ability.steps}steps", "size": ability.size, "match": options["match"]}
    asked |= {"seeds": options["seeds"], "lr": "auto", "engine": "local"}
    return begin(
        options["mixers"], ability.data, asked, rates=tuple(ability.rates), data_options={}, depth=2,
        batch_tokens=ability.batch_tokens, workers=options["workers"], threads=options["threads"],
        device=options["device"], measure=False, checkpoint_every=60.0, runs=runs, name=None, command=None,
        listen=listen, began=began, stack=ability.stack, bench=(bench_id, ability.name), plan_more=more,
        refuses=ability.pattern and (lambda text, source: contender(text, ability.pattern, source)[1]),
    )  # fmt: skip


def _tidy(folder: Path) -> None:
    """Leave models and logs of an ended race alone: its checkpoints are of no more use."""
    for checkpoints in folder.glob("*/*/checkpoints"):
        shutil.rmtree(checkpoints, ignore_errors=True)
