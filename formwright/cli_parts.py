"""The verbs of the command line about parts: check, list, card, show, cost."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated

import typer

from formwright.cli_options import Data, Forecast, ImageSize, InputLength, Target, Vocab, given


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


def list_parts(
    kind: Annotated[str | None, typer.Argument(help="mixer, channel, position, norm, ...; zoo; tasks.")] = None,
) -> None:
    """List the parts that expressions are made of, the published architectures in the zoo, or the tasks."""
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
    if singular == "task":
        console.print(_task_table())
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
        console.print("synthetic tasks to train on: formwright list tasks", highlight=False)


def _task_table():
    """A Rich table of the synthetic tasks."""
    from rich import box
    from rich.table import Table

    from formwright.data.tasks import TASKS, summary

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("task", no_wrap=True, style="bold")
    table.add_column("what is asked")
    for name in sorted(TASKS):
        table.add_row(name, summary(name))
    return table


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


def card(
    name: Annotated[str, typer.Argument(help="A part's name, a zoo entry's, a task's, or file.py:Class.")],
) -> None:
    """Show a part's card: what it computes, its source, its options; or an architecture of the zoo, or a task."""
    from rich.console import Console

    from formwright import parts, zoo
    from formwright.data import tasks

    if zoo.find(name):
        text = zoo.describe(name)
    elif name in tasks.TASKS and name not in parts.names():
        text = tasks.describe(name)
    else:
        text = parts.describe(parts.load(name) if ".py:" in name else parts.get(name))
    Console().print(text, markup=False, highlight=False, soft_wrap=False)


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

    options = given(forecast=forecast, target=target, vocab=vocab, input_length=input_length, image_size=image_size)
    model, shape = example(expression, data, options, length)
    Console().print(draw(model, shape, batch))


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
