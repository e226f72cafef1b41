"""The options that several verbs of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

STORE = "races.sqlite"
RUNS = Path("runs")

Data = Annotated[
    str | None,
    typer.Option("--data", help="A file or folder, a bundled name (python-source, digits, macro) or mqar(pairs=16)."),
]
Forecast = Annotated[int | None, typer.Option(help="Forecast this many steps of a multivariate series (CSV, Parquet).")]
Target = Annotated[str | None, typer.Option(help="The column of a table to predict.")]
Vocab = Annotated[int | None, typer.Option(help="Tokens of a byte-pair vocabulary for text; bytes without it.")]
Length = Annotated[int | None, typer.Option(help="Tokens of context for text.")]
InputLength = Annotated[int | None, typer.Option(help="Time steps of a series that a forecast reads.")]
Splits = Annotated[str | None, typer.Option(help="How a series is split: shares such as 70/10/20, or ett.")]
ImageSize = Annotated[int | None, typer.Option(help="Pixels of the square that images are resized to.")]
Run = Annotated[str, typer.Argument(help="A race's name, the start of one, a path in its folder, or latest.")]
Engine = Annotated[str, typer.Option(help="local: worker processes here; ray: a Ray cluster.")]
Address = Annotated[str | None, typer.Option(help="The Ray cluster's address.")]
Workers = Annotated[int | None, typer.Option(help="Worker processes; as many as cores without it.")]
Open = Annotated[bool, typer.Option("--open", help="Open the report in a browser where there is one.")]
Contender = Annotated[str | None, typer.Option(help="Whose model; the best one's without it.")]
Runs = Annotated[Path, typer.Option(help="The folder that races are kept in.")]


def given(**options: object) -> dict[str, object]:
    """Those that were given."""
    return {name: value for name, value in options.items() if value is not None}
