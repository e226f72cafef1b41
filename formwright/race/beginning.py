"""How a race begins: everything checked, the contenders sized, the race written down; or taken up where it stands."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median_low
from typing import Any

from formwright.race import plan, store
from formwright.race.contenders import Entry, RaceProblem, check_words, keep_files, pair_notes, read_contenders
from formwright.race.machine import accelerators, cores, describe
from formwright.race.size import equalise, not_too_far, parse_size
from formwright.race.state import Race, State, note, read_state, save_state
from formwright.train import budget as budgets

MATCHES = ("params", "macs", "state", "time")
ABOUT = ("name", "kind", "metric", "lower_is_better", "unit", "notes", "sizes", "facts", "baselines")
FIGURES = ("text", "expression", "dim", "params", "macs", "error", "state_bytes")


def begin(
    texts: list[str], data_spec: str | None, options: dict[str, Any], *, rates: tuple[float, ...],
    data_options: dict[str, Any], depth: int, batch_tokens: int | None, workers: int | None, threads: int | None,
    device: str | None, measure: bool, checkpoint_every: float, runs: Path, name: str | None, command: list[str] | None,
    listen: Callable[[dict[str, Any]], None], began: float, stack: str | None = None,
    bench: tuple[str, str] | None = None, plan_more: dict[str, Any] | None = None,
    refuses: Callable[[str, Any], str | None] | None = None,
) -> Race:  # fmt: skip
    """Check everything, size the contenders, and write the new race down.

    stack      what bare mixers stand in, as in read_contenders
    bench      the bench and the ability that this race is part of: then it is written down even where no contender
               can be built
    plan_more  further fields of State
    refuses    (a contender's text, the source) -> why it is not to run, or None"""
    from formwright import data

    if data_spec is None:
        raise RaceProblem("a race needs data: a file, a folder, or a bundled name such as python-source")
    budget = budgets.parse(options["budget"])
    _check(options, depth=depth, workers=workers, threads=threads, name=name)
    lrs = plan.learning_rates(options["lr"], tuple(sorted(set(rates))))
    size = None if options["size"] is None else parse_size(options["size"])
    entries = read_contenders(texts, depth=depth, sized=size is not None)
    source = data.open(data_spec, **data_options)
    if stack is not None or source.source_shape is not None:
        entries = read_contenders(texts, depth=depth, sized=size is not None, data=source, stack=stack)
    if refuses is not None:
        entries = [replace(e, error=e.error or refuses(e.text, source)) for e in entries]
    for entry in entries:
        if not entry.error:
            check_words(entry, source)
    batch = plan.batch_size(source, batch_tokens, accelerated=device != "cpu" and accelerators() > 0)
    asked = entries
    entries, notes = equalise(asked, source, size=size, match=options["match"])
    widths = [entry.dim for entry in entries if not entry.error]
    if stack is not None and widths:
        entries, notes = not_too_far(entries, notes, asked, source, options["match"], median_low(widths))
    notes += pair_notes(texts, source)
    if bench is None and all(entry.error for entry in entries):
        reasons = "\n".join(f"{entry.name}: {entry.error}" for entry in entries)
        raise RaceProblem(f"none of the contenders can be built on {source.name}\n{reasons}")
    workers, threads = divide(workers, threads, device, options["seeds"] * sum(not e.error for e in entries))
    conn = store.open_store(runs / "races.sqlite")
    kept = {**options, "batch_size": batch, "depth": depth, "workers": workers, "threads": threads}
    further = plan_more or {}
    kept |= {"sweep_share": plan.SHARE} if len(lrs) > 1 and not further.get("whole_sweep") else {}
    kept |= {"enough": further["enough"]} if further.get("enough") is not None else {}
    kept |= {"length": source.facts["length"]} if source.kind == "text" else {}
    kept |= {"stack": stack} if stack else {}
    kept |= {"device": device} if device else {}
    kept |= {"command": command} if command else {}
    about = {word: getattr(source, word) for word in ABOUT}
    part_of = dict(zip(("bench", "ability"), bench, strict=True)) if bench else {}
    race_id = "/".join(bench) if bench else name
    race_id = store.create_race(
        conn, str(data_spec), options=kept, machine=describe(), source=about, id=race_id, **part_of
    )
    folder = (runs / race_id).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    entries = keep_files(entries, folder / "parts")
    for entry in entries:
        store.add_contender(conn, race_id, entry.name, folder=str(folder / entry.folder), **figures(entry))
    state = State(
        source=source.options,
        fingerprint=source.fingerprint,
        budget=str(budget),
        seeds=options["seeds"],
        rates=lrs,
        batch_size=batch,
        workers=workers,
        threads=threads,
        device=device,
        measure=measure,
        checkpoint_every=checkpoint_every,
        sized=options["match"] != "time",
        **further,
    )
    under_way = Race(conn, race_id, folder, source, entries, budget, state, kept, listen, began)
    save_state(under_way)
    listen({"event": "race", "race": race_id, "folder": str(folder), "source": about, "options": kept})
    for entry in entries:
        listen({"event": "contender", "contender": entry.name, **figures(entry)})
    for text in notes:
        note(under_way, text)
    return under_way


def take_up(what: str, runs: Path, listen: Callable[[dict[str, Any]], None], began: float) -> Race:
    """A race of the store, as it stands. Raises RaceNotFound, RaceProblem."""
    from formwright import data

    conn = store.open_store(store.store_path(what, runs / "races.sqlite"), create=False)
    loaded = store.load_race(conn, store.find_race(conn, what))
    if loaded.status == "done":
        raise RaceProblem(f"race {loaded.id} is finished: see formwright report {loaded.id}")
    folder = loaded.folder.resolve()
    try:
        state, entries = read_state(folder)
    except FileNotFoundError:
        raise RaceProblem(f"race {loaded.id} can't be resumed: its plan is missing in {folder}") from None
    source = data.open(**state.source)
    if source.fingerprint != state.fingerprint:
        raise RaceProblem(f"the data of race {loaded.id} have changed since it began ({loaded.data}): start a new race")
    about = {"source": loaded.source, "options": loaded.options}
    listen({"event": "race", "race": loaded.id, "folder": str(folder), **about})
    for entry in entries:
        listen({"event": "contender", "contender": entry.name, **figures(entry)})
    budget = budgets.parse(state.budget)
    return Race(conn, loaded.id, folder, source, entries, budget, state, loaded.options, listen, began)


def figures(entry: Entry) -> dict[str, Any]:
    """What the store keeps of a contender, and events tell."""
    return {word: getattr(entry, word) for word in FIGURES}


def _check(options: dict[str, Any], *, depth: int, workers: int | None, threads: int | None, name: str | None) -> None:
    """Raise RaceProblem for an option that makes no sense."""
    if options["match"] not in MATCHES:
        raise RaceProblem(f"match is {', '.join(MATCHES[:-1])} or {MATCHES[-1]}, not {options['match']!r}")
    whole(seeds=options["seeds"], depth=depth, workers=workers, threads=threads)
    check_name(name)


def whole(**options: int | None) -> None:
    """Raise RaceProblem for an option that is given, but no whole number of at least 1."""
    for word, value in options.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise RaceProblem(f"{word} is {value!r}, but must be a whole number of at least 1")


def check_name(name: str | None) -> None:
    """Raise RaceProblem for a name that no folder may have."""
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise RaceProblem(f"the name {name!r} can't be a folder's: use letters, digits, '-', '_' and '.'")


def divide(workers: int | None, threads: int | None, device: str | None, runs: int) -> tuple[int, int]:
    """How many runs go side by side, and the threads of each."""
    places = accelerators() if device != "cpu" else 0
    workers = workers or max(1, min(places or cores(), runs))
    return workers, threads or max(1, cores() // workers)
