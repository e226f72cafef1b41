"""The command `formwright`: verbs alone, each calls one function that Python users can call too.

Exit codes: 0 done, 1 a law is broken or a race failed, 2 misuse, 130 interrupted. A mistake is answered with one
sentence on standard error; FORMWRIGHT_TRACEBACK=1 shows where it came from.
"""

from __future__ import annotations

import contextlib
import csv as csv_files
import importlib
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Compose, check, race and ship Transformer-like architectures, each one short expression.",
)

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


def _given(**given: object) -> dict[str, object]:
    return {name: value for name, value in given.items() if value is not None}


@app.command()
def race(
    contenders: Annotated[list[str] | None, typer.Argument(help="Mixers, expressions, or file.py:Class.")] = None,
    data: Data = None,
    budget: Annotated[
        str, typer.Option(help="10m, 90s of wall clock for all; or 500steps, 20Mtokens, 1e13macs for each run.")
    ] = "10m",
    size: Annotated[str | None, typer.Option(help="What to fit widths to, such as 500k or 2M (see --match).")] = None,
    match: Annotated[str, typer.Option(help="What is held equal: params, macs, state or time.")] = "params",
    seeds: Annotated[int, typer.Option(help="Runs of each contender, each with a seed of its own.")] = 1,
    lr: Annotated[
        str, typer.Option(help="A learning rate, or auto: an equal short sweep for each contender.")
    ] = "auto",
    depth: Annotated[int, typer.Option(help="Blocks of the stack that a bare mixer name stands for.")] = 4,
    forecast: Forecast = None,
    target: Target = None,
    vocab: Vocab = None,
    length: Length = None,
    input_length: InputLength = None,
    splits: Splits = None,
    image_size: ImageSize = None,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    runs: Runs = RUNS,
    name: Annotated[str | None, typer.Option(help="The race's name; made from date and data without it.")] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with a race that was stopped: its name, or latest.")] = None,
    open_page: Open = False,
    list_races: Annotated[bool, typer.Option("--list", help="List the races kept in the runs folder.")] = False,
) -> None:
    """Race architectures on your data: trained models, quality and cost side by side, and a report."""
    from rich.console import Console

    from formwright.race import store

    console = Console()
    if list_races:
        from formwright.report import terminal

        with contextlib.closing(store.open_store(runs / STORE, create=False)) as connection:
            terminal.print_list(store.list_races(connection), console)
        return
    if not contenders and not resume:
        raise ValueError("name what shall race, for example: formwright race attention mamba2 --data notes.txt")
    if data is None and not resume:
        raise ValueError("say on which data: --data FILE or FOLDER, or a bundled name such as --data python-source")
    from formwright import race as racing
    from formwright.race.watch import watch

    options = _given(
        forecast=forecast,
        target=target,
        vocab=vocab,
        length=length,
        input_length=input_length,
        splits=splits,
        image_size=image_size,
    )
    begun: list[str] = []
    try:
        with watch(console, begun) as listen:
            race_id = racing.race(
                contenders or [],
                data,
                budget=budget,
                size=size,
                match=match,
                seeds=seeds,
                lr=lr,
                depth=depth,
                data_options=options,
                engine=engine,
                address=address,
                workers=workers,
                runs=runs,
                name=name,
                resume=resume,
                command=["formwright", *sys.argv[1:]],
                on_event=listen,
            )
    except KeyboardInterrupt:
        if not begun:
            raise
        _say(f"stopped; go on with: formwright race --resume {begun[0]}" + ("" if runs == RUNS else f" --runs {runs}"))
        raise typer.Exit(130) from None
    from formwright.report import page, terminal

    result = _load(race_id, runs)
    path = page.write(result, result.folder / "report.html")
    terminal.print_race(result, console)
    if open_page:
        typer.launch(str(Path(path).resolve()))


@app.command()
def bench(
    suite: Annotated[
        str | None,
        typer.Argument(help="quick, recall, state, in-context, long-range, series, patterns, cost or all."),
    ] = None,
    mixers: Annotated[list[str] | None, typer.Argument(help="Mixers, expressions, or file.py:Class.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each mixer at its best learning rate; a verdict asks for 3.")] = 3,
    match: Annotated[str, typer.Option(help="What is held equal: params, macs, state or time.")] = "params",
    size: Annotated[str | None, typer.Option(help="Parameters in place of each ability's own, such as 100k.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps in place of each ability's own.")] = None,
    rates: Annotated[str | None, typer.Option(help="Learning rates to try, such as 1e-3,3e-3,1e-2.")] = None,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    runs: Runs = RUNS,
    name: Annotated[str | None, typer.Option(help="The bench's name; made from suite and date without it.")] = None,
    resume: Annotated[
        str | None, typer.Option(help="Go on with a bench that was stopped: its name, or latest.")
    ] = None,
    open_page: Open = False,
    list_benches: Annotated[bool, typer.Option("--list", help="List the benches kept in the runs folder.")] = False,
) -> None:
    """Put mixers to a suite of tasks: what each can do, against what state, as a verdict for each ability."""
    from rich.console import Console

    from formwright.race import store
    from formwright.report import bench_terminal

    console = Console()
    if list_benches:
        with contextlib.closing(store.open_store(runs / STORE, create=False)) as connection:
            bench_terminal.print_list(store.list_benches(connection), console)
        return
    from formwright.bench.run import bench as put
    from formwright.bench.watch import watch

    begun: list[str] = []
    try:
        with watch(console, begun) as listen:
            bench_id = put(
                suite,
                mixers or [],
                seeds=seeds,
                match=match,
                size=size,
                steps=steps,
                rates=rates.split(",") if rates else None,
                engine=engine,
                address=address,
                workers=workers,
                runs=runs,
                name=name,
                resume=resume,
                command=["formwright", *sys.argv[1:]],
                on_event=listen,
            )
    except KeyboardInterrupt:
        if not begun:
            raise
        where = "" if runs == RUNS else f" --runs {runs}"
        _say(f"stopped; go on with: formwright bench --resume {begun[0]}{where}")
        raise typer.Exit(130) from None
    from formwright.report import bench_page

    result = _load(bench_id, runs)
    path = bench_page.write_all(result)
    bench_terminal.print_bench(result, console)
    if open_page:
        typer.launch(str(path.resolve()))


def _load(run: str, runs: Path):
    """The bench or race that `run` names."""
    from formwright.race import store

    with contextlib.closing(store.open_store(store.store_path(run, runs / STORE), create=False)) as connection:
        return store.find(connection, run)


@app.command()
def report(
    run: Annotated[
        str, typer.Argument(help="A race's or bench's name, the start of one, a run folder, or latest.")
    ] = "latest",
    html: Annotated[Path | None, typer.Option(help="Write the self-contained page here.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the picture here.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table here.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Show a race's or a bench's results here, or write them as a page, a picture or a table."""
    from formwright.race.records import Bench

    result = _load(run, runs)
    whole = isinstance(result, Bench)
    for path, kind in ((html, "page"), (png, "png"), (csv, "csv")):
        if path is not None:
            writer = importlib.import_module(f"formwright.report.{'bench_' if whole else ''}{kind}")
            print(writer.write(result, path))
    if not (html or png or csv):
        from formwright.report import bench_terminal, terminal

        (bench_terminal.print_bench if whole else terminal.print_race)(result)


@app.command()
def check(
    target: Annotated[str, typer.Argument(help="A part such as gla or 'attention(heads=2)', or file.py:Class.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Hold a part to the laws: shapes, causality, decoding, gradients, cost ... Exit code 1 where one is broken."""
    from formwright.check import run

    result = run(target)
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        result.show()
    if not result.passed:
        raise typer.Exit(1)


@app.command("list")
def list_parts(
    kind: Annotated[str | None, typer.Argument(help="mixer, channel, position, norm, ... or zoo.")] = None,
) -> None:
    """List the parts that expressions are made of, or the published architectures in the zoo."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from formwright import parts
    from formwright.contract import KINDS

    singular = kind[:-1] if kind and kind.endswith("s") else kind
    console = Console()
    if kind == "zoo":
        console.print(_zoo_table())
        return
    cards = sorted((parts.card(name) for name in parts.names(singular)), key=lambda c: (KINDS.index(c.kind), c.name))
    for group, members in itertools.groupby(cards, key=lambda c: c.kind):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(group, no_wrap=True, style="bold", min_width=16)
        if group == "mixer":
            table.add_column("macs", no_wrap=True)
            table.add_column("state", no_wrap=True)
        table.add_column("what it does")
        for card in members:
            costs = (card.time, card.state) if group == "mixer" else ()
            table.add_row(card.name, *costs, card.summary)
        console.print(table)
    if singular in (None, "mixer"):
        console.print("macs, state: how multiply-adds and the decode state grow with N tokens", highlight=False)
    if kind is None:
        console.print("published architectures: formwright list zoo", highlight=False)


def _zoo_table():
    """A Rich table of the zoo's entries."""
    from rich import box
    from rich.table import Table

    from formwright import zoo
    from formwright.show import short

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("zoo", no_wrap=True, style="bold")
    table.add_column("parameters", no_wrap=True, justify="right")
    table.add_column("source")
    for name in zoo.names():
        table.add_row(name, short(zoo.entry(name).parameters), zoo.entry(name).source)
    return table


@app.command()
def card(name: Annotated[str, typer.Argument(help="A part's name, a zoo entry's, or file.py:Class.")]) -> None:
    """Show a part's card: what it computes, its source, its options; or an architecture of the zoo."""
    from rich.console import Console

    from formwright import parts, zoo

    if zoo.find(name):
        text = zoo.describe(name)
    else:
        text = parts.describe(parts.load(name) if ".py:" in name else parts.get(name))
    Console().print(text, markup=False, highlight=False, soft_wrap=False)


@app.command()
def show(
    expression: Annotated[str, typer.Argument(help="An architecture, or a bare mixer.")],
    length: Annotated[int, typer.Option(help="Tokens that the figures are for.")] = 256,
    batch: Annotated[int, typer.Option(help="Rows that the figures are for.")] = 1,
    data: Data = None,
    forecast: Forecast = None,
    target: Target = None,
    vocab: Vocab = None,
    input_length: InputLength = None,
    image_size: ImageSize = None,
) -> None:
    """Draw the built model as a tree: shapes, parameters, multiply-adds and state bytes of every part."""
    from rich.console import Console

    from formwright.show import draw, example

    options = _given(forecast=forecast, target=target, vocab=vocab, input_length=input_length, image_size=image_size)
    model, shape = example(expression, data, options, length)
    Console().print(draw(model, shape, batch))


@app.command()
def cost(
    texts: Annotated[list[str], typer.Argument(metavar="EXPR...", help="An architecture, or mixers side by side.")],
    lengths: Annotated[str, typer.Option(help="Token counts, with commas between.")] = "512,1024,2048,4096",
    batch: Annotated[str, typer.Option(help="Rows of the batch; several with commas between.")] = "1",
    dim: Annotated[
        int, typer.Option(help="Width of an expression that doesn't say it; of attention beside mixers.")
    ] = 256,
    kinds: Annotated[str, typer.Option(help="Work measured of mixers.")] = "forward,training,prefill,decode",
    match: Annotated[str, typer.Option(help="What mixers are equal in: params, state, macs or width.")] = "params",
    size: Annotated[str | None, typer.Option(help="Parameters of each mixer's model, such as 2M.")] = None,
    seconds: Annotated[float, typer.Option(help="About how long mixers are measured.")] = 240.0,
    roofline: Annotated[bool, typer.Option(help="Whether arithmetic or memory holds each layer.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write what was measured of mixers to this CSV.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw time and memory of mixers over tokens.")] = None,
) -> None:
    """Cost measured over lengths: of one expression beside the formulas; of mixers beside attention, with the growth in
    N and the length from which on each is cheaper."""
    from rich.console import Console

    from formwright.build import is_bare_mixer

    counts, batches = _counts("--lengths", lengths), _counts("--batch", batch)
    console = Console()
    if roofline:
        from formwright.bench.cost_report import roofline_table
        from formwright.bench.roofline import expression_layers

        for text in texts:
            rows, roof = expression_layers(text, counts[-1], batch=batches[0], dim=dim)
            console.print(text, roofline_table(rows, roof), sep="\n")
        return
    if len(texts) == 1 and not is_bare_mixer(texts[0]) and not (csv or png):
        from formwright.bench.formulas import cost_table

        for rows in batches:
            console.print(cost_table(texts[0], counts, batch=rows, dim=dim))
        return
    from formwright.bench import cost_report
    from formwright.bench.cost import cost_suite

    found = cost_suite(
        texts, lengths=counts, batches=batches, kinds=kinds.split(","), match=match, size=size, dim=dim, seconds=seconds
    )
    console.print(cost_report.rendered(found))
    if csv:
        print(*cost_report.write_csv(found, csv), sep="\n")
    if png:
        print(cost_report.write_png(found, png))


def _counts(option: str, text: str) -> list[int]:
    """Whole numbers with commas between."""
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not word.isdigit() or int(word) < 1:
            raise ValueError(f"{option} takes numbers such as 512,2048, not {word!r}")
    return sorted({int(word) for word in words})


@app.command()
def generate(
    run: Run = "latest",
    prompt: Annotated[str, typer.Option(help="What to go on from.")] = "",
    tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw from this many likeliest tokens alone.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    contender: Contender = None,
    runs: Runs = RUNS,
) -> None:
    """Generate text with a model that a race trained."""
    from formwright.race import generate, trained

    model, source, who = trained(run, contender=contender, runs=runs)
    print(f"formwright: {who}", file=sys.stderr)
    source.encode(prompt)  # says at once where the model writes no text
    print(prompt, end="", flush=True)
    shown = 0

    def go_on(text: str) -> None:
        nonlocal shown
        # A character of several bytes is whole only once its last byte has come.
        ready = text.rstrip("\N{REPLACEMENT CHARACTER}")
        print(ready[shown:], end="", flush=True)
        shown = max(shown, len(ready))

    text = generate(model, source, prompt, tokens, temperature, top_k, seed, on_text=go_on)
    print(text[shown:])


@app.command()
def predict(
    run: Run,
    file: Annotated[Path, typer.Argument(help="New data of the kind that the model was trained on.")],
    out: Annotated[Path | None, typer.Option(help="Write the predictions to this CSV; printed without it.")] = None,
    contender: Contender = None,
    runs: Runs = RUNS,
) -> None:
    """Predict on new data with a model that a race trained: forecasts, labels, values, or bits of a text."""
    from formwright.race import predict, trained

    model, source, who = trained(run, contender=contender, runs=runs)
    rows = predict(model, source, str(file))
    print(f"formwright: {who}", file=sys.stderr)
    with open(out, "w", newline="") if out else contextlib.nullcontext(sys.stdout) as stream:
        writer = csv_files.DictWriter(stream, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from formwright import __version__

        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; turn every exception into a sentence and an exit code."""
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        _say("stopped")
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        code = _explain(error)
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> int:
    """Print what went wrong as a sentence; 2 for what the user can mend, 1 for our own faults."""
    if os.environ.get("FORMWRIGHT_TRACEBACK"):
        import traceback

        traceback.print_exc()
    # Typer may bring a click of its own, so its errors are known by what they can do.
    if type(error).__name__ == "Abort":
        _say("stopped")
        return 130
    if hasattr(error, "show") and hasattr(error, "exit_code"):
        error.show()
        return 2
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        _say(f"{error.filename}: {error.strerror.lower()}")
        return 2
    message = str(error)
    ours = isinstance(error, (KeyError, IndexError))  # a slip of formwright's own, not of its user
    if isinstance(error, (ValueError, LookupError, OSError, ImportError)) and message and not ours:
        _say(message)
        return 2
    kind = type(error).__name__
    _say(f"formwright failed ({kind}: {message}); FORMWRIGHT_TRACEBACK=1 shows where. Please report it.")
    return 1


def _say(message: str) -> None:
    print(f"formwright: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
