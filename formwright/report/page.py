"""One HTML page that holds a whole race and opens offline: no file beside it, nothing fetched.

The charts' JavaScript (Vega, from vl-convert) is put in once. All text that comes from users, files or models is
escaped; data in scripts is JSON that can't close its element.
"""

from __future__ import annotations

import json
import os
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import vl_convert

from formwright.race.records import Race
from formwright.report import charts, curves, samples, script, style, words
from formwright.report.board import board
from formwright.report.figures import COSTS, Table, humanise, matched, tabulate


def write(race: Race, path: str | Path) -> Path:
    """Write the page of a loaded race to `path`, in one move, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(html(race), encoding="utf-8")
    os.replace(part, path)
    return path


def html(race: Race) -> str:
    """The page as text."""
    table = tabulate(race)
    specs: dict[str, Any] = {}
    body = [
        _header(race, table),
        "<main>",
        _legend(table),
        _section("Leaderboard", _board_lead(race, table), board(table)) if race.contenders else "",
        _quality(table, specs),
        _learning(table, specs),
        _costs(table, specs),
        _samples(table, specs),
        _run(race, table),
        "</main>",
        f"<footer>Made by formwright from race {escape(race.id)}.</footer>",
    ]
    title = escape(words.title(race))
    data = json.dumps(specs, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<style>{style.sheet()}</style>\n</head>\n<body>\n{"".join(body)}\n'
        f'<script type="application/json" id="charts">{data}</script>\n<script>{bundle()}</script>\n'
        f"<script>{script.SCRIPT}</script>\n</body>\n</html>\n"
    )


@cache
def bundle() -> str:
    """Vega and its embedding as one script that can stand inside an HTML page."""
    return vl_convert.javascript_bundle().replace("</script", "<\\/script").replace("<!--", "<\\!--")


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


def _section(title: str, lead: str, content: str) -> str:
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    return f"<section><h2>{title}</h2>{lead}{content}</section>" if content else ""


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


def _card(specs: dict, key: str, title: str, note: str, chart: Any, labels: bool = False) -> str:
    if chart is None:
        return ""
    specs[key] = charts.compiled(chart, labels)
    note = f"<p>{note}</p>" if note else ""
    return f'<div class="card"><h3>{title}</h3>{note}<div class="chart" id="{key}"></div></div>'


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
        cards.append(_card(specs, f"quality-{cost}", COSTS[cost], note, chart, labels=True))
    many = " Numbers are places on the leaderboard." if len(table.scored) > 7 else ""
    lead = (
        "Toward the "
        + ("lower" if table.lower else "upper")
        + " left is better. The dashed stair is the Pareto front: "
    )
    lead += f"no contender lies beyond it. Bars are one standard deviation over seeds.{many}"
    return _section("Quality against cost", lead, _grid(cards))


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
            cards.append(_card(specs, f"curve-{key}-{against}", f"{head} {what}", "", chart))
    return _section(
        "Learning",
        "Lines are means over seeds, bands reach from the lowest to the highest seed; the steep start is cut off.",
        _grid(cards),
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
        cards.append(_card(specs, f"cost-{kind}-{figure}", title, f"batch of {batch}", chart))
    lead = "Measured on the machine below. Both axes are logarithmic; bands show the spread of repeats."
    return _section("Cost against length", lead, _grid(cards))


def _samples(table: Table, specs: dict) -> str:
    content, more = samples.sections(table)
    specs |= more
    return _section("Samples", "", content)


def _grid(cards: list[str]) -> str:
    content = "".join(cards)
    return f'<div class="grid">{content}</div>' if content else ""


def _pairs(pairs: list[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs) + "</dl>"


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
        ("Data", _pairs(data)),
        ("Recipe", _pairs(words.recipe(race)) if words.recipe(race) else ""),
        ("Machine", _pairs(known) if known else ""),
        ("Versions", _pairs([(str(k), str(v)) for k, v in versions.items()]) if versions else ""),
    ]
    grid = "".join(f'<div class="card"><h3>{title}</h3>{content}</div>' for title, content in cards if content)
    remarks = "".join(f"<li>{escape(note)}</li>" for note in words.notes(race, table))
    command = (
        f'<div class="command"><code id="command">{escape(words.command(race))}</code>'
        '<button id="copy" class="act" type="button">Copy</button></div>'
    )
    return (
        _section("How to repeat it", "The command that ran this race.", command)
        + _section("Notes", "", f"<ul>{remarks}</ul>" if remarks else "")
        + _section("Contenders", "", _contenders(race))
        + f'<section><h2>Details</h2><div class="grid">{grid}</div></section>'
    )


def _contenders(race: Race) -> str:
    cards = []
    for i, contender in enumerate(sorted(race.contenders, key=lambda c: c.position)):
        rates = sorted({t.lr for t in contender.trials if t.phase == "main" and t.lr is not None})
        tried = sorted({t.lr for t in contender.trials if t.phase == "sweep" and t.lr is not None})
        pairs = [("Written", contender.text)]
        pairs += [("Built", contender.expression)] if contender.expression else []
        pairs += [("Width", str(contender.dim))] if contender.dim else []
        pairs += [("Multiply-adds a token", humanise(contender.macs))] if contender.macs else []
        if rates:
            among = f" (of {', '.join(f'{lr:g}' for lr in tried)})" if len(tried) > 1 else ""
            pairs.append(("Learning rate", ", ".join(f"{lr:g}" for lr in rates) + among))
        pairs += [("Models", contender.folder)] if contender.folder else []
        head = f'<div class="name">{style.badge(i)}<span>{escape(contender.name)}</span></div>'
        cards.append(f'<div class="card">{head}{_pairs(pairs)}</div>')
    return _grid(cards)
