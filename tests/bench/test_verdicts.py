"""Verdicts and what is made of them: the table, the page, the picture, the CSV."""

from __future__ import annotations

import contextlib
import csv

import pytest
from fake_bench import fake_bench
from rich.console import Console

from formwright.bench.verdict import results
from formwright.race import store
from formwright.report import bench_csv, bench_page, bench_png, bench_terminal, bench_words

SCORES = {
    "recall": {
        "attention": (1.0, 0.99, 0.98),
        "gla": (0.95, 0.91, 0.4),
        "based": (0.3, 0.31, 0.97),
        "mamba2": (0.6, 0.58, 0.7),
        "hyena": (0.26, 0.3, 0.25),
        "lucky": (0.2, 0.6, 0.3),
        "broken": (None, None, None),
        "shaky": (0.95, None, 0.99),
        "<fourier>": "it sees both ways",
    },
    "regression": {"attention": (0.3, 0.35, 0.39), "gla": (0.5, 0.7, 0.6), "hyena": (1.0, 0.97, 1.1)},
}


def load(runs, bench="mine"):
    with contextlib.closing(store.open_store(runs / "races.sqlite")) as conn:
        return store.load_bench(conn, bench)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    fake_bench(folder, SCORES)
    return folder


def test_verdicts(runs):
    found = results(load(runs))
    words = {mixer: found.verdicts[mixer, "recall"].word for mixer in SCORES["recall"]}
    assert words == {
        "attention": "solved", "gla": "solved", "based": "partly", "mamba2": "partly", "hyena": "none", "lucky": "none",
        "broken": "failed", "shaky": "solved", "<fourier>": "cannot",
    }  # fmt: skip
    gla = found.verdicts["gla", "recall"]
    assert (gla.passed, gla.seeds, gla.median) == (2, 3, 0.91) and gla.spread == pytest.approx(0.275)
    assert gla.share == pytest.approx((0.91 - 0.25) / (0.9 - 0.25))
    assert "not finite" in found.verdicts["shaky", "recall"].reason


def test_lower_may_be_better_and_marks_hang_on_baselines(runs):
    found = results(load(runs))
    bar = found.bars["regression"]
    assert (bar.lower, bar.baseline, bar.base, bar.mark) == (True, "always zero", 1.0, 0.4)
    words = [found.verdicts[mixer, "regression"].word for mixer in ("attention", "gla", "hyena")]
    assert words == ["solved", "partly", "none"]
    assert found.verdicts["gla", "regression"].share == pytest.approx((1.0 - 0.6) / (1.0 - 0.4))
    assert found.verdicts["mamba2", "regression"].word == "waiting"


def test_an_unfinished_bench_says_so(tmp_path):
    fake_bench(tmp_path, {"recall": {"gla": (0.9, 0.9, 0.9)}, "parity": {"gla": (0.5, 0.5, 0.5)}})
    with contextlib.closing(store.open_store(tmp_path / "races.sqlite")) as conn:
        conn.execute("UPDATE trials SET status = 'running' WHERE race = 'mine/parity' AND seed = 2")
        conn.execute("UPDATE races SET finished = NULL WHERE id = 'mine/parity'")
        conn.commit()
        store.update_bench(conn, "mine", status="interrupted")
    found = results(load(tmp_path))
    assert found.verdicts["gla", "parity"].word == "waiting"
    assert "not finished (status: interrupted)" in " ".join(bench_words.summary(found))


def test_terminal_fits_eighty_columns(runs):
    console = Console(width=80, record=True, file=None)
    with console.capture() as capture:
        bench_terminal.print_bench(load(runs), console)
        bench_terminal.print_list([load(runs)], console)
    text = capture.get()
    paths = str(runs)
    assert all(len(line) <= 80 for line in text.splitlines() if paths not in line)
    assert "●99±1" in text and "◐60±6" in text and "○26±2" in text and ".35±" in text
    assert "<fourier>, recall: cannot: it sees both ways" in text.replace("\n", " ")
    assert "gla, recall: 2 of 3 seeds reached the mark" in text


def test_page_picture_and_table(runs):
    bench = load(runs)
    text = bench_page.html(bench)
    assert text.count('class="heat ') == len(SCORES["recall"]) * 2
    assert "● 99<small>± 1</small>" in text and "best baseline" in text and "always zero" in text
    assert "&lt;fourier&gt;" in text and "<fourier>" not in text and "A &lt;processor&gt;" in text
    assert '"state-0"' in text and "decode state" in text
    page = bench_page.write_all(bench)
    assert page == runs / "mine" / "report.html" and (runs / "mine" / "recall" / "report.html").exists()
    assert 'href="recall/report.html"' in bench_page.html(bench)
    assert bench_png.write(bench, runs / "b.png").read_bytes().startswith(b"\x89PNG")
    with bench_csv.write(bench, runs / "b.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["score"] for line in lines if (line["mixer"], line["ability"]) == ("gla", "recall")] == [
        "0.95", "0.91", "0.4",
    ]  # fmt: skip
    (refused,) = [line for line in lines if (line["mixer"], line["ability"]) == ("<fourier>", "recall")]
    assert (refused["verdict"], refused["reason"], refused["score"]) == ("cannot", "it sees both ways", "")


def test_latest_is_the_newer_of_race_and_bench(runs):
    with contextlib.closing(store.open_store(runs / "races.sqlite")) as conn:
        assert store.find(conn, "latest").id == "mine" and store.find(conn, "min").id == "mine"
        assert store.find(conn, "mine").id == "mine" and store.find(conn, runs / "mine").id == "mine"
        assert store.find(conn, "mine/recall").ability == "recall"
        store.create_race(
            conn, "notes.txt", options={}, machine={}, source={}, id="later", created="2999-01-01T00:00:00+00:00"
        )
        assert store.find(conn, "latest").id == "later"
        with pytest.raises(store.RaceNotFound, match="nearest are"):
            store.find(conn, "nothing")
        store.remove_race(conn, "later")
