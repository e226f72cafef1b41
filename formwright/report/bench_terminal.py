"""A bench in the terminal: abilities by mixers, what it says in words, where all lies; and the list of benches."""

from __future__ import annotations

import re

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from formwright.bench.verdict import SIGNS, Results, results
from formwright.race.records import Bench
from formwright.report import bench_words as words

COLOURS = {"solved": "green", "partly": "yellow", "none": "red", "failed": "red", "cannot": "dim", "waiting": "dim"}
CELL = 9


def print_bench(bench: Bench, console: Console | None = None) -> None:
    """Print a loaded bench, finished or not."""
    console = console or Console()
    found = results(bench)
    console.print(
        f"\n[bold]{escape(words.title(found))}[/]  [dim]{escape(bench.id)} · {words.when(found)}[/]\n", highlight=False
    )
    for table in tables(found, console.width):
        console.print(table, "")
    console.print(f"[dim]{escape(words.rule(found))}[/]\n", highlight=False)
    for sentence in words.summary(found):
        console.print(escape(sentence), highlight=False)
    for note in words.notes(found):
        console.print(f"[dim]· {escape(note)}[/]", highlight=False)
    page = bench.folder / "report.html"
    for name, place in (("races", bench.folder), ("report", page)):
        if place.exists():
            console.print(f"[dim]{name:7}[/]{escape(str(place))}", highlight=False, soft_wrap=True)
    console.print()


def tables(found: Results, width: int) -> list[RichTable]:
    """Abilities down, mixers across: as many tables as the width asks for."""
    names = min(22, max(len(ability["name"]) for ability in found.abilities))
    each = max(1, (width - names - 15) // (CELL + 1))
    return [_table(found, found.mixers[i : i + each], names) for i in range(0, len(found.mixers), each)]


def _table(found: Results, mixers: list[str], names: int) -> RichTable:
    out = RichTable(box=None, header_style="dim", padding=(0, 1, 0, 0), pad_edge=False)
    out.add_column("", overflow="fold", min_width=names, max_width=names)
    for mixer in mixers:
        out.add_column(escape(_folded(mixer)), min_width=CELL, max_width=CELL, overflow="fold", no_wrap=False)
    out.add_column("baseline", justify="right", style="dim")
    out.add_column("mark", justify="right", style="dim")
    for ability in found.abilities:
        bar = found.bars[ability["name"]]
        cells = []
        for mixer in mixers:
            verdict = found.verdicts[mixer, ability["name"]]
            text = words.cell(verdict, bar).replace(" ", "") if verdict.scores and bar else ""
            text = re.sub(r"\b0\.", ".", text)
            cells.append(f"[{COLOURS[verdict.word]}]{SIGNS[verdict.word]}{text}[/]")
        beside = [words.figure(bar.base, bar), words.figure(bar.mark, bar)] if bar else ["", ""]
        out.add_row(escape(ability["name"]), *cells, *beside)
    counts = [f"{found.count(mixer, 'solved')} of {len(found.abilities)}" for mixer in mixers]
    out.add_row("[dim]solved[/]", *(f"[dim]{count}[/]" for count in counts), "", "")
    return out


def _folded(name: str) -> str:
    """A name in lines no wider than a cell, broken where words end."""
    lines = [""]
    for word in re.findall(r"[^_(,=]+[_(,=]*|[_(,=]+", name):
        for piece in (word[i : i + CELL] for i in range(0, len(word), CELL)):
            if len(lines[-1]) + len(piece) > CELL:
                lines.append("")
            lines[-1] += piece
    return "\n".join(lines[:4])


def print_list(benches: list[Bench], console: Console | None = None) -> None:
    """Print benches as lines of a table, newest first as `store.list_benches` gives them."""
    console = console or Console()
    if not benches:
        console.print("There is no bench yet. Start one with `formwright bench quick attention`.", highlight=False)
        return
    out = RichTable(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for title in ("bench", "began", "status", "solved"):
        out.add_column(title, overflow="fold", no_wrap=title != "solved")
    for bench in benches:
        found = results(bench)
        counts = ", ".join(f"{mixer} {found.count(mixer, 'solved')}" for mixer in found.mixers)
        colour = {"done": "green", "running": "yellow"}.get(bench.status, "red")
        began = bench.created[:16].replace("T", " ")
        text = f"{escape(counts)} of {len(found.abilities)}"
        out.add_row(escape(bench.id), began, f"[{colour}]{escape(bench.status)}[/]", text)
    console.print(out, highlight=False)
