"""The built model as a tree: per line the part, shapes, parameters, multiply-adds and state bytes."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace

from torch import nn

from formwright import zoo
from formwright.contract import Cost, Layout, Norm, Wiring, part_cost
from formwright.model import Model
from formwright.unfilled import Unfilled
from formwright.wiring.stack import Plain, Residual, Stack

_UNITS = ("", "k", "M", "G", "T", "P")


@dataclass(frozen=True)
class Line:
    """One part of the drawn tree; `times` equal ones stand as one line."""

    label: str
    shape: str
    cost: Cost
    children: tuple[Line, ...] = ()
    times: int = 1


def lines(model: Model, shape: tuple[int, ...], batch: int = 1) -> Line:
    """The tree of a model for inputs of this shape (without the batch)."""
    layout = model.embed.layout(tuple(shape))
    after = model.stack.after(layout)
    inputs = "x".join(map(str, shape))
    embed = replace(_line(model.embed, layout, batch), shape=f"{inputs} -> {_shape(layout, model.dim)}")
    norm = [_line(model.norm, after, batch)] if isinstance(model.norm, Norm) else []
    head = replace(_line(model.head, after, batch), shape=_shape(after, model.stack.dim_out))
    stages = _stages(_line(model.stack, layout, batch))
    return Line(model.expression, "", model.cost(shape, batch), _merge((embed, *stages, *norm, head)))


def _line(part: nn.Module, layout: Layout, batch: int) -> Line:
    if isinstance(part, Plain):
        return _line(part.part, layout, batch)
    cost = part_cost(part, layout, batch)
    if isinstance(part, Residual):
        inside = _line(part.branch_part, layout, batch)
        style = "" if part.style.card.name == "prenorm" else f"{part.style.card.name} "
        return replace(inside, label=style + inside.label, cost=cost)
    if not isinstance(part, Wiring):
        return Line(getattr(part, "written", None) or part.card.name, _shape(layout, part.dim), cost)
    before, after = _shape(layout, part.dim), _shape(part.after(layout), part.dim_out)
    children = []
    for purpose, inner, place in part.inner(layout):
        child = _line(inner, place, batch)
        if isinstance(inner, Stack) and not isinstance(part, Stack):
            named = replace(child, label=purpose) if purpose else child
            children += [named] if purpose else _stages(child)
        else:
            children.append(child)
    name = getattr(part, "written", part.card.name).split("(")[0]
    return Line(name, before if before == after else f"{before} -> {after}", cost, _merge(tuple(children)))


def _stages(line: Line) -> tuple[Line, ...]:
    """The stages of a stack in its place, unless the line is no stack, or counts several."""
    return line.children if line.label == "stack" and line.times == 1 else (line,)


def _merge(children: tuple[Line, ...]) -> tuple[Line, ...]:
    """Equal neighbours as one line that counts them, stacks that stand alone as their stages."""
    merged: list[Line] = []
    for child in children:
        if merged and replace(merged[-1], times=1) == child:
            merged[-1] = replace(merged[-1], times=merged[-1].times + 1)
        else:
            merged.append(child)
    return tuple(stage for line in merged for stage in _stages(line))


def _shape(layout: Layout, dim: int) -> str:
    prefix = f"{layout.prefix}+" if layout.prefix else ""
    return f"{prefix}{'x'.join(map(str, layout.grid))} x {dim}"


def example(
    expression: str, data: str | None = None, options: dict[str, object] | None = None, length: int = 256
) -> tuple[Model, tuple[int, ...]]:
    """The model of an expression (a bare mixer stands for its default stack) and the shape of one input: of the data
    where they are named, else of `length` tokens."""
    from formwright.build import build, default_stack, is_bare_mixer

    bare = is_bare_mixer(expression)
    published = zoo.find(expression)
    # Figures need no weights, and those of a published model may be more than memory holds.
    where = Unfilled() if published else contextlib.nullcontext()
    if data is not None:
        from formwright import data as sources

        source = sources.open(data, **(options or {}))
        with where:
            return build(default_stack(expression, data=source) if bare else expression, source), source.shape
    with where:
        model = build(default_stack(expression) if bare else expression, facts={"length": length})
    if published and "image" in published.facts:
        return model, (*published.facts["image"], published.facts["channels"])
    if not hasattr(model.embed, "vocab"):
        raise ValueError(f"{model.embed.card.name} reads no tokens; say by --data what it reads")
    return model, (length,)


def short(number: float, unit: str = "") -> str:
    """A figure with three digits and a metric prefix: 1234567 -> 1.23M."""
    if number == 0:
        return "0" + (f" {unit}" if unit else "")
    power = min(len(_UNITS) - 1, max(0, int(math.log10(abs(number)) // 3)))
    value = number / 1000**power
    digits = f"{value:.0f}" if power == 0 and float(value).is_integer() else f"{value:.3g}"
    return f"{digits} {_UNITS[power]}{unit}" if unit else f"{digits}{_UNITS[power]}"


def draw(model: Model, shape: tuple[int, ...], batch: int = 1):
    """A Rich table of `lines`."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("part", overflow="fold")
    table.add_column("tokens x width", no_wrap=True)
    for name in ("parameters", "macs", "state"):
        table.add_column(name, justify="right", no_wrap=True)

    def add(line: Line, indent: str, last: bool) -> None:
        times = f"{line.times} × " if line.times > 1 else ""
        name = Text(f"{indent}{'└' if last else '├'} {times}{line.label}", style="bold" if line.children else "")
        state = short(line.cost.state_bytes, "B") if line.cost.state_bytes else "-"
        table.add_row(name, line.shape, short(line.cost.params), short(line.cost.macs), state)
        for index, child in enumerate(line.children):
            add(child, indent + ("  " if last else "│ "), index == len(line.children) - 1)

    tree = lines(model, shape, batch)
    for index, child in enumerate(tree.children):
        add(child, "", index == len(tree.children) - 1)
    table.add_section()
    state = short(tree.cost.state_bytes, "B") if tree.cost.state_bytes else "-"
    table.add_row(Text("all", style="bold"), "", short(tree.cost.params), short(tree.cost.macs), state)
    caption = f"For a batch of {batch}. A line marked n × stands for n parts; its figures are those of one."
    return Group(Text(model.expression), table, Text(caption, style="dim"))
