"""One picture of a bench: the heat map of mixers by abilities, what it says above."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path

import altair as alt
import vl_convert

from formwright.bench.verdict import results
from formwright.race.records import Bench
from formwright.report import bench_charts, charts, style
from formwright.report import bench_words as words


def write(bench: Bench, path: str | Path, *, dark: bool = False) -> Path:
    """Write the picture of a loaded bench to `path`, in one move, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    # Fonts without the half circle would be left for another one in its line.
    spec = json.dumps(picture(bench).to_dict(), allow_nan=False, ensure_ascii=False).replace("◐", "~")
    part.write_bytes(vl_convert.vegalite_to_png(style.paint(spec, style.DARK if dark else style.LIGHT), scale=2))
    os.replace(part, path)
    return path


def picture(bench: Bench) -> alt.TopLevelMixin:
    """The picture as an Altair chart whose colours are still names."""
    found = results(bench)
    wide = max(60, 16 * len(found.abilities) + 20)
    subtitle = textwrap.wrap(" ".join(words.summary(found)), wide) + textwrap.wrap(words.rule(found), wide)
    title = alt.TitleParams(
        words.title(found), subtitle=subtitle, anchor="start", fontSize=22, subtitleFontSize=13, offset=22,
        color="var(--ink)", subtitleColor="var(--soft)", subtitleLineHeight=18, subtitlePadding=8,
    )  # fmt: skip
    config = charts.theme() | {"font": "sans-serif"}
    chart = bench_charts.heat_map(found).properties(title=title, background="var(--page)", padding=28)
    return chart.configure(**config)
