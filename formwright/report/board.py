"""The leaderboard of the page: one row a contender, scores also as dots on one common scale."""

from __future__ import annotations

import re
from html import escape

from formwright.report import style
from formwright.report.figures import Row, Table, humanise

WIDTH = 110
FRONTS = {"params": "size", "seconds": "time", "forward": "forward", "state": "state"}


def board(table: Table) -> str:
    """The leaderboard as an HTML table; columns that nobody has a figure for are left out."""
    columns = [column for column in _columns(table) if any(column[2](row) is not None for row in table.rows)]
    best = {
        title: choose(values)
        for title, _, value, _, choose in columns
        if choose and len(values := [v for row in table.scored if (v := value(row)) is not None]) > 1
    }
    heads = "".join(f"<th scope=col>{title}<small>{escape(note)}</small></th>" for title, note, *_ in columns)
    fronts = any(row.fronts for row in table.rows)
    if fronts:
        heads += "<th scope=col class=left>Front<small>quality against</small></th>"
    lines = [_line(table, row, columns, best, fronts) for row in table.rows]
    lines += [_failed(row, len(columns) + fronts) for row in table.failed]
    quality = f"{escape(table.label[:1].upper() + table.label[1:])}<small>{table.split}</small>"
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Leaderboard"><table><thead><tr>'
        f"<th scope=col>Contender</th><th scope=col>{quality}</th>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _columns(table: Table) -> list[tuple]:
    """(title, note, figure of a row, its words, which is best)."""
    forward, decode = (_at(table, kind) for kind in ("forward", "decode"))

    def cost(key):
        return lambda row: row.costs.get(key)

    return [
        ("Parameters", "", cost("params"), humanise, None),
        ("Training", "tokens/s", lambda row: row.rate, humanise, max),
        ("Time", "a run", cost("seconds"), lambda v: humanise(v, "seconds"), None),
        ("Forward", f"ms {forward}", cost("forward"), lambda v: humanise(v, "ms"), min),
        ("Peak", forward, cost("peak"), lambda v: humanise(v, "bytes"), min),
        ("Decode", f"ms/token {decode}", cost("decode"), lambda v: humanise(v, "ms"), min),
        ("State", decode, cost("state"), lambda v: humanise(v, "bytes"), min),
    ]


def _at(table: Table, kind: str) -> str:
    return f"at {table.places[kind][0]:,}" if kind in table.places else ""


def soft(name: str) -> str:
    """A name escaped, with places where a narrow column may break it."""
    return re.sub(r"([_:(,/=])", r"\1<wbr>", escape(name, quote=False))


def _who(row: Row) -> str:
    rank = row.rank or ""
    return f'<td class="who"><div><i>{rank}</i>{style.badge(row.colour)}<span>{soft(row.name)}</span></div></td>'


def _line(table: Table, row: Row, columns: list[tuple], best: dict, fronts: bool) -> str:
    cells = [_who(row), f'<td class="score">{escape(table.spread(row.quality))}{_dots(table, row)}</td>']
    for title, _, value, write, _ in columns:
        figure = value(row)
        mark = ' class="best"' if figure is not None and best.get(title) == figure else ""
        cells.append(f"<td{mark}>{write(figure)}</td>")
    if fronts:
        tags = "".join(f'<span class="front">{FRONTS[cost]}</span>' for cost in row.fronts)
        cells.append(f'<td class="left">{tags}</td>')
    return f"<tr{' class=first' if row.rank == 1 else ''}>{''.join(cells)}</tr>"


def _failed(row: Row, columns: int) -> str:
    why = f'<td class="why" colspan="{columns + 1}">No result: {escape(row.failure)}</td>'
    return f'<tr class="failed">{_who(row)}{why}</tr>'


def _dots(table: Table, row: Row) -> str:
    """Seeds as dots, their mean as a bar, on a scale common to all rows."""
    if row.quality is None or len(table.scored) < 2:
        return ""
    everything = [value for other in table.scored for value in other.quality.values]
    low, high = min(everything), max(everything)

    def x(value: float) -> float:
        return 5 + (WIDTH - 10) * (0.5 if high == low else (value - low) / (high - low))

    colour = style.colour(row.colour)
    dots = "".join(
        f'<circle cx="{x(v):.1f}" cy="8" r="3.2" fill="{colour}" opacity=".45"/>' for v in row.quality.values
    )
    mean = x(row.quality.mean)
    bar = f'<path d="M{mean:.1f} 1.5V14.5" stroke="{colour}" stroke-width="2.4" stroke-linecap="round"/>'
    rail = f'<path d="M5 8H{WIDTH - 5}" stroke="var(--line)"/>'
    return f'<svg class="dots" viewBox="0 0 {WIDTH} 16" aria-hidden="true">{rail}{dots}{bar}</svg>'
