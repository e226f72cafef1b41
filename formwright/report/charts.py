"""The charts of a race as Altair charts, one function each; colours are CSS variables (see style.py).

`compiled` turns a chart into a Vega specification: an invalid chart raises here, not in the reader's browser. It also
gives marks called `labels` a placement without overlaps, which Vega has and Vega-Lite can't say.
"""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import vl_convert

from formwright.report import style
from formwright.report.figures import Row, Table, humanise, matched

HEIGHT = 270
FOCUS = "focus == '' || focus == datum.name"


def compiled(chart: alt.TopLevelMixin, labels: bool = False) -> dict[str, Any]:
    """The Vega specification of a chart, as wide as the page's place for it."""
    chart = chart.properties(width="container", background="transparent").configure(**theme())
    spec = vl_convert.vegalite_to_vega(chart.to_dict())
    if labels:
        dots = next(mark for mark in spec["marks"] if mark["name"] == "dots_marks")
        text = next(mark for mark in spec["marks"] if mark["name"] == "labels_marks")
        text["from"] = {"data": dots["name"]}
        opacity = {"signal": "focus == '' || focus == datum.datum.name ? 1 : 0.15"}
        text["encode"] = {
            "update": {
                "text": {"field": "datum.label"},
                "fill": {"value": "var(--ink)"},
                "stroke": {"value": "var(--card)"},
                "strokeWidth": {"value": 4},
                "fontSize": {"value": 12},
                "fillOpacity": opacity,
                "strokeOpacity": opacity,
            }
        }
        anchors = ["top-right", "bottom-right", "right", "top-left", "bottom-left", "left", "top", "bottom"]
        place = {"type": "label", "size": {"signal": "[width, height]"}, "offset": [4], "anchor": anchors}
        text["transform"] = [place]
    return spec


def theme() -> dict[str, Any]:
    """Axes and type of all charts."""
    axis = alt.AxisConfig(
        labelColor="var(--soft)", titleColor="var(--soft)", gridColor="var(--grid)", domainColor="var(--line)",
        tickColor="var(--line)", labelFontSize=11.5, titleFontSize=12, titleFontWeight="normal", titlePadding=9,
        labelPadding=5, tickSize=4, labelOverlap="greedy", labelSeparation=6, domain=False, ticks=False,
    )  # fmt: skip
    return {"font": style.FONT, "axis": axis, "view": alt.ViewConfig(stroke=None)}


def _focus() -> alt.Parameter:
    return alt.param(name="focus", value="")


def _faded(full: float = 1.0) -> Any:
    return alt.condition(FOCUS, alt.value(full), alt.value(full * 0.12))


def _identity(rows: list[Row]) -> dict[str, alt.Scale]:
    names = [row.name for row in rows]
    return {
        "color": alt.Scale(domain=names, range=[style.colour(row.colour) for row in rows]),
        "shape": alt.Scale(domain=names, range=[style.shape(row.colour) for row in rows]),
        "dash": alt.Scale(domain=names, range=[style.dash(row.colour) for row in rows]),
    }


def short(name: str, most: int = 24) -> str:
    """A name cut in its middle."""
    return name if len(name) <= most else f"{name[: most - 9].rstrip()}…{name[-8:].lstrip()}"


def _span(values: list[float], log: bool, least: float = 0.06) -> alt.Scale:
    low, high = min(values), max(values)
    if log:
        pad = max((high / low) ** 0.12, 1.15)
        return alt.Scale(type="log", domain=[low / pad, high * pad], nice=False)
    pad = max(0.14 * (high - low), least * abs(high), 1e-9)
    return alt.Scale(domain=[low - pad, high + pad], nice=False, zero=False)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis, as many as can stand beside one another."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = math.log10(high / low)
    steps = (
        (1,) if decades > 3.2 else (1, 3) if decades > 1.9 else (1, 2, 5) if decades > 0.8 else (1, 1.5, 2, 3, 4, 5, 7)
    )
    return [value for power in powers for step in steps if low <= (value := step * 10.0**power) <= high]


def quality_title(table: Table) -> str:
    """An axis title that says which way is better."""
    unit = f"{table.label} (%)" if table.percent else table.label
    return f"{unit} ({table.split}), {'lower' if table.lower else 'higher'} is better"


def quality_scale(values: list[float]) -> alt.Scale:
    """A scale around the scores, a little wider than they are."""
    return _span(values, log=False, least=0.004)


def _clock(longest: float) -> tuple[float, str]:
    return (1, "seconds") if longest < 180 else (60, "minutes") if longest < 7200 else (3600, "hours")


BYTES = "datum.value >= 1 ? format(datum.value, '~s') + 'B' : ''"
MILLISECONDS = "datum.value >= 1000 ? format(datum.value / 1000, '~r') + ' s' : format(datum.value, '~r') + ' ms'"
COUNT = "replace(format(datum.value, '~s'), 'G', 'B')"


def quality_against(table: Table, cost: str, numbers: bool = False) -> alt.LayerChart | None:
    """Quality against one cost, a point a contender with its spread over seeds, the Pareto front drawn as a stair.

    Points are labelled with names, or with places on the leaderboard where those are many or `numbers` is set.
    """
    rows = [row for row in table.scored if row.costs.get(cost)]
    if not rows:
        return None
    costs = [row.costs[cost] for row in rows]
    divide, clock = _clock(max(costs)) if cost == "seconds" else (1, "")
    unit = {"params": "", "seconds": "seconds", "forward": "ms"}.get(cost, "bytes")
    times = 100 if table.percent else 1
    data = [
        {
            "name": row.name, "label": str(row.rank) if numbers or len(rows) > 7 else short(row.name),
            "cost": row.costs[cost] / divide, "quality": row.quality.mean * times,
            "low": (row.quality.mean - (row.quality.sd or 0)) * times,
            "high": (row.quality.mean + (row.quality.sd or 0)) * times,
            "score": table.spread(row.quality),
            "figure": humanise(row.costs[cost], unit) + (" ms" if unit == "ms" else ""),
            "front": cost in row.fronts,
        }
        for row in rows
    ]  # fmt: skip
    log = max(costs) > 4 * min(costs)
    titles = {
        "params": "parameters",
        "seconds": f"training time ({clock})",
        "forward": "forward time",
        "state": "decode state",
        "peak": "peak memory",
    }
    labels = {"params": COUNT, "forward": MILLISECONDS, "state": BYTES, "peak": BYTES}.get(cost)
    scale = _span([c / divide for c in costs], log)
    ticks = {"values": log_ticks(*scale.domain)} if log else {"tickCount": 5}
    axis = alt.Axis(title=titles[cost], **ticks, **({"labelExpr": labels} if labels else {}))
    ys = [value for point in data for value in (point["low"], point["high"])]
    x = alt.X("cost:Q", axis=axis, scale=scale)
    y = alt.Y("quality:Q", axis=alt.Axis(title=quality_title(table), tickCount=5), scale=quality_scale(ys))
    scales = _identity(rows)
    base = alt.Chart(alt.Data(values=data))
    best = sorted((point for point in data if point["front"]), key=lambda point: point["cost"])
    layers = []
    if not matched(costs):
        stair = alt.Chart(alt.Data(values=best)).mark_line(
            interpolate="step-after", stroke="var(--faint)", strokeWidth=1.3, strokeDash=[4, 3]
        )
        layers.append(stair.encode(x=x, y=y))
    color = alt.Color("name:N", scale=scales["color"], legend=None)
    layers.append(
        base.mark_rule(strokeWidth=1.4).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=color, opacity=_faded(0.6))
    )
    dots = base.mark_point(filled=True, size=120, stroke="var(--card)", strokeWidth=1.2).encode(
        x=x, y=y, color=color, shape=alt.Shape("name:N", scale=scales["shape"], legend=None), opacity=_faded(),
        tooltip=[alt.Tooltip("name:N", title="contender"), alt.Tooltip("score:N", title=table.label),
                 alt.Tooltip("figure:N", title="cost")],
    )  # fmt: skip
    layers.append(dots.properties(name="dots"))
    text = base.mark_text(dx=9, dy=-9, fontSize=12, color="var(--ink)", opacity=1)
    layers.append(text.encode(x=x, y=y, text="label:N").properties(name="labels"))
    return alt.layer(*layers).properties(height=HEIGHT + 20).add_params(_focus())


def curves(
    table: Table, lines: list[dict], against: str, title: str, *, longest: float, falling: bool, times: float = 1
) -> alt.LayerChart | None:
    """Mean over seeds with the band from the lowest to the highest seed. lines: see curves.py.

    against: 'tokens' or 'time', in a unit that suits the longest run's seconds.
    """
    if not lines:
        return None
    rows = [row for row in table.everyone if any(point["name"] == row.name for point in lines)]
    divide, clock = _clock(longest)
    data = [
        {
            "name": point["name"],
            "x": point["tokens"] if against == "tokens" else point["seconds"] / divide,
            **{key: point[key] * times for key in ("mean", "low", "high")},
        }
        for point in lines
    ]
    axis = (
        {"title": "training tokens", "labelExpr": COUNT}
        if against == "tokens"
        else {"title": f"training time ({clock})"}
    )
    x = alt.X("x:Q", axis=alt.Axis(tickCount=6, grid=False, **axis), scale=alt.Scale(nice=False, zero=False))
    scale, scales = alt.Scale(zero=False, nice=False, domain=_range(data, falling)), _identity(rows)
    y = alt.Y("mean:Q", axis=alt.Axis(title=title, tickCount=5), scale=scale)
    color = alt.Color("name:N", scale=scales["color"], legend=None)
    base = alt.Chart(alt.Data(values=data))
    band = base.mark_area(clip=True).encode(
        x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=color, opacity=_faded(0.16)
    )
    line = base.mark_line(strokeWidth=2, clip=True).encode(
        x=x, y=y, color=color, opacity=_faded(), strokeDash=alt.StrokeDash("name:N", scale=scales["dash"], legend=None),
        tooltip=[alt.Tooltip("name:N", title="contender"), alt.Tooltip("x:Q", title=against, format=",.4~g"),
                 alt.Tooltip("mean:Q", title="mean", format=",.4~g")],
    )  # fmt: skip
    return alt.layer(band, line).properties(height=HEIGHT).add_params(_focus())


def _range(data: list[dict], falling: bool) -> list[float]:
    """The span of the curves but for their worst quarter: the steep start would flatten all that comes after."""
    lows, highs = sorted(point["low"] for point in data), sorted(point["high"] for point in data)
    low = lows[0] if falling else lows[int(0.25 * (len(lows) - 1))]
    high = highs[math.ceil(0.75 * (len(highs) - 1))] if falling else highs[-1]
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1
    return [low - pad, high + pad]


def against_length(table: Table, kind: str, figure: str) -> alt.LayerChart | None:
    """A measured cost against length, both logarithmic. figure: 'milliseconds', 'peak_bytes' or 'state_bytes'."""
    data, rows = [], []
    batch = table.places.get(kind, (0, 1))[1]
    for row in table.rows:
        found = [c for c in row.contender.costs if c.kind == kind and c.batch == batch and getattr(c, figure)]
        rows += [row] if found else []
        for c in found:
            value = getattr(c, figure)
            timed = figure == "milliseconds"
            low, high = (c.low or value, c.high or value) if timed else (value, value)
            words = humanise(value, "ms") + " ms" if timed else humanise(value, "bytes")
            data.append(
                {"name": row.name, "length": c.length, "value": value, "low": low, "high": high, "words": words}
            )
    if not data:
        return None
    lengths = sorted({point["length"] for point in data})
    x = alt.X(
        "length:Q",
        axis=alt.Axis(title="length (tokens)", values=lengths, labelExpr="format(datum.value, ',d')", grid=False),
        scale=alt.Scale(type="log", base=2, nice=False, domain=[lengths[0] / 1.12, lengths[-1] * 1.12]),
    )
    values = [value for point in data for value in (point["low"], point["high"])]
    title = {"milliseconds": "time a token" if kind == "decode" else "time", "peak_bytes": "peak memory"}.get(
        figure, "state"
    )
    scale, scales = _span(values, log=True), _identity(rows)
    words = MILLISECONDS if figure == "milliseconds" else BYTES
    axis = alt.Axis(title=title, values=log_ticks(*scale.domain), labelExpr=words)
    color = alt.Color("name:N", scale=scales["color"], legend=None)
    base = alt.Chart(alt.Data(values=data))
    y = alt.Y("value:Q", axis=axis, scale=scale)
    band = base.mark_area().encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=color, opacity=_faded(0.14))
    line = base.mark_line(strokeWidth=2).encode(
        x=x, y=y, color=color, opacity=_faded(), strokeDash=alt.StrokeDash("name:N", scale=scales["dash"], legend=None)
    )
    dots = base.mark_point(filled=True, size=58, stroke="var(--card)", strokeWidth=1).encode(
        x=x, y=y, color=color, shape=alt.Shape("name:N", scale=scales["shape"], legend=None), opacity=_faded(),
        tooltip=[alt.Tooltip("name:N", title="contender"), alt.Tooltip("length:Q", title="tokens", format=","),
                 alt.Tooltip("words:N", title=title)],
    )  # fmt: skip
    return alt.layer(band, line, dots).properties(height=HEIGHT - 20).add_params(_focus())
