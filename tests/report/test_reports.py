"""Terminal, page, picture and table of made-up races: everything is there, escaped, whole, and offline."""

from __future__ import annotations

import csv as stdlib_csv
import io
import json
import re

import fake_races
import pytest
from PIL import Image
from rich.console import Console

from formwright.race import store
from formwright.report import charts, csv, layout, page, png, style, terminal
from formwright.report.figures import tabulate

EVERY = [*fake_races.RACES, fake_races.empty_race]


@pytest.fixture(scope="module")
def races(tmp_path_factory):
    folder = tmp_path_factory.mktemp("races")
    return {make.__name__: fake_races.load(make, folder) for make in EVERY}


def printed(show, what, width=150):
    console = Console(file=io.StringIO(), width=width)
    show(what, console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 150])
def test_terminal_has_the_leaderboard_at_any_width(races, width):
    text = printed(terminal.print_race, races["text_race"], width)
    found = tabulate(races["text_race"]).rows[0]
    for words in (found.name, "2.02M", "11.2k", "121 MB", "620 kB", "★", "random gave no result: the loss became NaN",
                  "1 file of 3.2 MB"):  # fmt: skip
        assert words in text, words
    assert "…" not in text and max(map(len, text.splitlines())) <= width


def test_terminal_prints_every_race_and_their_list(races):
    for race in races.values():
        assert race.id in printed(terminal.print_race, race)
    text = printed(terminal.print_list, list(races.values()))
    assert all(race.id in text for race in races.values()) and "running" in text
    assert "no race yet" in printed(terminal.print_list, [])


def test_terminal_takes_brackets_for_text(tmp_path):
    conn = store.open_store(tmp_path / "races.sqlite")
    source = {"metric": "loss", "unit": "[red]", "notes": ["[/bold] a note"]}
    race = store.create_race(conn, "[b]x", options={}, machine={}, source=source)
    store.add_contender(conn, race, "a[/i]", text="a", error="[/x] gone")
    store.add_contender(conn, race, "b[link]", text="b")
    text = printed(terminal.print_race, store.load_race(conn, race))
    assert all(words in text for words in ("a[/i]", "[/x] gone", "[/bold] a note", "b[link]"))


@pytest.fixture(scope="module")
def pages(races):
    return {name: page.html(race) for name, race in races.items()}


def test_page_is_whole_and_fetches_nothing(pages):
    for name, text in pages.items():
        assert text.count(layout.bundle()) == 1, name
        rest = text.replace(layout.bundle(), "")
        assert not re.search(r'(src|href)="(?!data:)', rest) and "@import" not in rest and "url(" not in rest, name
        assert text.count("<script") == text.count("</script>") == 3, name
        specs = json.loads(re.search(r'id="charts">(.*?)</script>', rest).group(1))
        places = re.findall(r'class="chart" id="([^"]+)"', rest)
        assert sorted(specs) == sorted(places) and len(places) == len(set(places)), name


def test_page_has_every_part(pages, races):
    text = pages["text_race"]
    for heading in ("Leaderboard", "Quality against cost", "Learning", "Cost against length", "Samples", "Details",
                    "How to repeat it", "Notes", "Contenders"):  # fmt: skip
        assert f"<h2>{heading}</h2>" in text
    for place in ("quality-params", "quality-seconds", "quality-forward", "quality-state", "curve-validation-tokens",
                  "curve-validation-time", "cost-forward-milliseconds", "cost-forward-peak_bytes",
                  "cost-decode-milliseconds", "cost-decode-state_bytes"):  # fmt: skip
        assert f'id="{place}"' in text
    assert "No result: the loss became NaN" in text and "2.13.0" in text and "3*(gla + swiglu) &gt;&gt;" in text
    assert 'id="forecast-0-1"' in pages["forecast_race"] and "data:image/png;base64" in pages["image_race"]
    assert 'id="table-1"' in pages["table_race"] and "This race is not finished" in pages["unfinished_race"]
    for row in tabulate(races["crowded_race"]).rows:
        assert pages["crowded_race"].count(style.badge(row.colour)) >= 3


def test_what_users_and_models_write_is_escaped(tmp_path):
    bad = '</script><img src=x onerror="alert(1)">'
    conn = store.open_store(tmp_path / "races.sqlite")
    source = {"metric": bad, "name": bad, "kind": bad, "unit": bad, "notes": [bad], "sizes": {bad: 3}}
    options, machine = {"command": bad, bad: bad}, {"cpu": bad, "versions": {bad: bad}}
    race = store.create_race(conn, bad, options=options, machine=machine, source=source, id="x")
    for name in (bad, bad + "2", "failed"):
        store.add_contender(
            conn, race, name, text=bad, expression=bad, folder=bad, params=5, error=bad if name == "failed" else None
        )
        trial = store.add_trial(conn, race, name, phase="main", seed=0, lr=0.1)
        store.update_trial(conn, trial, status="done", seconds=3.0, scores={"validation": {bad: 1.0}})
        store.add_points(conn, trial, [(1, 1, 1.0, "validation", bad, 1.0), (2, 2, 2.0, "validation", bad, 2.0)])
        store.add_cost(conn, race, name, kind="forward", length=8, milliseconds=1.0)
        for kind, content in (
            ("text", {"prompt": bad, "generated": bad}),
            ("forecast", {"history": [[1.0]], "truth": [[1.0]], "forecast": [[2.0]], "names": [bad]}),
            ("image", {"png": bad, "truth": bad, "predicted": bad, "confidence": 0.5}),
            ("table", {"truth": [bad], "predicted": ["b"]}),
        ):
            store.add_sample(conn, race, name, seed=0, kind=kind, content=content)
    text = page.html(store.load_race(conn, race)).replace(layout.bundle(), "")
    assert "<img src=x" not in text and 'onerror="' not in text
    assert text.count("</script>") == 3


def test_page_and_picture_and_table_are_written(races, tmp_path):
    race = races["text_race"]
    for name, write in (("report.html", page.write), ("report.png", png.write), ("report.csv", csv.write)):
        assert write(race, tmp_path / "new" / name) == tmp_path / "new" / name
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["report.csv", "report.html", "report.png"]
    picture = Image.open(tmp_path / "new" / "report.png").convert("RGB")
    assert picture.width > 1800 and picture.height > 600
    colours = {colour for _, colour in picture.getcolors(1 << 24)}
    assert all(tuple(bytes.fromhex(style.LIGHT[f"c{row.colour}"][1:])) in colours for row in tabulate(race).everyone)


@pytest.mark.parametrize("name", ["unfinished_race", "empty_race", "crowded_race"])
def test_picture_of_any_race(races, tmp_path, name):
    assert Image.open(png.write(races[name], tmp_path / "a.png", dark=True)).width > 1000


def test_table_is_tidy(races, tmp_path):
    race = races["text_race"]
    with csv.write(race, tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(stdlib_csv.DictReader(file))
    tests = [r for r in rows if (r["kind"], r["split"], r["figure"]) == ("main", "test", "bits_per_byte")]
    assert len(tests) == 12 and {r["seed"] for r in tests} == {"0", "1", "2"}
    trial = next(t for t in race.contenders[0].trials if t.phase == "main")
    assert float(tests[0]["value"]) == trial.scores["test"]["bits_per_byte"]
    (cost,) = [
        r
        for r in rows
        if (r["contender"], r["kind"], r["length"], r["figure"]) == ("mamba2", "forward", "512", "peak_bytes")
    ]
    assert cost["unit"] == "B" and int(cost["value"]) > 0
    assert len(
        {tuple(r[c] for c in ("contender", "kind", "trial", "split", "length", "batch", "figure")) for r in rows}
    ) == len(rows)


def test_a_contender_looks_the_same_in_every_chart(races):
    table = tabulate(races["crowded_race"])
    quality, cost = charts.quality_against(table, "forward"), charts.against_length(table, "forward", "milliseconds")
    for chart in (quality, cost):
        scales = [s for s in charts.compiled(chart)["scales"] if s["name"] == "color"]
        assert dict(zip(scales[0]["domain"], scales[0]["range"], strict=True)) == {
            row.name: style.colour(row.colour) for row in table.rows
        }
    looks = {(style.colour(i), style.shape(i)) for i in range(24)}
    assert len(looks) == 24


def lab(colour, matrix):
    """CIE L*a*b* of a hex colour as seen through a matrix on linear RGB."""
    linear = [
        (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4)
        for v in (b / 255 for b in bytes.fromhex(colour[1:]))
    ]
    seen = [min(1, max(0, sum(m * v for m, v in zip(row, linear, strict=True)))) for row in matrix]
    to_xyz = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [
        sum(m * v for m, v in zip(row, seen, strict=True)) / w
        for row, w in zip(to_xyz, (0.9505, 1, 1.089), strict=True)
    ]
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


SIGHT = {  # Machado, Oliveira and Fernandes 2009, severity 1
    "full": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK], ids=["light", "dark"])
def test_hues_differ_for_every_reader(theme, sight):
    hues = [lab(theme[f"c{i}"], SIGHT[sight]) for i in range(style.HUES)]
    apart = min(
        (sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5, i, j)
        for i, a in enumerate(hues)
        for j, b in enumerate(hues[:i])
    )
    assert apart[0] > 18, apart
    card = lab(theme["card"], SIGHT[sight])[0]
    assert all(abs(hue[0] - card) > 28 for hue in hues), "hues stand out from the card"
