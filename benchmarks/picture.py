"""The picture of the benchmark: milliseconds over tokens, both logarithmic, a panel for each row and work."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from op_rows import NAIVE

from formwright.report import charts, style

Record = dict[str, Any]
ACROSS = 3


def write(path: Path, records: list[Record], marks: Record) -> None:
    """Draw the timed records, in one move."""
    timed = [r for r in records if r["status"] == "timed" and r["row"] != "growth"]
    panels = [_panel(timed, row, work) for row, work in dict.fromkeys((_family(r), r["work"]) for r in timed)]
    if not panels:
        return
    title = alt.TitleParams(
        "Linear recurrences: milliseconds over tokens", anchor="start", fontSize=22, subtitleFontSize=13, offset=22,
        subtitle=f"{marks['machine']}, {marks['threads']} threads; {marks['versions']}; {marks['when']}; medians "
        "with quartiles; dashed: other libraries; dotted: loops", color="var(--ink)", subtitleColor="var(--soft)",
    )  # fmt: skip
    chart = alt.concat(*panels, columns=ACROSS, title=title, background="var(--page)", padding=24, spacing=36)
    chart = chart.resolve_scale(color="independent", strokeDash="independent", shape="independent")
    spec = json.dumps(chart.configure(**charts.theme() | {"font": "sans-serif"}).to_dict(), allow_nan=False)
    part = path.with_name(path.name + ".part")
    part.write_bytes(vl_convert.vegalite_to_png(style.paint(spec, style.LIGHT), scale=1.5))
    os.replace(part, path)


def _family(record: Record) -> str:
    """Steps of all mixers share a panel."""
    return "step" if record["row"].startswith("step:") else record["row"]


def _foreign(call: str) -> bool:
    return ": " in call or call in ("SDPA causal", "plain loop") or call.startswith("matrix product")


def _root(call: str, family: str) -> str:
    """What shares a colour: a mixer's step and its peer's, a variant and fla's forms of it."""
    if family == "fla":
        return NAIVE[call][0] if call in NAIVE else call
    return call.removeprefix("hf: ") if family == "step" else call


def _dash(call: str) -> list[int]:
    if not _foreign(call):
        return [1, 0]
    return [2, 3] if call.endswith("loop") else [6, 4]


def _panel(records: list[Record], family: str, work: str) -> alt.LayerChart:
    mine = [r for r in records if _family(r) == family and r["work"] == work]
    if family == "step":  # those with a peer, else the lines are too many to tell apart
        paired = {r["call"].removeprefix("hf: ") for r in mine if _foreign(r["call"])}
        mine = [r for r in mine if not paired or r["call"].removeprefix("hf: ") in paired]
    calls = list(dict.fromkeys(r["call"] for r in mine))
    values = [{k: r[k] for k in ("call", "tokens", "milliseconds", "low", "high")} for r in mine]
    roots = list(dict.fromkeys(_root(c, family) for c in calls))
    hues = [f"var(--c{roots.index(_root(c, family)) % style.HUES})" for c in calls]
    dashes = [_dash(c) for c in calls]
    legend = alt.Legend(title=None, labelLimit=190, symbolSize=90)
    color = alt.Color("call:N", scale=alt.Scale(domain=calls, range=hues), legend=legend)
    dash = alt.StrokeDash("call:N", scale=alt.Scale(domain=calls, range=dashes), legend=None)
    ticks = sorted({r["tokens"] for r in mine})
    x = alt.X("tokens:Q", scale=alt.Scale(type="log"), axis=alt.Axis(values=ticks, title="tokens", format="d"))
    base = alt.Chart(alt.Data(values=values)).encode(x=x, color=color)
    y = alt.Y("milliseconds:Q", scale=alt.Scale(type="log"), axis=alt.Axis(title="ms", format="~g"))
    bars = base.mark_rule(strokeWidth=1).encode(y=alt.Y("low:Q", title="ms"), y2="high:Q")
    lines = base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash)
    forms = alt.Scale(domain=calls, range=["square" if _foreign(c) else "circle" for c in calls])
    dots = base.mark_point(filled=True, size=34, opacity=1).encode(
        y=y, shape=alt.Shape("call:N", scale=forms, legend=legend)
    )
    heading = f"one token, {work}" if family == "step" else f"{family}, {work}"
    title = alt.TitleParams(heading, anchor="start", fontSize=14, color="var(--ink)")
    return alt.layer(lines, bars, dots).properties(width=300, height=230, title=title)
