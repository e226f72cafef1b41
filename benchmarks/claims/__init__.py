"""Published findings as small experiments: one file each, which holds a Finding named FINDING.

A finding's contenders are trained alike: each at every learning rate from the first seed, then from the other seeds at
the rate that was best on validation. What came out is a list of Results, which `judge` turns into Conditions: a
finding is reproduced when all of them hold. A finding about time instead has `measure`, which makes the results itself.
"""

from __future__ import annotations

import importlib
import pkgutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trials import Trial

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Result:
    """What a contender came to: the score of each seed, and the further measures of each by name."""

    contender: str
    scores: tuple[float, ...]
    more: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    rate: float | None = None
    params: int | None = None
    seconds: float = 0.0
    note: str = ""

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def median(self) -> float:
        return statistics.median(self.scores)

    @property
    def worst(self) -> float:
        return min(self.scores)

    @property
    def best(self) -> float:
        return max(self.scores)


@dataclass(frozen=True)
class Condition:
    """One thing that must hold, what was found, and whether it holds."""

    text: str
    found: str
    holds: bool


@dataclass(frozen=True)
class Finding:
    """
    claim      the finding, in one sentence
    source     title, arXiv id, year
    published  the figures it was published with
    contenders by name: a trial each, whose rate and seed are filled in
    judge      results by contender's name -> conditions
    rates      learning rates that every contender tries
    metric     the score, of the test part; chosen on validation by `choose_by`, the same without it
    measure    instead of training: () -> results
    tried      what was tried where it does not reproduce, and what the figures mean"""

    claim: str
    source: str
    published: str
    judge: Callable[[Mapping[str, Result]], list[Condition]]
    contenders: Mapping[str, Trial] = field(default_factory=dict)
    rates: tuple[float, ...] = (1e-3, 3e-3)
    seeds: tuple[int, ...] = SEEDS
    metric: str = "accuracy"
    choose_by: str = ""
    lower_is_better: bool = False
    measure: Callable[[bool], list[Result]] | None = None
    tried: str = ""


def least(text: str, found: float, bound: float) -> Condition:
    """found >= bound."""
    return Condition(f"{text}: at least {bound:g}", f"{found:.3g}", found >= bound)


def at_most(text: str, found: float, bound: float) -> Condition:
    """found <= bound."""
    return Condition(f"{text}: at most {bound:g}", f"{found:.3g}", found <= bound)


def findings() -> dict[str, Finding]:
    """All of them by name, in alphabetical order, those about time last: they want a calm machine."""
    found: dict[str, Any] = {}
    for module in pkgutil.iter_modules(__path__):
        found[module.name] = importlib.import_module(f"{__name__}.{module.name}").FINDING
    return dict(sorted(found.items(), key=lambda item: (item[1].measure is not None, item[0])))
