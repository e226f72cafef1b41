"""The race: many architectures, one recipe, one budget; from texts and data to results and models on disk."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from formwright.race import phases, plan, store
from formwright.race.beginning import begin, take_up
from formwright.race.contenders import Entry, RaceProblem
from formwright.race.equal_time import equal_time
from formwright.race.local import RunJobs, local_engine
from formwright.race.machine import accelerators, cores
from formwright.race.on_ray import ray_engine
from formwright.race.state import Race, drop, note, save_state

ENGINES = ("local", "ray")


def race(
    contenders: Sequence[str] = (),
    data_spec: str | None = None,
    *,
    budget: str | int = "10m",
    size: str | int | None = None,
    match: str = "params",
    seeds: int = 1,
    lr: str | float = "auto",
    rates: tuple[float, ...] = plan.RATES,
    data_options: dict[str, Any] | None = None,
    batch_tokens: int | None = None,
    depth: int = 4,
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    measure: bool = True,
    checkpoint_every: float = 15.0,
    runs: str | Path = "runs",
    name: str | None = None,
    resume: str | None = None,
    command: list[str] | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> str:
    """Race architectures on data; the race's id, under which the store (`runs`/races.sqlite) and the folder
    (`runs`/<id>) hold everything.

    contenders    expressions, bare mixers (which get the default stack of `depth` blocks), `file.py:Class`
    data_spec     what formwright.data.open takes, with data_options
    budget        a time, of the whole race ("10m"); or steps, tokens or macs, of each main run ("500steps")
    size, match   parameters ("2M"), and what is held equal: "params", "macs", "state" (of decoding) or "time"
    seeds         how many seeds each contender is trained with
    lr, rates     "auto": the best of `rates`, found by a sweep that takes a quarter of the training; or a number
    batch_tokens  tokens of everyone's batch (2048; 16384 where there is an accelerator)
    engine        "local" with `workers` processes of `threads` threads; "ray", on the cluster at `address`
    measure       whether costs are measured afterwards
    checkpoint_every  seconds between the checkpoints of a run: what a kill -9 loses at most
    name          the id of the new race
    resume        go on with this race (id, start of an id, folder, "latest") in place of a new one; other options but
                  engine, address, runs and on_event are then those it began with
    command       the words typed, for the report
    on_event      is given dictionaries {"event": kind, ...}: race, contender, note, phase, chosen, measuring, measured,
                  end, and of each run started, step, evaluation, scored, sample, checkpoint, retry, done, diverged,
                  failed, interrupted (with trial, contender, phase, seed, lr, steps)

    Raises SyntaxProblem, DataError, UnknownPart, RaceProblem or RaceNotFound for what is wrong, before anything is
    trained; KeyboardInterrupt, with the race kept to be resumed, after Ctrl-C."""
    listen = on_event or (lambda event: None)
    if engine not in ENGINES:
        raise RaceProblem(f"engine is {' or '.join(ENGINES)}, not {engine!r}")
    began = time.monotonic()
    if resume is not None:
        if contenders or data_spec:
            raise RaceProblem("a resumed race has its contenders and data already: leave them out")
        under_way = take_up(resume, Path(runs), listen, began)
    else:
        options = {"budget": budget, "size": size, "match": match, "seeds": seeds, "lr": lr, "engine": engine}
        under_way = begin(
            list(contenders), data_spec, options, rates=rates, data_options=data_options or {}, depth=depth,
            batch_tokens=batch_tokens, workers=workers, threads=threads, device=device, measure=measure,
            checkpoint_every=checkpoint_every, runs=Path(runs), name=name, command=command, listen=listen, began=began,
        )  # fmt: skip
    state = under_way.state
    hold(under_way, lambda: many(engine, state.workers, state.threads, state.device, address))
    return under_way.id


def many(
    engine: str, workers: int, threads: int, device: str | None = None, address: str | None = None
) -> AbstractContextManager[RunJobs]:
    """The engine of that name, which works on `workers` jobs at a time."""
    gpus = accelerators() if device is None else 0
    if engine == "ray":
        return ray_engine(workers, threads, address=address, gpus=gpus)
    return local_engine(workers, threads, gpus=gpus)


def hold(under_way: Race, engine: Callable[[], AbstractContextManager[RunJobs]]) -> None:
    """Hold a race, from wherever it stands to its end, on the engine that `engine()` opens; its store is closed then.

    Raises what `race` raises once it has begun."""
    with alone(under_way.folder):
        try:
            _run(under_way, engine)
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            save_state(under_way)
            store.update_race(under_way.conn, under_way.id, status=status)
            under_way.listen({"event": "end", "race": under_way.id, "status": status})
            raise
        finally:
            under_way.conn.close()


def _run(race: Race, engine: Callable[[], AbstractContextManager[RunJobs]]) -> None:
    """All phases, from wherever the race stands."""
    state = race.state
    store.update_race(race.conn, race.id, status="running", finished=None)
    # A core is left to the machine's other work: threads that wait for one that is held up can be 50 times as slow.
    threads = max(1, cores() - 1)
    one = functools.partial(local_engine, 1, threads, gpus=min(accelerators(), 1) if state.device is None else 0)
    with engine() as run_jobs:
        if not state.sized:
            _size_by_time(race, run_jobs)
        phases.calibrate(race, run_jobs)
        phases.sweep(race, run_jobs)
        phases.main_runs(race, run_jobs)
    phases.measure(race, one, threads)
    if not race.running:
        store.update_race(race.conn, race.id, status="failed", finished=store.now())
        reasons = "\n".join(f"{entry.name}: {entry.error}" for entry in race.entries)
        raise RaceProblem(f"no contender of race {race.id} is left\n{reasons}")
    save_state(race)
    store.update_race(race.conn, race.id, status="done", finished=store.now())
    race.listen({"event": "end", "race": race.id, "status": "done", "seconds": race.spent})


def _size_by_time(race: Race, run_jobs: RunJobs) -> None:
    """Fit widths so that measured steps take equally long."""

    def seconds(entries: list[Entry]) -> list[float]:
        outcomes = phases.time_steps(race, run_jobs, entries, 1.0)
        for entry, outcome in zip(entries, outcomes, strict=True):
            if outcome["event"] != "done":
                drop(race, entry.name, outcome.get("error", "its timing was broken off"))
        return [outcome.get("step_seconds", float("nan")) for outcome in outcomes]

    race.listen({"event": "phase", "phase": "size", "runs": len(race.running)})
    seconds(race.running)  # takes out those that can't be timed at all
    if race.running:
        race.entries, notes = equal_time(race.entries, race.source, seconds)
        for entry in race.running:
            figures = {k: getattr(entry, k) for k in ("expression", "dim", "params", "macs")}
            store.update_contender(race.conn, race.id, entry.name, **figures)
            race.listen({"event": "contender", "contender": entry.name, "text": entry.text, **figures, "error": None})
        for text in notes:
            note(race, text)
    race.state.sized = True
    save_state(race)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder of a race or bench against other processes. The system lets go of the lock when this one ends,
    however it ends."""
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RaceProblem(f"{folder.name} is under way in another process: wait for it, or stop it") from None
        yield
