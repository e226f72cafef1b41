"""The charts of a bench: score against decode state, and the heat map that its picture is made of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import altair as alt

from formwright.bench.verdict import SIGNS, Results
from formwright.report import bench_words as words
from formwright.report import charts
from formwright.report.figures import humanise

ROW, COLUMN = 40, 104


def against_state(results: Results, ability: str) -> alt.LayerChart | None:
    """Score on an ability against the bytes that decoding keeps, a point a mixer with its range over seeds."""
    bar = results.bars[ability]
    data: list[dict[str, Any]] = []
    rows = []
    for i, mixer in enumerate(results.mixers):
        verdict = results.verdicts[mixer, ability]
        if not (bar and verdict.scores and verdict.state_bytes):
            continue
        rows.append(SimpleNamespace(name=mixer, colour=i))
        times = 100 if bar.metric.endswith("accuracy") else 1
        low, high = (times * f(verdict.scores) for f in (min, max))
        data.append({
            "name": mixer, "label": charts.short(mixer), "state": verdict.state_bytes, "score": times * verdict.median,
            "low": low, "high": high, "words": words.cell(verdict, bar),
            "bytes": humanise(verdict.state_bytes, "bytes"),
        })  # fmt: skip
    if len(data) < 2:
        return None
    states = [point["state"] for point in data]
    low, high = min(states) / 1.6, max(states) * 1.6
    axis = alt.Axis(title="decode state", values=charts.log_ticks(low, high), labelExpr=charts.BYTES)
    x = alt.X("state:Q", axis=axis, scale=alt.Scale(type="log", domain=[low, high], nice=False))
    better = "lower" if bar.lower else "higher"
    top = [-4, 104] if bar.metric.endswith("accuracy") else None
    scale = alt.Scale(domain=top, nice=False) if top else alt.Scale(zero=True)
    y = alt.Y("score:Q", axis=alt.Axis(title=f"{words.unit(bar)}, {better} is better", tickCount=5), scale=scale)
    scales = charts._identity(rows)
    color = alt.Color("name:N", scale=scales["color"], legend=None)
    base = alt.Chart(alt.Data(values=data))
    times = 100 if bar.metric.endswith("accuracy") else 1
    lines = alt.Data(values=[{"y": times * bar.base}, {"y": times * bar.mark}])
    rules = alt.Chart(lines).mark_rule(stroke="var(--faint)", strokeDash=[4, 3], strokeWidth=1.2)
    dots = base.mark_point(filled=True, size=120, stroke="var(--card)", strokeWidth=1.2).encode(
        x=x, y=y, color=color, shape=alt.Shape("name:N", scale=scales["shape"], legend=None), opacity=charts._faded(),
        tooltip=[alt.Tooltip("name:N", title="mixer"), alt.Tooltip("words:N", title=words.unit(bar)),
                 alt.Tooltip("bytes:N", title="decode state")],
    )  # fmt: skip
    layers = [
        rules.encode(y=alt.Y("y:Q", scale=scale)),
        base.mark_rule(strokeWidth=1.4).encode(
            x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=color, opacity=charts._faded(0.6)
        ),
        dots.properties(name="dots"),
        base.mark_text(dx=9, dy=-9, fontSize=12, color="var(--ink)").encode(x=x, y=y, text="label:N")
        .properties(name="labels"),
    ]  # fmt: skip
    return alt.layer(*layers).properties(height=charts.HEIGHT).add_params(charts._focus())


def heat_map(results: Results) -> alt.LayerChart:
    """Mixers by abilities: the share of the way from baseline to mark as colour, the score printed inside."""
    abilities = [ability["name"] for ability in results.abilities]
    data = []
    for mixer in results.mixers:
        for ability in abilities:
            verdict, bar = results.verdicts[mixer, ability], results.bars[ability]
            share = None if verdict.share is None else min(1.0, max(0.0, verdict.share))
            scored = verdict.scores and bar
            text = f"{SIGNS[verdict.word]} {words.cell(verdict, bar)}" if scored else SIGNS[verdict.word]
            data.append({"mixer": mixer, "ability": ability, "share": share or 0.0, "text": text})
    for kind, read in (("baseline", lambda bar: bar.base), ("mark", lambda bar: bar.mark)):
        for ability in abilities:
            bar = results.bars[ability]
            text = words.figure(read(bar), bar) if bar else ""
            data.append({"mixer": kind, "ability": ability, "share": 0.0, "text": text})
    rows = [*results.mixers, "baseline", "mark"]
    axis = {"title": None, "domain": False, "ticks": False, "labelLimit": 220, "labelPadding": 8, "labelFontSize": 12.5,
            "labelColor": "var(--ink)", "labelOverlap": False}  # fmt: skip
    x = alt.X("ability:N", sort=abilities, axis=alt.Axis(orient="top", labelAngle=-24, labelAlign="left", **axis))
    y = alt.Y("mixer:N", sort=rows, axis=alt.Axis(**axis))
    base = alt.Chart(alt.Data(values=data)).encode(x=x, y=y)
    scale = alt.Scale(domain=[0, 1], range=["var(--card)", "var(--heat)"], interpolate="rgb")
    cells = base.mark_rect(stroke="var(--page)", strokeWidth=3).encode(
        color=alt.Color("share:Q", scale=scale, legend=None)
    )
    text = base.mark_text(fontSize=13, color="var(--ink)").encode(text="text:N")
    return alt.layer(cells, text).properties(width=COLUMN * len(abilities), height=ROW * len(rows))
