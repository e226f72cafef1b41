"""One picture of a race: the leaderboard on the left, quality against a cost on the right, the verdict above."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path

import altair as alt
import vl_convert

from formwright.race.records import Race
from formwright.report import charts, style, words
from formwright.report.figures import COSTS, Table, humanise, tabulate

WIDTH, LINE = 1120, 26


def write(race: Race, path: str | Path, *, dark: bool = False) -> Path:
    """Write the picture of a loaded race to `path`, in one move, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    spec = json.dumps(picture(race).to_dict(), allow_nan=False)
    part.write_bytes(vl_convert.vegalite_to_png(style.paint(spec, style.DARK if dark else style.LIGHT), scale=2))
    os.replace(part, path)
    return path


def picture(race: Race) -> alt.TopLevelMixin:
    """The picture as an Altair chart whose colours are still names."""
    table = tabulate(race)
    rows = max(len(table.everyone), 1)
    height = max(260, rows * LINE)
    parts = [leaderboard(table).properties(width=600, height=height)]
    cost = next((c for c in ("forward", "seconds", "params") if any(row.costs.get(c) for row in table.scored)), None)
    if cost:
        title = _heading(f"Quality against {COSTS[cost].lower()}")
        chart = charts.quality_against(table, cost, numbers=True)
        parts.append(chart.properties(width=WIDTH - 600 - 120, height=height, title=title))
    subtitle = textwrap.wrap(" ".join(words.verdict(race, table)), 150)[:3]
    title = alt.TitleParams(
        words.title(race), subtitle=subtitle, anchor="start", fontSize=24, subtitleFontSize=13.5, offset=26,
        color="var(--ink)", subtitleColor="var(--soft)", subtitleLineHeight=19, subtitlePadding=8,
    )  # fmt: skip
    config = charts.theme() | {"font": "sans-serif"}
    return alt.hconcat(*parts, spacing=46, title=title, background="var(--page)", padding=30).configure(**config)


def leaderboard(table: Table) -> alt.LayerChart:
    """The leaderboard drawn as a chart: places, marks, names, scores and the figures that fit."""
    columns = [
        ("score", table.label, 350),
        ("params", "params", 430),
        ("forward", "forward ms", 515),
        ("state", "state", 600),
    ]
    lines = []
    for i, row in enumerate(table.everyone):
        cost = row.costs.get
        figures = {
            "score": "no result" if row.failure else table.spread(row.quality),
            "params": humanise(row.contender.params),
            "forward": humanise(cost("forward"), "ms"), "state": humanise(cost("state"), "bytes"),
        }  # fmt: skip
        rank = str(row.rank or "")
        lines.append({"line": i + 1, "name": row.name, "label": charts.short(row.name, 30), "rank": rank} | figures)
    scale = alt.Scale(domain=[0, max(len(lines), 9) + 0.5], reverse=True, nice=False)
    y = alt.Y("line:Q", axis=None, scale=scale)
    base = alt.Chart(alt.Data(values=lines)).encode(y=y)
    scales = charts._identity(table.everyone)
    color = alt.Color("name:N", scale=scales["color"], legend=None)
    shape = alt.Shape("name:N", scale=scales["shape"], legend=None)
    text = {"baseline": "middle", "fontSize": 13, "color": "var(--ink)"}
    layers = [
        base.mark_text(align="right", **(text | {"color": "var(--faint)"})).encode(x=alt.value(14), text="rank:N"),
        base.mark_point(filled=True, size=90, opacity=1).encode(x=alt.value(28), color=color, shape=shape),
        base.mark_text(align="left", **text).encode(x=alt.value(42), text="label:N"),
    ]
    head = alt.Chart(alt.Data(values=[{"line": 0}])).encode(y=y)
    small = {"baseline": "middle", "fontSize": 11.5, "color": "var(--soft)"}
    for key, name, x in columns:
        if key in ("score", "params") or any(row.costs.get(key) for row in table.rows):
            layers.append(base.mark_text(align="right", **text).encode(x=alt.value(x), text=f"{key}:N"))
            layers.append(head.mark_text(align="right", text=charts.short(name, 26), **small).encode(x=alt.value(x)))
    return alt.layer(*layers).properties(title=_heading("Leaderboard"))


def _heading(text: str) -> alt.TitleParams:
    return alt.TitleParams(text, anchor="start", frame="group", fontSize=14.5, color="var(--ink)", offset=12)
