"""One HTML page that holds a whole race and opens offline: no file beside it, nothing fetched.

All text that comes from users, files or models is escaped; data in scripts is JSON that can't close its element.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from formwright.race.records import Race
from formwright.report import charts, curves, layout, samples, style, words
from formwright.report.board import board
from formwright.report.figures import COSTS, Table, humanise, matched, tabulate
from formwright.report.layout import card, grid, pairs, section


def write(race: Race, path: str | Path) -> Path:
    """Write the page of a loaded race to `path`, in one move, and return the path."""
    return layout.write(html(race), path)


def html(race: Race) -> str:
    """The page as text."""
    table = tabulate(race)
    specs: dict[str, Any] = {}
    body = [
        _header(race, table),
        "<main>",
        _legend(table),
        section("Leaderboard", _board_lead(race, table), board(table)) if race.contenders else "",
        _quality(table, specs),
        _learning(table, specs),
        _costs(table, specs),
        _samples(table, specs),
        _run(race, table),
        "</main>",
        f"<footer>Made by formwright from race {escape(race.id)}.</footer>",
    ]
    return layout.shell(words.title(race), "".join(body), specs)


def _header(race: Race, table: Table) -> str:
    done = sum(t.status == "done" for c in race.contenders for t in c.trials if t.phase == "main")
    facts = [words.when(race), f"{done} training run{'' if done == 1 else 's'}"]
    facts += [f"{name.lower()} {value}" for name, value in words.recipe(race) if name in ("Budget", "Size")]
    facts += [str(race.machine.get(key)) for key in ("gpu", "cpu") if race.machine.get(key)][:1]
    first, *rest = words.verdict(race, table)
    state = words.progress(race)
    return (
        '<header><div class="brand"><span><b>formwright</b> race</span>'
        '<button id="theme" class="act" type="button">Dark</button></div>'
        f"<h1>{escape(words.title(race))}</h1>"
        f'<div class="meta">{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</div>'
        + (f'<p class="banner">{escape(state)}</p>' if state else "")
        + f'<p class="verdict">{escape(first)} <span>{escape(" ".join(rest))}</span></p></header>'
    )


def _legend(table: Table) -> str:
    if not table.everyone:
        return ""
    chips = "".join(
        f'<button type="button" class="chip" aria-pressed="false" data-name="{escape(row.name, quote=True)}" '
        f'title="{escape(row.name, quote=True)}">{style.badge(row.colour)}<span>{escape(row.name)}</span></button>'
        for row in table.everyone
    )
    return f'<div class="legend" role="group" aria-label="Contenders: choose one to single it out">{chips}</div>'


def _board_lead(race: Race, table: Table) -> str:
    seeds = max((len(row.quality.values) for row in table.scored), default=0)
    mean = "Mean ± standard deviation over seeds" if seeds > 1 else "One seed"
    better = "lower is better" if table.lower else "higher is better"
    front = (
        "; “Front” names the costs in which no other contender is both as good and cheaper"
        if any(row.fronts for row in table.rows)
        else ""
    )
    return f"{mean}, {escape(table.label)} on {table.split} data: {better}{front}."


def _quality(table: Table, specs: dict) -> str:
    cards = []
    shown = ["params", "seconds", "forward", "state"]
    if not any(row.costs["state"] for row in table.scored):
        shown[-1] = "peak"
    for cost in shown:
        values = [row.costs[cost] for row in table.scored if row.costs[cost]]
        note = _place(table, {"forward": "forward", "peak": "forward", "state": "decode"}.get(cost))
        if cost == "seconds":
            note = "one training run, mean over seeds"
        elif cost == "params":
            note = "of the whole model"
        if values and matched(values):
            unit = {"params": "", "seconds": "seconds", "forward": "ms"}.get(cost, "bytes")
            low, high = humanise(min(values), unit), humanise(max(values), unit)
            note = "held equal: " + (low if low == high else f"{low} to {high}")
        chart = charts.quality_against(table, cost)
        cards.append(card(specs, f"quality-{cost}", COSTS[cost], note, chart, labels=True))
    many = " Numbers are places on the leaderboard." if len(table.scored) > 7 else ""
    lead = (
        "Toward the "
        + ("lower" if table.lower else "upper")
        + " left is better. The dashed stair is the Pareto front: "
    )
    lead += f"no contender lies beyond it. Bars are one standard deviation over seeds.{many}"
    return section("Quality against cost", lead, grid(cards))


def _place(table: Table, kind: str | None) -> str:
    length, batch = table.places.get(kind, (0, 1))
    return f"{length:,} tokens, batch of {batch}" if length else ""


def _learning(table: Table, specs: dict) -> str:
    cards = []
    scores = {
        p.score for row in table.everyone for t in row.contender.trials for p in t.points if p.split == "validation"
    }
    score = table.metric if table.metric in scores or not scores else sorted(scores)[0]
    validation = curves.lines(table, "validation", score)
    train = curves.lines(table, "train", "loss")
    longest = max((point["seconds"] for point in validation + train), default=0)
    percent = table.percent and score == table.metric
    name = table.label if score == table.metric else score
    falling = table.lower or score != table.metric
    for key, lines, title, times, falls in (
        ("validation", validation, f"{name}{' (%)' if percent else ''}", 100 if percent else 1, falling),
        ("train", train, "training loss", 1, True),
    ):
        for against, what in (("tokens", "against tokens"), ("time", "against time")):
            chart = charts.curves(table, lines, against, title, longest=longest, falling=falls, times=times)
            head = "Validation" if key == "validation" else "Training loss"
            cards.append(card(specs, f"curve-{key}-{against}", f"{head} {what}", "", chart))
    return section(
        "Learning",
        "Lines are means over seeds, bands reach from the lowest to the highest seed; the steep start is cut off.",
        grid(cards),
    )


def _costs(table: Table, specs: dict) -> str:
    cards = []
    for kind, figure, title in (
        ("forward", "milliseconds", "Forward: time"),
        ("forward", "peak_bytes", "Forward: peak memory"),
        ("prefill", "milliseconds", "Prefill: time"),
        ("decode", "milliseconds", "Decode: time a token"),
        ("decode", "state_bytes", "Decode: state"),
    ):
        batch = table.places.get(kind, (0, 1))[1]
        chart = charts.against_length(table, kind, figure)
        cards.append(card(specs, f"cost-{kind}-{figure}", title, f"batch of {batch}", chart))
    lead = "Measured on the machine below. Both axes are logarithmic; bands show the spread of repeats."
    return section("Cost against length", lead, grid(cards))


def _samples(table: Table, specs: dict) -> str:
    content, more = samples.sections(table)
    specs |= more
    return section("Samples", "", content)


def _run(race: Race, table: Table) -> str:
    source, machine = race.source, dict(race.machine)
    versions = machine.pop("versions", None) or {}
    data = [("Data", race.data)] + ([("Kind", str(source["kind"]))] if source.get("kind") else [])
    unit = "tokens" if source.get("kind") == "text" else "items"
    data += [(f"{k.capitalize()} part", f"{v:,} {unit}") for k, v in (source.get("sizes") or {}).items()]
    memory = machine.pop("memory_bytes", None)
    known = [("Memory", humanise(memory, "bytes"))] if memory else []
    known = [
        (k.replace("_", " ").capitalize(), words.plain(v)) for k, v in machine.items() if v not in (None, "")
    ] + known
    cards = [
        ("Data", pairs(data)),
        ("Recipe", pairs(words.recipe(race)) if words.recipe(race) else ""),
        ("Machine", pairs(known) if known else ""),
        ("Versions", pairs([(str(k), str(v)) for k, v in versions.items()]) if versions else ""),
    ]
    details = "".join(f'<div class="card"><h3>{title}</h3>{content}</div>' for title, content in cards if content)
    remarks = "".join(f"<li>{escape(note)}</li>" for note in words.notes(race, table))
    command = (
        f'<div class="command"><code id="command">{escape(words.command(race))}</code>'
        '<button id="copy" class="act" type="button">Copy</button></div>'
    )
    return (
        section("How to repeat it", "The command that ran this race.", command)
        + section("Notes", "", f"<ul>{remarks}</ul>" if remarks else "")
        + section("Contenders", "", _contenders(race))
        + f'<section><h2>Details</h2><div class="grid">{details}</div></section>'
    )


def _contenders(race: Race) -> str:
    cards = []
    for i, contender in enumerate(sorted(race.contenders, key=lambda c: c.position)):
        rates = sorted({t.lr for t in contender.trials if t.phase == "main" and t.lr is not None})
        tried = sorted({t.lr for t in contender.trials if t.phase == "sweep" and t.lr is not None})
        facts = [("Written", contender.text)]
        facts += [("Built", contender.expression)] if contender.expression else []
        facts += [("Width", str(contender.dim))] if contender.dim else []
        facts += [("Multiply-adds a token", humanise(contender.macs))] if contender.macs else []
        if rates:
            among = f" (of {', '.join(f'{lr:g}' for lr in tried)})" if len(tried) > 1 else ""
            facts.append(("Learning rate", ", ".join(f"{lr:g}" for lr in rates) + among))
        facts += [("Models", contender.folder)] if contender.folder else []
        head = f'<div class="name">{style.badge(i)}<span>{escape(contender.name)}</span></div>'
        cards.append(f'<div class="card">{head}{pairs(facts)}</div>')
    return grid(cards)
