"""What all pages are made of: the page around a body, sections, cards, grids, lists of pairs.

The charts' JavaScript (Vega, from vl-convert) is put in once; nothing is fetched. Callers escape what comes from users.
"""

from __future__ import annotations

import json
import os
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import vl_convert

from formwright.report import charts, script, style


def write(text: str, path: str | Path) -> Path:
    """Write a page to `path`, in one move, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    return path


def shell(title: str, body: str, specs: dict[str, Any]) -> str:
    """The whole page; `specs` are compiled charts by the id of their place."""
    data = json.dumps(specs, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<style>{style.sheet()}</style>\n</head>\n<body>\n{body}\n'
        f'<script type="application/json" id="charts">{data}</script>\n<script>{bundle()}</script>\n'
        f"<script>{script.SCRIPT}</script>\n</body>\n</html>\n"
    )


@cache
def bundle() -> str:
    """Vega and its embedding as one script that can stand inside an HTML page."""
    return vl_convert.javascript_bundle().replace("</script", "<\\/script").replace("<!--", "<\\!--")


def section(title: str, lead: str, content: str) -> str:
    """A section; nothing where it has no content."""
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    return f"<section><h2>{title}</h2>{lead}{content}</section>" if content else ""


def card(specs: dict, key: str, title: str, note: str, chart: Any, labels: bool = False) -> str:
    """A chart on a card, its compiled form put into `specs`; nothing where there is no chart."""
    if chart is None:
        return ""
    specs[key] = charts.compiled(chart, labels)
    note = f"<p>{note}</p>" if note else ""
    return f'<div class="card"><h3>{title}</h3>{note}<div class="chart" id="{key}"></div></div>'


def grid(cards: list[str]) -> str:
    """Cards side by side."""
    content = "".join(cards)
    return f'<div class="grid">{content}</div>' if content else ""


def pairs(rows: list[tuple[str, str]]) -> str:
    """Names and what they stand for; escaped here."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows) + "</dl>"
