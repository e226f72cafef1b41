"""Sizing: the width of each contender, so that all are equal in parameters, multiply-adds, decode state or time.

The figure f(D) grows with the width D. Widths are tried in multiples of 16, then 8; where that grid is too coarse, the
expansion of channel mixers is tuned, by at most a quarter; then come multiples of 4 and 2, and these tuned. Widths that
a part refuses (heads that don't divide it) are left out. All parameters count, those of embedding and head included.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from formwright import lang, parts
from formwright.build import BuildProblem, complete
from formwright.contract import parameter_count
from formwright.lang import Expr, Part
from formwright.race.contenders import Entry, RaceProblem, build_unfilled, written_dim
from formwright.race.narrowing import narrowed

CLOSE = 0.014  # of the target: two contenders each so close are within 3% of one another
TOLERANCE = 0.03
FIRST_DIM = 128  # of the first contender, where neither size nor width is given
STRETCH = 1.25
WIDEST = 16384
FAR = 4  # times as wide as others, or a quarter of it: beyond that equal figures compare unlike things
WIDEST_STATE = 1024  # where states are matched: a small state must not be made up for by a giant model
SIZE = re.compile(r"\s*(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)\s*([kKmMbBgG]?)\s*")
PREFIXES = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}


def parse_size(text: str | int | float) -> int:
    """Parameters from "500k", "2M", "1.5e6" or a number. Raises RaceProblem for anything else."""
    match = SIZE.fullmatch(str(text))
    value = float(match[1]) * PREFIXES[match[2].lower()] if match else 0
    if not 1 <= value < 1e13:
        raise RaceProblem(f"{text!r} is no size: write parameters such as 500k, 2M or 1.5e6")
    return round(value)


def equalise(
    entries: list[Entry], source: Any, *, size: int | None = None, match: str = "params"
) -> tuple[list[Entry], list[str]]:
    """The contenders with their widths, expressions and figures, and sentences on what was held equal and how well.

    size   parameters that the first contender gets (all, with match="params"); None: what it has at its own width, or
           at 128
    match  "params", "macs" (multiply-adds of one forward), "state" (bytes that decoding keeps after the data's length),
           or "time", for which this gives the equal parameters that `equal_time` starts from

    A contender that can't be built gets an `error`."""
    sized: list[Entry] = []
    notes: list[str] = []
    target: float | None = None
    for entry in entries:
        if entry.error:
            sized.append(entry)
            continue
        try:
            by = "params" if target is None and size is not None else match
            goal = size if target is None else target
            done, note = fit_to(entry, source, goal, by)
            reached = float(_figure(done, match))
        except (BuildProblem, ValueError) as error:
            sized.append(replace(entry, error=str(error)))
            continue
        if target is None:
            target = float(size) if match == "params" and size is not None else reached
        sized.append(done)
        notes += note
    return sized, notes


def fit_to(entry: Entry, source: Any, target: float | None, match: str) -> tuple[Entry, list[str]]:
    """The contender at the width whose figure comes nearest to `target` (None: at its own width, or 128)."""
    own = written_dim(entry.tree, source)
    if own is not None or target is None:
        done = at_width(entry, source, own or _first_width(entry, source), 1.0)
        if target is None or abs(_figure(done, match) / target - 1) <= TOLERANCE:
            return done, []
        words = f"{_words(_figure(done, match), match)}, not {_words(target, match)}"
        return done, [f"{entry.name} keeps the width dim={own} that its text gives: {words}."]
    _first_width(entry, source)  # raises, with the reasons, where no width would help
    seen: dict[tuple[int, float], float | None] = {}

    def figure(dim: int, stretch: float = 1.0) -> float | None:
        if (dim, stretch) not in seen:
            try:
                seen[dim, stretch] = _figure(at_width(entry, source, dim, stretch), match)
            except BuildProblem:
                seen[dim, stretch] = None
        return seen[dim, stretch]

    if match == "state":
        dim, stretch, reached = choose(figure, target, tunable=False, widest=WIDEST_STATE)
    else:
        dim, stretch, reached = choose(figure, target, tunable=bool(_channels(entry.tree)))
    if dim == 0:
        raise RaceProblem(f"no width from 2 to {WIDEST} suits {entry.name}")
    done = at_width(entry, source, dim, stretch)
    off = reached / target - 1
    if abs(off) <= TOLERANCE:
        return done, []
    return done, [
        f"{entry.name} comes no nearer to {_words(target, match)} than {_words(reached, match)} ({off:+.1%}, at "
        f"dim={dim}): compare it with care."
    ]


def not_too_far(
    sized: list[Entry], notes: list[str], asked: list[Entry], source: Any, match: str, usual: int
) -> tuple[list[Entry], list[str]]:
    """What `equalise` gave for `asked`, those FAR from the `usual` width at that width instead, and said so: a figure
    that hardly grows with the width, or grows with the length, is no reason for a giant or a dwarf."""
    near = []
    for entry, before in zip(sized, asked, strict=True):
        if not entry.error and not usual / FAR <= entry.dim <= usual * FAR:
            try:
                narrower = at_width(before, source, usual, 1.0)
            except BuildProblem:  # a part refuses that width
                narrower = entry
            if narrower.dim != entry.dim:
                notes = [note for note in notes if not note.startswith(f"{entry.name} ")]
                notes.append(
                    f"{entry.name} would need the width {entry.dim} for equal {match}: it has the others', "
                    f"{narrower.dim}, and with it {_words(_figure(narrower, match), match)}."
                )
                entry = narrower
        near.append(entry)
    return near, notes


def choose(
    figure: Callable[[int, float], float | None], target: float, *, tunable: bool, widest: int = WIDEST
) -> tuple[int, float, float]:
    """(width, stretch of expansions, figure) nearest to the target; width 0 where every one is refused.

    figure(dim, stretch) is None where a part refuses that width."""
    found: list[tuple[float, int, float, float]] = []

    def look(dims: list[int], stretch: float = 1.0) -> bool:
        """Whether the best of these widths is close enough."""
        rows = [(abs(v / target - 1), d, stretch, v) for d in dims if (v := figure(d, stretch)) is not None]
        found.extend(rows)
        return bool(rows) and min(rows)[0] <= CLOSE

    centre = _crossing(figure, target, widest)
    for step, then_tuned in ((16, False), (8, tunable), (4, False), (2, tunable)):
        widths = around(centre, step)
        if look(widths):
            break
        if then_tuned and any(
            look([dim], stretch)
            for dim in sorted(widths, key=lambda d: abs(d - centre))
            if (stretch := _stretch(lambda s, dim=dim: figure(dim, s), target)) is not None
        ):
            break
    if not found:
        return 0, 1.0, 0.0
    _, dim, stretch, value = min(found)
    return dim, stretch, value


def at_width(entry: Entry, source: Any, dim: int, stretch: float) -> Entry:
    """The contender at a width, its channel mixers' expansions stretched. Raises BuildProblem where it can't be so."""
    tree = entry.tree if entry.published is None else narrowed(entry.tree, entry.published, dim)
    tree = tree if stretch == 1 else _stretched(tree, dim, stretch)
    full = complete(tree, source, dim=dim)
    model = build_unfilled(full, source, None)
    cost = model.cost(source.shape)
    return replace(
        entry,
        expression=model.expression,
        dim=model.dim,
        params=parameter_count(model),
        macs=round(cost.macs / source.tokens_per_item),
        state_bytes=cost.state_bytes if model.causal else None,
    )


def _figure(entry: Entry, match: str) -> float:
    if match == "state" and not entry.state_bytes:
        raise RaceProblem(f"{entry.name} keeps no decode state on these data, so that none can be matched: use params")
    return {"macs": entry.macs, "state": entry.state_bytes}.get(match, entry.params)


def _words(value: float, match: str) -> str:
    what = {"macs": "multiply-adds a token", "state": "bytes of decode state"}.get(match, "parameters")
    return f"{value:,.0f} {what}"


def _first_width(entry: Entry, source: Any) -> int:
    """128, or the next width that no part refuses (heads may not divide 128). Raises BuildProblem."""
    refused = None
    for dim in range(FIRST_DIM, 2 * FIRST_DIM + 1, 4):
        try:
            at_width(entry, source, dim, 1.0)
            return dim
        except BuildProblem as problem:
            refused = refused or problem
    raise refused


def _crossing(figure: Callable, target: float, widest: int) -> float:
    """The width near which the figure passes the target, by bisection over multiples of 16."""

    def accepted(dim: int) -> tuple[int, float] | None:
        """The next width that is not refused, and its figure."""
        return next(((d, v) for d in range(dim, dim + 97, 4) if (v := figure(d, 1.0)) is not None), None)

    low, high = 16, 32
    while high < widest and ((found := accepted(high)) is None or found[1] < target):
        low, high = high, 2 * high
    while high - low > 16:
        middle = (low + high) // 32 * 16
        found = accepted(middle)
        low, high = (middle, high) if found is None or found[1] < target else (low, middle)
    (a, at_a), (b, at_b) = accepted(low) or (low, 0.0), accepted(high) or (high, 0.0)
    if not 0 < at_a < at_b:
        return (low + high) / 2
    if at_b < target and high >= widest:
        return high
    return max(2.0, a * (target / at_a) ** (math.log(b / a) / math.log(at_b / at_a)))


def around(centre: float, step: int) -> list[int]:
    """Multiples of the step near the centre: the nearest few, and all within a tenth."""
    reach = max(2 * step, 0.1 * centre if step > 4 else 0.05 * centre)
    first, last = max(1, math.floor((centre - reach) / step)), math.ceil((centre + reach) / step)
    return [n * step for n in range(first, last + 1)]


def _stretch(value: Callable[[float], float | None], target: float) -> float | None:
    """The stretch of expansions within STRETCH whose figure is nearest to the target, by bisection in the logarithm."""
    low, high = 1 / STRETCH, STRETCH
    ends = value(low), value(high)
    if None in ends or not ends[0] <= target <= ends[1]:
        return None
    for _ in range(8):
        middle = round(math.sqrt(low * high), 4)
        got = value(middle)
        if got is None:
            return None
        if abs(got / target - 1) <= CLOSE / 4:
            return middle
        low, high = (middle, high) if got < target else (low, middle)
    return middle


def _channels(tree: Expr) -> list[Part]:
    """The channel mixers whose expansion can be tuned."""
    return [
        node
        for node in lang.walk(tree)
        if isinstance(node, Part)
        and node.name in parts.names("channel")
        and not node.arguments
        and "expansion" in parts.options(parts.get(node.name))
        and "expansion" not in node.options
    ]


def _stretched(tree: Expr, dim: int, stretch: float) -> Expr:
    tuned = {str(node) for node in _channels(tree)}

    def change(part: Part) -> Part:
        if str(part) not in tuned:
            return part
        cls = parts.get(part.name)
        usual = parts.options(cls)["expansion"].default
        if usual is None:
            usual = cls(dim).hidden / dim  # its own choice, which may be rounded
        return part(expansion=round(usual * stretch, 4))

    return lang.rewrite(tree, change)
