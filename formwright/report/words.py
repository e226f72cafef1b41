"""What a race says in plain words: its title, its verdict, its notes, the command that repeats it."""

from __future__ import annotations

import math
import shlex
from datetime import datetime

from formwright.race.records import Race
from formwright.report.figures import Row, Table

FINAL = ("done", "failed", "diverged")
RECIPE = {
    "budget": "Budget",
    "size": "Size",
    "match": "Held equal",
    "seeds": "Seeds",
    "lr": "Learning rate",
    "sweep_share": "Share of budget for its sweep",
    "enough": "Runs end early at a validation score of",
    "stack": "Stack around a mixer",
    "batch_size": "Batch size",
    "length": "Length",
    "engine": "Engine",
    "device": "Device",
}


def title(race: Race) -> str:
    """'Four architectures on notes.txt'."""
    names = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")
    n = len(race.contenders)
    return f"{names[n] if n < len(names) else n} architecture{'' if n == 1 else 's'} on {data_name(race)}"


def data_name(race: Race) -> str:
    """The data's own name, without the folders before it."""
    return str(race.source.get("name") or race.data).rstrip("/").split("/")[-1] or race.data


def when(race: Race) -> str:
    """The day and hour the race began, as people write it."""
    try:
        moment = datetime.fromisoformat(race.created)
    except ValueError:
        return race.created
    return f"{moment.day} {moment:%B %Y, %H:%M}"


def progress(race: Race) -> str | None:
    """How far an unfinished race is, or None for a finished one."""
    if race.finished or race.status == "done":
        return None
    trials = [t for c in race.contenders for t in c.trials if t.phase == "main"]
    ended = sum(t.status in FINAL for t in trials)
    count = f"{ended} of {len(trials)} training runs have ended" if trials else "no training run has ended"
    if race.status in ("running", "waiting"):
        return f"This race is not finished: {count} so far."
    return f"This race stopped before its end (status: {race.status}): {count}. Resume it to get the rest."


def verdict(race: Race, table: Table) -> list[str]:
    """Sentences that say who won, by how much, whether that is more than chance, and at what cost."""
    scored = table.scored
    if not scored:
        return ["No contender has a score yet." if progress(race) else "No contender reached a score."]
    best = scored[0]
    seeds = len(best.quality.values)
    over = f" over {seeds} seeds" if seeds > 1 else ""
    on = "the test part" if table.split == "test" else "validation (the test part is touched once, at the end)"
    sentences = [f"{_short(best.name)} is best on {on}: {table.spread(best.quality)} {_unit(table)}{over}."]
    if len(scored) > 1:
        sentences.append(_runner_up(table, best, scored[1]))
    sentences += _trade(table, best)
    if table.failed:
        failed = ", ".join(row.name for row in table.failed)
        sentences.append(f"{failed} gave no result.")
    return sentences


def _unit(table: Table) -> str:
    return "of the answers right" if table.metric == "accuracy" else table.label


def _runner_up(table: Table, best: Row, second: Row) -> str:
    gap = abs(best.quality.mean - second.quality.mean)
    if table.percent:
        size = f"{100 * gap:.2f} percentage points"
    elif second.quality.mean:
        size = f"{100 * gap / abs(second.quality.mean):.2g}%"
    else:
        size = table.score(gap)
    ahead = f"{_short(second.name)} follows at {table.spread(second.quality)}, {size} behind"
    if gap == 0:
        return f"{_short(second.name)} has the same score."
    both = [best.quality, second.quality]
    if any(quality.sd is None for quality in both):
        return f"{ahead}; with one seed a gap like this may be chance."
    error = math.sqrt(sum(quality.sd**2 / len(quality.values) for quality in both))
    if gap < 2 * error:
        return f"{ahead}, which is within what the seeds vary: call it a tie."
    return f"{ahead}, more than the seeds vary."


def _trade(table: Table, best: Row) -> list[str]:
    """Who does better than the winner in time, in forward latency and in decode state, and how many times."""
    better: dict[str, list[str]] = {}
    unbeaten = []
    for cost, noun, phrase in (
        ("seconds", "training time", "trains {} times as fast"),
        ("forward", "forward time", "computes forward {} times as fast"),
        ("state", "decode state", "keeps a decode state {} times smaller"),
    ):
        rows = [row for row in table.scored if row.costs[cost]]
        if len(rows) < 2 or best not in rows:
            continue
        least = min(rows, key=lambda row: row.costs[cost])
        ratio = best.costs[cost] / least.costs[cost]
        place = table.places.get({"forward": "forward", "state": "decode"}.get(cost))
        if ratio < 1.1:
            unbeaten.append(noun)
        else:
            factor = f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}"
            words = phrase.format(factor) + (f" at {place[0]:,} tokens" if place else "")
            better.setdefault(_short(least.name), []).append(words)
    sentences = [f"Nobody does clearly better than it in {_and(unbeaten)}."] if unbeaten else []
    if better:
        phrases = "; ".join(f"{name} {_and(what)}" for name, what in better.items())
        sentences.append(("But " if unbeaten else "At a price: ") + phrases + ".")
    return sentences


def _and(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _short(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:30].rstrip()}…{name[-12:].lstrip()}"


def notes(race: Race, table: Table) -> list[str]:
    """What a reader must know beside the figures: seeds lost, a busy machine, what was done to the data."""
    found = []
    for row in table.rows:
        lost = [t for t in row.contender.trials if t.phase == "main" and t.status in ("failed", "diverged")]
        if lost:
            causes = "; ".join(dict.fromkeys(t.error or t.status for t in lost))
            found.append(f"{row.name}: {len(lost)} of {row.seeds} seeds gave no result ({causes}).")
    partial = [row.name for row in table.rows if row.quality is None]
    if partial:
        found.append(f"No score yet: {', '.join(partial)}.")
    cores = race.machine.get("cores")
    load = max((c.load for row in table.rows for c in row.contender.costs if c.load is not None), default=0)
    # The load is a mean of the last minute, which the race's own training filled with one run a core.
    if isinstance(cores, int | float) and load > 1.4 * cores:
        found.append(
            f"Costs were measured on a busy machine (load {load:.1f} on {cores} cores): times may be too long."
        )
    found += map(str, race.options.get("notes") or [])
    found += map(str, race.source.get("notes") or [])
    baselines = race.source.get("baselines") or {}
    if baselines:
        beside = ", ".join(f"{name} {score:.3g}" for name, score in baselines.items())
        found.append(f"{table.label[:1].upper() + table.label[1:]} on the test part without any model: {beside}.")
    return found


def command(race: Race) -> str:
    """The shell command that repeats the race: as it was typed where the race kept it, else made from its options."""
    kept = race.options.get("command")
    if isinstance(kept, list | tuple):
        return shlex.join(map(str, kept))
    if kept:
        return str(kept)
    words = ["formwright", "race", *(c.text for c in race.contenders), "--data", race.data]
    for name, value in race.options.items():
        if name in RECIPE and isinstance(value, str | int | float) and not isinstance(value, bool):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def recipe(race: Race) -> list[tuple[str, str]]:
    """The options of the race as (name, value), the well-known ones first and in words."""
    options = {k: v for k, v in race.options.items() if k not in ("command", "notes", "contenders", "data")}
    known = [(words, options.pop(key)) for key, words in RECIPE.items() if options.get(key) is not None]
    rest = [(key.replace("_", " ").capitalize(), value) for key, value in options.items()]
    return [(name, plain(value)) for name, value in known + rest if value not in (None, "", [], {})]


def plain(value) -> str:
    """Any JSON value as short text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
