"""The command `formwright`: verbs alone, each calls one function that Python users can call too.

Exit codes: 0 done, 1 a law is broken or a race failed, 2 misuse, 130 interrupted. A mistake is answered with one
sentence on standard error; FORMWRIGHT_TRACEBACK=1 shows where it came from.
"""

from __future__ import annotations

import contextlib
import csv as csv_files
import importlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from formwright import cli_parts
from formwright.cli_options import (
    RUNS,
    STORE,
    Address,
    Contender,
    Data,
    Engine,
    Forecast,
    ImageSize,
    InputLength,
    Length,
    Open,
    Run,
    Runs,
    Splits,
    Target,
    Vocab,
    Workers,
    given,
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Compose, check, race and ship Transformer-like architectures, each one short expression.",
)


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

    options = given(
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
    only: Annotated[
        str | None, typer.Option(help="Abilities of the suite, with commas between; all without it.")
    ] = None,
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
    if suite == "cost":
        _cost_suite(mixers or [], match, size, runs)
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
                only=[name.strip() for name in only.split(",")] if only else None,
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


def _cost_suite(mixers: list[str], match: str, size: str | None, runs: Path) -> None:
    """The suite that is measured, not trained: its tables here, its rows in the store."""
    from rich.console import Console

    from formwright.bench.cost import cost_suite
    from formwright.bench.cost_report import record, rendered
    from formwright.race import store

    if not mixers:
        raise ValueError("name the mixers whose cost shall be measured: formwright bench cost attention gla")
    found = cost_suite(mixers, match=match, size=size)
    Console().print(rendered(found))
    with contextlib.closing(store.open_store(runs / STORE)) as connection:
        print(f"kept as race {record(found, connection)}")


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


app.command()(cli_parts.check)
app.command("list")(cli_parts.list_parts)
app.command()(cli_parts.card)
app.command()(cli_parts.show)
app.command()(cli_parts.cost)


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
