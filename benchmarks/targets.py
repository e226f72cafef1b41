"""Targets of a benchmark: what was wanted, what was found, and exponents of growth with N."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

COLUMNS = ("target", "wanted", "found", "verdict")
Record = dict[str, Any]
Target = tuple[str, str, tuple[str, Callable[[float], bool]], float | None]
FLAT = 1.1
EXPONENT = 0.05


def timed_calls(records: list[Record]) -> dict[tuple[str, str, str, int], Record]:
    """The timed records by row, work, call and tokens."""
    return {(r["row"], r["work"], r["call"], r["tokens"]): r for r in records if r["status"] == "timed"}


def judged(records: list[Record], targets: Iterable[Target]) -> list[Record]:
    """Targets (row, text, wanted, found) of rows that were measured as {"target", "wanted", "found", "verdict"}."""
    present = {r["row"] for r in records}
    return [
        {"target": text, "wanted": wanted[0], "found": _words(found), "verdict": _verdict(wanted, found)}
        for row, text, wanted, found in targets
        if row in present
    ]


def show(found: list[Record]) -> None:
    """The targets as lines."""
    for v in found:
        print(f"{v['verdict']:12} {v['found']:>12}   wanted {v['wanted']:>12}   {v['target']}")


def exponent(points: list[tuple[int, float]]) -> float | None:
    """The slope of log y over log x by least squares, None for fewer than two points."""
    if len(points) < 2 or any(y <= 0 for _, y in points):
        return None
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum((x - mx) ** 2 for x in xs)


def least(value: float) -> tuple[str, Callable[[float], bool]]:
    return f">= {value:g}", lambda x: x >= value


def at_most(value: float) -> tuple[str, Callable[[float], bool]]:
    return f"<= {value:g}", lambda x: x <= value


def near_one() -> tuple[str, Callable[[float], bool]]:
    return f"1 +- {EXPONENT:g}", lambda x: abs(x - 1) <= EXPONENT


def _words(found: float | None) -> str:
    return "-" if found is None else f"{found:.3g}"


def _verdict(wanted: tuple[str, Callable], found: float | None) -> str:
    return "not measured" if found is None else "met" if wanted[1](found) else "not met"
