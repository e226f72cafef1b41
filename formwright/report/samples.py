"""What the contenders made: texts, forecasts over the truth, misread images, predictions of a table."""

from __future__ import annotations

import math
import re
from collections import Counter
from html import escape
from typing import Any

import altair as alt

from formwright.report import charts, style
from formwright.report.figures import Row, Table

WINDOWS, SERIES, IMAGES, LETTERS = 2, 3, 12, 900


def sections(table: Table) -> tuple[str, dict[str, Any]]:
    """(HTML, charts by the id of their place) of all samples; ('', {}) when there are none."""
    parts, specs = [], {}
    for kind, make in (("text", _texts), ("forecast", _forecasts), ("image", _images), ("table", _tables)):
        rows = [(row, found) for row in table.rows if (found := _of(row, kind))]
        if rows:
            html, more = make(table, rows)
            parts.append(html)
            specs |= more
    return "".join(parts), specs


def _of(row: Row, kind: str) -> list[dict]:
    """The samples of a contender's first seed that has some."""
    found = [sample for sample in row.contender.samples if sample.kind == kind]
    first = min((sample.seed for sample in found), default=None)
    return [sample.content for sample in found if sample.seed == first]


def _head(row: Row, more: str = "") -> str:
    return f'<div class="name">{style.badge(row.colour)}<span>{escape(row.name)}</span></div>{more}'


def _texts(table: Table, rows: list) -> tuple[str, dict]:
    cards = []
    for row, found in rows:
        texts = []
        for content in found[:2]:
            prompt, text = str(content.get("prompt", "")), str(content.get("generated", ""))
            more = "…" if len(text) > LETTERS else ""
            texts.append(f'<div class="pre"><b>{escape(prompt[-300:])}</b>{escape(text[:LETTERS])}{more}</div>')
        cards.append(f'<div class="card">{_head(row)}{"".join(texts)}</div>')
    lead = '<p class="lead">What each model writes after the same prompt (grey), first seed.</p>'
    return f'{lead}<div class="grid">{"".join(cards)}</div>', {}


def _forecasts(table: Table, rows: list) -> tuple[str, dict]:
    cards, specs = [], {}
    windows = max(len(found) for _, found in rows)
    names = rows[0][1][0].get("names") or []
    width = max((len(step) for content in rows[0][1] for step in content["truth"][:1]), default=1)
    for window in range(min(windows, WINDOWS)):
        shown = [(row, found[window]) for row, found in rows if window < len(found)]
        for series in range(min(width, SERIES)):
            name = str(names[series]) if series < len(names) else f"series {series + 1}"
            key = f"forecast-{window}-{series}"
            specs[key] = charts.compiled(forecast(shown, series))
            cards.append(
                f'<div class="card"><h3>{escape(name)}</h3><p>test window {window + 1}</p>'
                f'<div class="chart" id="{key}"></div></div>'
            )
    few = []
    if width > SERIES:
        few.append(f"the first {SERIES} of {width} series")
    if windows > WINDOWS:
        few.append(f"the first {WINDOWS} of {windows} windows")
    lead = (
        f'<p class="lead">Forecasts in colour over the truth in grey'
        f"{' (' + ' and '.join(few) + ')' if few else ''}, first seed. "
        "The dotted line is where the forecast begins.</p>"
    )
    return f'{lead}<div class="grid">{"".join(cards)}</div>', specs


def forecast(shown: list[tuple[Row, dict]], series: int) -> alt.LayerChart:
    """One series of one window: the history and truth in grey, each contender's forecast in its colour."""
    content = shown[0][1]
    truth = _column(content["truth"], series)
    history = _column(content.get("history") or [], series)[-3 * max(len(truth), 8) :]
    past = [{"step": i - len(history) + 1, "value": value} for i, value in enumerate(history)]
    actual = past + [{"step": i + 1, "value": value} for i, value in enumerate(truth)]
    made = [
        {"name": row.name, "step": i + 1, "value": value}
        for row, content in shown
        for i, value in enumerate(_column(content["forecast"], series))
    ]
    scales = charts._identity([row for row, _ in shown])
    x = alt.X("step:Q", axis=alt.Axis(title="steps from the start of the forecast", grid=False, tickCount=7))
    y = alt.Y("value:Q", scale=alt.Scale(zero=False), axis=alt.Axis(title=None, tickCount=5))
    real = alt.Chart(alt.Data(values=actual)).mark_line(stroke="var(--faint)", strokeWidth=2.2).encode(x=x, y=y)
    start = alt.Chart(alt.Data(values=[{"step": 0.5}]))
    rule = start.mark_rule(stroke="var(--faint)", strokeDash=[2, 3]).encode(x="step:Q")
    color = alt.Color("name:N", scale=scales["color"], legend=None)
    dash = alt.StrokeDash("name:N", scale=scales["dash"], legend=None)
    line = alt.Chart(alt.Data(values=made)).mark_line(strokeWidth=1.8).encode(
        x=x, y=y, color=color, strokeDash=dash, opacity=charts._faded(),
        tooltip=[alt.Tooltip("name:N", title="contender"), "step:Q", alt.Tooltip("value:Q", format=",.4~g")],
    )  # fmt: skip
    return alt.layer(real, rule, line).properties(height=210).add_params(charts._focus())


def _column(rows: list, series: int) -> list[float | None]:
    values = [row[series] if isinstance(row, list) else row for row in rows]
    return [v if v is not None and math.isfinite(v) else None for v in values]


def _images(table: Table, rows: list) -> tuple[str, dict]:
    cards = []
    for row, found in rows:
        figures = []
        for content in found[:IMAGES]:
            png = re.sub(r"[^A-Za-z0-9+/=]", "", str(content.get("png", "")))
            truth, predicted = escape(str(content.get("truth"))), escape(str(content.get("predicted")))
            sure = content.get("confidence")
            words = f" ({100 * sure:.0f}%)" if isinstance(sure, int | float) else ""
            figures.append(
                f'<figure><img alt="an image of class {truth}, read as {predicted}" src="data:image/png;base64,{png}">'
                f"{truth} read as <b>{predicted}</b>{words}</figure>"
            )
        more = f'<p class="lead">The first {IMAGES} of {len(found)} kept.</p>' if len(found) > IMAGES else ""
        cards.append(f'<div class="card">{_head(row)}<div class="images">{"".join(figures)}</div>{more}</div>')
    lead = (
        '<p class="lead">Test images that each model misread: what it is, what the model read, and how sure it was. '
        "First seed.</p>"
    )
    return f'{lead}<div class="grid">{"".join(cards)}</div>', {}


def _tables(table: Table, rows: list) -> tuple[str, dict]:
    cards, specs = [], {}
    for i, (row, found) in enumerate(rows):
        truth, predicted = found[0]["truth"], found[0]["predicted"]
        key = f"table-{i}"
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in [*truth, *predicted])
        chart = (
            scatter(row, truth, predicted) if numbers and table.metric != "accuracy" else confusion(truth, predicted)
        )
        specs[key] = charts.compiled(chart)
        cards.append(f'<div class="card">{_head(row)}<div class="chart" id="{key}"></div></div>')
    lead = '<p class="lead">Predictions for test rows against the truth, first seed.</p>'
    return f'{lead}<div class="grid three">{"".join(cards)}</div>', specs


def scatter(row: Row, truth: list[float], predicted: list[float]) -> alt.LayerChart:
    """Predicted against true numbers, with the line where both are equal."""
    points = [{"truth": t, "predicted": p} for t, p in zip(truth, predicted, strict=True)][:1500]
    ends = [min([*truth, *predicted], default=0), max([*truth, *predicted], default=1)]
    x = alt.X("truth:Q", axis=alt.Axis(title="truth", tickCount=5), scale=alt.Scale(domain=ends))
    y = alt.Y("predicted:Q", axis=alt.Axis(title="predicted", tickCount=5), scale=alt.Scale(domain=ends))
    line = alt.Chart(alt.Data(values=[{"truth": end, "predicted": end} for end in ends]))
    dots = alt.Chart(alt.Data(values=points)).mark_circle(size=26, opacity=0.55, color=style.colour(row.colour))
    equal = line.mark_line(stroke="var(--faint)", strokeDash=[4, 3], strokeWidth=1.3)
    return alt.layer(equal.encode(x=x, y=y), dots.encode(x=x, y=y)).properties(height=230)


def confusion(truth: list, predicted: list) -> alt.LayerChart:
    """How often each true class was given each name."""
    counts = Counter(zip(map(str, truth), map(str, predicted), strict=True))
    most = max(counts.values(), default=1)
    cells = [{"truth": t, "predicted": p, "count": n, "share": n / most} for (t, p), n in counts.items()]
    base = alt.Chart(alt.Data(values=cells)).encode(
        x=alt.X("predicted:N", axis=alt.Axis(title="predicted", labelAngle=0, labelLimit=70)),
        y=alt.Y("truth:N", axis=alt.Axis(title="truth", labelLimit=90)),
    )
    shade = alt.Opacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.06, 0.5]), legend=None)
    rect = base.mark_rect(fill="var(--c0)", cornerRadius=3).encode(opacity=shade)
    return alt.layer(rect, base.mark_text(color="var(--ink)").encode(text="count:Q")).properties(height=230)
