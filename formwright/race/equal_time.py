"""Sizing by time: widths at which every contender's measured step takes as long as the first's.

A step's time grows with the width about as t(D) ~ D^p; p is taken from the two measurements nearest to the target, 1.5
before there are two, and each round measures the width at which t would be right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from formwright.build import BuildProblem
from formwright.race.contenders import Entry, written_dim
from formwright.race.size import CLOSE, TOLERANCE, around, at_width


def equal_time(
    entries: list[Entry], source: Any, seconds: Callable[[list[Entry]], list[float]], *, rounds: int = 4
) -> tuple[list[Entry], list[str]]:
    """The contenders at widths whose measured seconds per step equal the first's, and sentences on what was reached.

    seconds  times the contenders as they are, under the race's own conditions"""
    running = [e for e in entries if not e.error]
    times = seconds(running)
    target = times[0]
    rows = {e.name: [(t, e)] for e, t in zip(running, times, strict=True)}
    for _ in range(rounds):
        trying = []
        for name, seen in rows.items():
            t, best = min(seen, key=lambda row: abs(row[0] / target - 1))
            if abs(t / target - 1) <= CLOSE or written_dim(best.tree, source) is not None:
                continue
            entry = _next_width(seen, target, source)
            if entry is not None:
                trying.append((name, entry))
        if not trying:
            break
        for (name, entry), t in zip(trying, seconds([e for _, e in trying]), strict=True):
            rows[name].append((t, entry))
    chosen = {name: min(seen, key=lambda row: abs(row[0] / target - 1)) for name, seen in rows.items()}
    notes = [
        f"{name} takes {t * 1e3:.3g} ms a step where the first contender takes {target * 1e3:.3g} ms "
        f"({t / target - 1:+.1%}): no width tried came nearer."
        for name, (t, _) in chosen.items()
        if abs(t / target - 1) > TOLERANCE
    ]
    return [chosen[e.name][1] if e.name in chosen else e for e in entries], notes


def _next_width(seen: list[tuple[float, Entry]], target: float, source: Any) -> Entry | None:
    """The contender at the next width worth timing; None where its neighbours have all been tried."""
    near = sorted(seen, key=lambda row: abs(row[0] / target - 1))
    power = 1.5
    if len(near) > 1 and near[0][1].dim != near[1][1].dim and near[0][0] != near[1][0]:
        power = math.log(near[0][0] / near[1][0]) / math.log(near[0][1].dim / near[1][1].dim)
        power = min(3.0, max(0.7, power))
    t, entry = near[0]
    wanted = entry.dim * (target / t) ** (1 / power)
    tried = {e.dim for _, e in seen}
    for dim in sorted(around(wanted, 8), key=lambda d: abs(d - wanted)):
        if dim not in tried and (dim - entry.dim) * (target - t) > 0:
            try:
                return at_width(entry, source, dim, 1.0)
            except BuildProblem:
                continue
    return None
