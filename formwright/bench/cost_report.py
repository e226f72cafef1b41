"""The cost suite's results as tables, CSV files, a picture, and rows of the store of races."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from formwright.bench.cost import Costs
from formwright.bench.formulas import digits
from formwright.show import short

GROWN = ("milliseconds", "peak_bytes", "macs", "state_bytes")
OF = {"milliseconds": "time", "peak_bytes": "memory"}


def rendered(costs: Costs):
    """Rich tables: what was measured and counted, how it grows beside what the card says, the efficiency lengths."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for kind, batch in dict.fromkeys((row["kind"], row["batch"]) for row in costs.rows):
        heading = kind if len(costs.options["batches"]) == 1 else f"{kind}, batch {batch}"
        rows = [row for row in costs.rows if (row["kind"], row["batch"]) == (kind, batch)]
        rows.sort(key=lambda row: row["length"])
        parts += [_measured(heading, rows), _counted(heading, rows)]
    parts += [_growth(costs)] if any(_known(row) for row in costs.grown) else []
    parts += [_efficiency(costs)] if costs.efficiency else []
    failed = [f"{c['name']} was not measured: {c['error']}" for c in costs.contenders if c["error"]]
    parts += [Text(note, style="dim") for note in [_about(costs), *failed, *dict.fromkeys(costs.notes)]]
    return Group(*parts)


def _measured(heading: str, rows: list[dict[str, Any]]):
    """Medians and quartiles of the times, and peak memory."""
    table = _table(heading, "tokens", "ms", "quartiles", "tokens/s", "peak")
    for row in _spaced(table, rows):
        quartiles = f"{digits(row['low'])} - {digits(row['high'])}"
        figures = (digits(row["milliseconds"]), quartiles, short(row["tokens_per_second"]), _bytes(row["peak_bytes"]))
        table.add_row(row["contender"], str(row["length"]), *figures)
    return table


def _counted(heading: str, rows: list[dict[str, Any]]):
    """What doesn't depend on the machine's mood: multiply-adds, bytes moved, arithmetic intensity, state."""
    table = _table(heading, "tokens", "macs", "bytes moved", "FLOP/byte", "state")
    for row in _spaced(table, rows):
        figures = (short(row["macs"]), _bytes(row["bytes"]), digits(row["intensity"]), _bytes(row["state_bytes"]))
        table.add_row(row["contender"], str(row["length"]), *figures)
    return table


def _spaced(table: Any, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, a line between lengths."""
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        yield row
        if following and following["length"] != row["length"]:
            table.add_section()


def _growth(costs: Costs):
    """The fitted exponents of N; the cards speak of multiply-adds and of the state."""
    several = len(costs.options["batches"]) > 1
    table = _table("growth with N", "work", "time", "memory", "macs", "state", "card says")
    claimed = {c["name"]: c["claimed"] for c in costs.contenders}
    for row in costs.grown:
        if _known(row):
            card = claimed.get(row["contender"], {})
            said = f"{card['time']}, {card['state']}" if card else "-"
            table.add_row(row["contender"], _work(row, several), *(_power(row[name]) for name in GROWN), said)
    return table


def _efficiency(costs: Costs):
    """From how many tokens on each contender is cheaper than attention."""
    several = len(costs.options["batches"]) > 1
    table = _table("cheaper than attention", "work", "in", "from tokens", "by quartiles")
    for row in costs.efficiency:
        ends = list(dict.fromkeys(str(row[word]) for word in ("earliest", "latest")))
        between = "" if row["of"] == "peak_bytes" else " to ".join(ends)
        table.add_row(row["contender"], _work(row, several), OF[row["of"]], str(row["length"]), between)
    return table


def roofline_table(rows: list[dict[str, Any]], roof: Any):
    """The rows of `roofline.layers`, and the machine's two rates."""
    from rich.console import Group
    from rich.text import Text

    table = _table("layer", "times", "ms", "macs", "bytes moved", "FLOP/byte", "held by", "of roof")
    for row in rows:
        cells = [row["part"], str(row["times"]), digits(row["milliseconds"]), short(row["macs"]), _bytes(row["bytes"])]
        table.add_row(*cells, digits(row["intensity"]), row["held_by"], f"{100 * row['roof']:.0f}%")
    rates = f"{short(roof.flops)}FLOP/s in a matrix product, {short(roof.bytes, 'B')}/s in a copy"
    words = f"{rows[0]['length']} tokens, batch {rows[0]['batch']}; ms, macs and bytes are those of one of its `times`."
    words += f" The machine: {rates}; below {digits(roof.ridge)} FLOP a byte memory holds a layer."
    return Group(table, Text(words, style="dim"))


def write_csv(costs: Costs, path: str | Path) -> list[Path]:
    """The rows to `path`; exponents and efficiency lengths beside it, as NAME.growth.csv and NAME.efficiency.csv."""
    path = Path(path)
    files = {path: costs.rows, path.with_suffix(".growth.csv"): costs.grown}
    files[path.with_suffix(".efficiency.csv")] = costs.efficiency
    written = []
    for file, rows in files.items():
        if rows:
            with file.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            written.append(file)
    return written


def write_png(costs: Costs, path: str | Path) -> Path:
    """Time and memory over the tokens, both on logarithmic axes, one line a contender; a row of two for each kind of
    work, at the smallest batch."""
    import altair as alt
    import vl_convert

    batch = min(row["batch"] for row in costs.rows)
    wanted = ("contender", "kind", "length", "milliseconds", "low", "high", "peak_bytes")
    rows = [{name: row[name] for name in wanted} for row in costs.rows if row["batch"] == batch]
    charts, lengths = [], sorted({row["length"] for row in rows})
    for kind in dict.fromkeys(row["kind"] for row in rows):
        base = alt.Chart(alt.Data(values=[row for row in rows if row["kind"] == kind]))
        x = alt.X("length:Q", title="tokens", scale=alt.Scale(type="log", base=2), axis=alt.Axis(values=lengths))
        color = alt.Color("contender:N", title=None)
        pair = []
        for figure, title in (("milliseconds", f"{kind}: ms"), ("peak_bytes", f"{kind}: peak bytes")):
            shown = base.transform_filter(f"datum.{figure} > 0").encode(x=x, color=color)
            y = alt.Y(f"{figure}:Q", title=title, scale=alt.Scale(type="log"))
            drawn = shown.mark_line(point=True).encode(y=y)
            if figure == "milliseconds":
                drawn += shown.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q", title=title), y2="high:Q")
            pair.append(drawn.properties(width=380, height=240))
        charts.append(alt.hconcat(*pair))
    chart = alt.vconcat(*charts).properties(title=_about(costs))
    path = Path(path)
    part = path.with_name(path.name + ".part")
    part.write_bytes(vl_convert.vegalite_to_png(json.dumps(chart.to_dict()), scale=2))
    os.replace(part, path)
    return path


def record(costs: Costs, conn: sqlite3.Connection, **more: Any) -> str:
    """Write the suite down in the store of races -> the id of its race, which has contenders and costs but no runs.
    `more` goes to store.create_race."""
    from formwright.race import store

    source = {
        "name": "cost", "kind": "cost", "metric": None, "lower_is_better": True, "unit": "", "notes": costs.notes,
        "sizes": {}, "facts": {}, "growth": costs.grown,
        "efficiency": [{k: str(v) if hasattr(v, "never") else v for k, v in row.items()} for row in costs.efficiency],
    }  # fmt: skip
    race = store.create_race(
        conn, "cost", options=costs.options, machine=costs.machine, source=source, status="running", **more
    )
    for about in costs.contenders:
        figures = {name: about[name] for name in ("text", "expression", "dim", "params", "error")}
        store.add_contender(conn, race, about["name"], **figures)
    wanted = (
        "kind",
        "length",
        "batch",
        "milliseconds",
        "low",
        "high",
        "peak_bytes",
        "state_bytes",
        "macs",
        "load",
        "bytes",
    )
    for row in costs.rows:
        store.add_cost(conn, race, row["contender"], **{name: row[name] for name in wanted})
    store.update_race(conn, race, status="done", finished=store.now())
    return race


def _table(first: str, *names: str):
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold", min_width=max(17, min(22, len(first))))
    for name in names:
        left = name in ("work", "in", "held by", "card says")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    return table


def _work(row: dict[str, Any], several: bool) -> str:
    return f"{row['kind']}, batch {row['batch']}" if several else row["kind"]


def _known(row: dict[str, Any]) -> bool:
    return any(row[name] is not None for name in GROWN)


def _about(costs: Costs) -> str:
    options, row = costs.options, costs.rows[0] if costs.rows else {}
    loads = [r["load"] for r in costs.rows if r.get("load") is not None]
    load = f", load {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    equal = "equal width" if options["match"] == "width" else f"equal {options['match']}"
    place = f"{row.get('device', 'no rows')}, {row.get('threads', '-')} threads, torch {row.get('torch', '-')}"
    return f"{equal}; {options['dtype']}; {place}{load}"


def _bytes(value: float | None) -> str:
    return "-" if value is None else short(value, "B")


def _power(value: float | None) -> str:
    return "-" if value is None else f"N^{value:.2f}"
