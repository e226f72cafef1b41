"""A race in the terminal: its verdict, the leaderboard, what failed, what to know, where everything lies."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from formwright.race.records import Race
from formwright.report import words
from formwright.report.figures import Row, Table, humanise, tabulate


def print_race(race: Race, console: Console | None = None) -> None:
    """Print a loaded race, finished or not."""
    console = console or Console()
    table = tabulate(race)
    console.print(
        f"\n[bold]{escape(words.title(race))}[/]  [dim]{escape(race.id)} · {words.when(race)}[/]", highlight=False
    )
    if state := words.progress(race):
        console.print(f"[yellow]{escape(state)}[/]", highlight=False)
    if table.rows:
        for part in leaderboard(table, console.width):
            console.print(part, "")
    if table.scored:
        front = "; ★ on a Pareto front: nobody is both as good and cheaper" if any(r.fronts for r in table.rows) else ""
        better = "lower" if table.lower else "higher"
        console.print(f"[dim]{escape(table.label)}: {better} is better{front}[/]", highlight=False)
    for row in table.failed:
        console.print(f"[red]✗ {escape(row.name)}[/] gave no result: {escape(row.failure)}", highlight=False)
    console.print()
    for sentence in words.verdict(race, table):
        console.print(escape(sentence), highlight=False)
    for note in words.notes(race, table):
        console.print(f"[dim]· {escape(note)}[/]", highlight=False)
    places = [("models", race.folder)] if race.folder.exists() else []
    places += [("report", race.folder / "report.html")] if (race.folder / "report.html").exists() else []
    for name, place in places:
        console.print(f"[dim]{name:7}[/]{escape(str(place))}", highlight=False, soft_wrap=True)
    console.print()


def leaderboard(table: Table, width: int = 150) -> list[RichTable]:
    """The leaderboard as Rich tables, more than one where it is wider than `width`; columns without figures go."""
    forward, decode = (f"at {table.places[k][0]:,}" if k in table.places else "" for k in ("forward", "decode"))

    def cost(key: str, unit: str = ""):
        return lambda row: humanise(row.costs[key], unit)

    columns = {
        f"{table.label}\n{table.split}": lambda row: table.spread(row.quality),
        "★": lambda row: "★" if row.fronts else "",
        "params": lambda row: humanise(row.contender.params),
        "train\ntokens/s": lambda row: humanise(row.rate),
        "train\ntime": cost("seconds", "seconds"),
        f"forward\nms {forward}": cost("forward", "ms"),
        f"peak\n{forward}": cost("peak", "bytes"),
        f"decode\nms {decode}": cost("decode", "ms"),
        f"state\n{decode}": cost("state", "bytes"),
        "★ against": _fronts,
    }
    cells = {title: [write(row) for row in table.rows] for title, write in columns.items()}
    names = max(9, min(max(len(row.name) for row in table.rows), width // 4))
    tables, room = [[]], width - names - 6
    for title, column in cells.items():
        if all(text in ("", "–") for text in column):
            continue
        needed = max(len(text) for text in [*title.split("\n"), *column]) + 2
        if title == "★ against" and needed > room:
            continue
        if tables[-1] and needed > room:
            tables.append([])
            room = width - names - 6
        tables[-1].append(title)
        room -= needed
    return [_part(table, {title: cells[title] for title in titles}, names) for titles in tables if titles]


def _part(table: Table, cells: dict[str, list[str]], names: int) -> RichTable:
    out = RichTable(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    out.add_column("", justify="right", style="dim", min_width=2)
    out.add_column("contender", overflow="fold", min_width=names, max_width=names)
    for title in cells:
        out.add_column(escape(title), justify="left" if title.startswith("★") else "right", no_wrap=True)
    for i, row in enumerate(table.rows):
        figures = [column[i] for column in cells.values()]
        out.add_row(str(row.rank or ""), escape(row.name), *figures, style="bold" if row.rank == 1 else None)
    return out


def _fronts(row: Row) -> str:
    short = {"params": "size", "seconds": "time", "forward": "forward", "state": "state"}
    return ", ".join(short[cost] for cost in row.fronts)


def print_list(races: list[Race], console: Console | None = None) -> None:
    """Print races as lines of a table, in the order given (`store.list_races` gives the newest first)."""
    console = console or Console()
    if not races:
        console.print("There is no race yet. Start one with `formwright race`.", highlight=False)
        return
    out = RichTable(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for title in ("race", "began", "status", "contenders", "best"):
        out.add_column(title, overflow="fold", no_wrap=title != "best")
    for race in races:
        table = tabulate(race)
        best = (
            f"{escape(table.scored[0].name)}  {table.spread(table.scored[0].quality)} {table.label}"
            if table.scored
            else "–"
        )
        colour = {"done": "green", "running": "yellow"}.get(race.status, "red")
        status = f"[{colour}]{escape(race.status)}[/]"
        out.add_row(escape(race.id), race.created[:16].replace("T", " "), status, str(len(race.contenders)), best)
    console.print(out, highlight=False)
