"""A bench as one self-contained HTML page: a heat map of mixers by abilities, score against decode state, its races."""

from __future__ import annotations

import contextlib
import shlex
from html import escape
from pathlib import Path
from typing import Any

from formwright.bench.verdict import SIGNS, WORDS, Results, Verdict, results
from formwright.race import store
from formwright.race.records import Bench
from formwright.report import bench_charts as charts
from formwright.report import bench_words as words
from formwright.report import layout, page, style
from formwright.report.board import soft
from formwright.report.figures import humanise
from formwright.report.layout import card, grid, pairs, section


def write(bench: Bench, path: str | Path) -> Path:
    """Write the page of a loaded bench to `path`, in one move, and return the path."""
    return layout.write(html(bench), path)


def write_all(bench: Bench) -> Path:
    """Write the page of a bench into its folder, and the pages of its races that have none; returns the bench's."""
    with contextlib.closing(store.open_store(bench.folder.parent / "races.sqlite", create=False)) as conn:
        for race in bench.races:
            if race.finished and not (race.folder / "report.html").exists():
                page.write(store.load_race(conn, race.id), race.folder / "report.html")
    return write(bench, bench.folder / "report.html")


def html(bench: Bench) -> str:
    """The page as text."""
    found = results(bench)
    specs: dict[str, Any] = {}
    body = [
        _header(found),
        "<main>",
        section("What each mixer can do", escape(words.rule(found)), heat(found)),
        _states(found, specs),
        section(
            "Races", "One race an ability, each with a page of its own: curves, learning rates, costs.", _races(found)
        ),
        _rest(found),
        "</main>",
        f"<footer>Made by formwright from bench {escape(bench.id)}.</footer>",
    ]
    return layout.shell(words.title(found), "".join(body), specs)


def _header(found: Results) -> str:
    bench = found.bench
    facts = [words.when(found), f"{bench.options['seeds']} seeds", f"equal {words.MATCHED[bench.options['match']]}"]
    facts += [str(bench.machine[key]) for key in ("gpu", "cpu") if bench.machine.get(key)][:1]
    first, *rest = words.summary(found)
    return (
        '<header><div class="brand"><span><b>formwright</b> bench</span>'
        '<button id="theme" class="act" type="button">Dark</button></div>'
        f"<h1>{escape(words.title(found))}</h1>"
        f'<div class="meta">{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</div>'
        f'<p class="verdict">{escape(first)} <span>{escape(" ".join(rest))}</span></p></header>'
    )


def heat(found: Results) -> str:
    """The heat map as a table: a cell's colour is the share of the way from the best baseline to the mark."""
    heads = "".join(
        f'<th scope=col title="{escape(a["question"], quote=True)}">{escape(a["name"])}'
        f"<small>{escape(words.unit(found.bars[a['name']]))}</small></th>"
        for a in found.abilities
    )
    rows = []
    for i, mixer in enumerate(found.mixers):
        cells = "".join(_cell(found, found.verdicts[mixer, a["name"]]) for a in found.abilities)
        who = f'<td class="who"><div>{style.badge(i)}<span>{soft(mixer)}</span></div></td>'
        rows.append(f"<tr>{who}{cells}</tr>")
    for name, read in (("best baseline", _baseline), ("mark", _mark)):
        cells = "".join(f"<td>{read(found, a['name'])}</td>" for a in found.abilities)
        rows.append(f'<tr class="beside"><td>{name}</td>{cells}</tr>')
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Mixers by abilities"><table class="map"><thead>'
        f"<tr><th scope=col>Mixer</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(found: Results, verdict: Verdict) -> str:
    bar = found.bars[verdict.ability]
    share = min(1.0, max(0.0, verdict.share or 0.0))
    reached = f"{verdict.passed} of {verdict.seeds} seeds reach the mark" if verdict.scores else verdict.reason
    hint = escape(f"{verdict.mixer}, {verdict.ability}: {WORDS[verdict.word]}. {reached}", quote=True)
    if verdict.scores:
        median, _, spread = words.cell(verdict, bar).partition(" ± ")
        spread = f"<small>± {spread}</small>" if spread else "<small>one seed</small>"
        text = f"{SIGNS[verdict.word]} {median}{spread}"
    else:
        text = f"{SIGNS[verdict.word]}<small>{WORDS[verdict.word]}</small>"
    return f'<td class="heat {verdict.word}" style="--p:{share:.3f}" title="{hint}">{text}</td>'


def _baseline(found: Results, ability: str) -> str:
    bar = found.bars[ability]
    return f"{words.figure(bar.base, bar)}<small>{escape(bar.baseline)}</small>" if bar else ""


def _mark(found: Results, ability: str) -> str:
    bar = found.bars[ability]
    return f"{'≤' if bar.lower else '≥'} {words.figure(bar.mark, bar)}" if bar else ""


def _states(found: Results, specs: dict[str, Any]) -> str:
    names = [a["name"] for a in found.abilities if a["recall"]]
    cards = [
        card(
            specs,
            f"state-{i}",
            escape(name),
            escape(_question(found, name)),
            charts.against_state(found, name),
            labels=True,
        )
        for i, name in enumerate(names)
    ]
    lead = (
        "What a mixer keeps of the past while it decodes (bytes, by formula, for one row at the task's length) against "
        "what it recalls. Dashed: the best baseline and the mark; bars reach from the lowest to the highest seed."
    )
    return section("Recall against state size", lead, grid(cards))


def _question(found: Results, ability: str) -> str:
    return next(a["question"] for a in found.abilities if a["name"] == ability)


def _races(found: Results) -> str:
    races = {race.ability: race for race in found.bench.races}
    rows = []
    for ability in found.abilities:
        race = races.get(ability["name"])
        name = escape(ability["name"])
        there = race is not None and (race.folder / "report.html").exists()
        link = (
            f'<a href="{escape(ability["name"].replace(" ", "%20"), quote=True)}/report.html">{name}</a>'
            if there
            else name
        )
        params = [c.params for c in race.contenders if c.params] if race else []
        size = f"{humanise(min(params))} to {humanise(max(params))}" if params else "–"
        cells = [escape(ability["question"]), f"<code>{escape(ability['data'])}</code>", f"{ability['steps']:,}", size]
        style_of = ['class="left"', 'class="left"', "", ""]
        row = "".join(f"<td {kind}>{text}</td>" for kind, text in zip(style_of, cells, strict=True))
        rows.append(f"<tr><td>{link}</td>{row}</tr>")
    heads = '<th>Ability</th><th class="left">Question</th><th class="left">Data</th><th>Steps</th><th>Parameters</th>'
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Races">{table}</div>'


def _rest(found: Results) -> str:
    bench, machine = found.bench, dict(found.bench.machine)
    versions = machine.pop("versions", None) or {}
    machine["memory"] = humanise(machine.pop("memory_bytes", None), "bytes")
    known = [(k.replace("_", " ").capitalize(), str(v)) for k, v in machine.items() if v not in (None, "", "–")]
    kept = bench.options.get("command")
    text = (
        shlex.join(map(str, kept))
        if kept
        else shlex.join(["formwright", "bench", bench.suite, *bench.options["mixers"]])
    )
    command = (
        f'<div class="command"><code id="command">{escape(text)}</code>'
        '<button id="copy" class="act" type="button">Copy</button></div>'
    )
    remarks = "".join(f"<li>{escape(note)}</li>" for note in words.notes(found))
    cards = [("Machine", pairs(known)), ("Versions", pairs([(str(k), str(v)) for k, v in versions.items()]))]
    details = grid([f'<div class="card"><h3>{name}</h3>{content}</div>' for name, content in cards])
    return (
        section("Notes", "", f"<ul>{remarks}</ul>" if remarks else "")
        + section("How to repeat it", "", command)
        + section("Details", "", details)
    )
