"""The built model as a tree: per line the part, shapes, parameters, multiply-adds and state bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import nn

from formwright.contract import Cost, Layout, Norm, Wiring, parameter_count, part_cost
from formwright.model import Model
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
    inputs = "x".join(map(str, (batch, *shape)))
    top = (
        replace(
            _line(model.embed, layout, batch, model.stack.dim), shape=f"{inputs} -> {_shape(layout, model.dim, batch)}"
        ),
        *_stages(model.stack, layout, batch),
        *([_line(model.norm, after, batch, model.stack.dim_out)] if isinstance(model.norm, Norm) else []),
        _line(model.head, after, batch, model.stack.dim_out),
    )
    return Line(model.expression, "", model.cost(shape, batch), _merge(top))


def _stages(part: Wiring, layout: Layout, batch: int) -> tuple[Line, ...]:
    """The lines of a stack's stages; a part that is no stack gives its own line."""
    if not isinstance(part, Stack):
        return (_line(part, layout, batch, part.dim),)
    return _merge(tuple(_line(inner, place, batch, part.dim) for _, inner, place in part.inner(layout)))


def _line(part: nn.Module, layout: Layout, batch: int, dim: int) -> Line:
    cost = part_cost(part, layout, batch)
    if isinstance(part, Plain):
        return _line(part.part, layout, batch, part.dim)
    if isinstance(part, Residual):
        inside = _line(part.branch_part, layout, batch, part.dim)
        label = inside.label if inside.label != "stack" else "branch"
        return Line(f"{part.style.card.name} {label}", inside.shape, cost, inside.children)
    width = getattr(part, "dim", None) or dim
    if isinstance(part, Wiring):
        out = f"{_shape(layout, width, batch)} -> {_shape(part.after(layout), part.dim_out, batch)}"
        children = []
        for purpose, inner, place in part.inner(layout):
            nested = _line(inner, place, batch, width)
            if isinstance(inner, Stack):
                nested = replace(nested, label=purpose or "stack")
            children.append(nested)
        name = getattr(part, "written", part.card.name).split("(")[0]
        return Line(name, out, cost, _merge(tuple(children)))
    text = getattr(part, "written", None) or part.card.name
    return Line(text, _shape(layout, width, batch), cost)


def _merge(children: tuple[Line, ...]) -> tuple[Line, ...]:
    """Equal neighbours as one line that counts them."""
    merged: list[Line] = []
    for child in children:
        if merged and replace(merged[-1], times=1) == child:
            merged[-1] = replace(merged[-1], times=merged[-1].times + 1)
        else:
            merged.append(child)
    return tuple(merged)


def _shape(layout: Layout, dim: int, batch: int) -> str:
    tokens = "x".join(map(str, layout.grid)) + (f"+{layout.prefix}" if layout.prefix else "")
    return f"({batch}, {tokens}, {dim})"


def example(
    expression: str, data: str | None = None, options: dict[str, object] | None = None, length: int = 256
) -> tuple[Model, tuple[int, ...]]:
    """The model of an expression (a bare mixer stands for its default stack) and the shape of one input: of the data
    where they are named, else of `length` tokens."""
    from formwright.build import build, default_stack, is_bare_mixer

    tree = default_stack(expression) if is_bare_mixer(expression) else expression
    if data is not None:
        from formwright import data as sources

        source = sources.open(data, **(options or {}))
        return build(tree, source), source.shape
    model = build(tree, facts={"length": length})
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
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=Text(model.expression), title_justify="left", pad_edge=False)
    for name, justify in (("part", "left"), ("tokens", "left"), ("parameters", "right")):
        table.add_column(name, justify=justify, overflow="fold")
    table.add_column("multiply-adds", justify="right")
    table.add_column("state", justify="right")

    def add(line: Line, indent: str, last: bool, top: bool = False) -> None:
        branch = "" if top else indent + ("└─ " if last else "├─ ")
        times = f"{line.times} × " if line.times > 1 else ""
        # A wiring's figures count all that is inside; each copy of a repeated part costs as much again.
        figures = (line.cost.params, line.cost.macs, line.cost.state_bytes)
        state = short(figures[2], "B") if figures[2] else "-"
        each = " each" if line.times > 1 else ""
        name = Text(branch + times + line.label, style="bold" if line.children else "")
        table.add_row(name, Text(line.shape), short(figures[0]) + each, short(figures[1]) + each, state)
        inner = indent if top else indent + ("   " if last else "│  ")
        for index, child in enumerate(line.children):
            add(child, inner, index == len(line.children) - 1)

    tree = lines(model, shape, batch)
    for index, child in enumerate(tree.children):
        add(child, "", index == len(tree.children) - 1)
    table.add_section()
    total = tree.cost
    state = short(total.state_bytes, "B") if model.causal else "-"
    table.add_row(Text("all", style="bold"), "", short(parameter_count(model)), short(total.macs), state)
    return table
