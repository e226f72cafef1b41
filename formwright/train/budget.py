"""How long to train: a number of steps, or of seconds, tokens or multiply-adds that becomes one.

    steps = floor(amount / amount per step), at least 1

Everything after this file counts in steps, so that a schedule, a resume and a comparison know where they end.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

FORMS = (
    'a time ("90s", "10m", "1h", "1h30m"), steps ("500steps"), tokens ("2Mtokens") or multiply-adds of training '
    '("1e13macs"); k, M, G, T stand for thousand, million, billion, trillion'
)
SECONDS = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600}
PREFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
NUMBER = r"(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)"
TIMES = re.compile(rf"\s*(?:{NUMBER}\s*(h|hours?|m|min|minutes?|s|sec|seconds?)\s*)+")
TIME = re.compile(rf"{NUMBER}\s*([a-z]+)")
COUNT = re.compile(rf"\s*{NUMBER}\s*([kKMGBT]?)\s*(steps?|tokens?|macs?)\s*")


@dataclass(frozen=True)
class Budget:
    """An amount of "seconds", "steps", "tokens" or "macs" (multiply-adds of forward and backward)."""

    amount: float
    unit: str

    def __post_init__(self) -> None:
        if self.unit not in ("seconds", "steps", "tokens", "macs"):
            raise ValueError(f"a budget is in seconds, steps, tokens or macs, not in {self.unit!r}")
        if not (math.isfinite(self.amount) and self.amount > 0):
            raise ValueError(f"a budget must be above zero and finite, but {self.amount:g} {self.unit} were given")

    def __str__(self) -> str:
        return f"{self.amount:.15g}{'s' if self.unit == 'seconds' else self.unit}"


def parse(text: str | int | Budget) -> Budget:
    """The budget that `text` writes: "10m", "90s", "1h30m", "500steps", "2Mtokens", "2M tokens", "1e13macs"; a bare
    integer means steps.

    Raises ValueError, listing the forms, for anything else."""
    if isinstance(text, Budget):
        return text
    if isinstance(text, int) and not isinstance(text, bool):
        return Budget(text, "steps")
    if isinstance(text, str):
        if TIMES.fullmatch(text):
            parts = TIME.findall(text)
            names = [name if name in SECONDS else name.removesuffix("s") for _, name in parts]
            amount = sum(float(n) * SECONDS[name] for (n, _), name in zip(parts, names, strict=True))
            return Budget(amount, "seconds")
        if match := COUNT.fullmatch(text):
            number, prefix, unit = match.groups()
            return Budget(float(number) * PREFIXES[prefix], unit if unit.endswith("s") else unit + "s")
    raise ValueError(f"{text!r} is no budget: write {FORMS}")


def steps(
    budget: Budget,
    *,
    seconds_per_step: float | None = None,
    tokens_per_step: float | None = None,
    macs_per_step: float | None = None,
) -> int:
    """How many whole steps the budget pays for, at least one.

    Raises ValueError where the figure that the budget's unit needs is missing or not above zero."""
    if budget.unit == "steps":
        return max(1, int(budget.amount))
    figures = {"seconds": seconds_per_step, "tokens": tokens_per_step, "macs": macs_per_step}
    per_step = figures[budget.unit]
    if per_step is None or not per_step > 0:
        raise ValueError(
            f"a budget of {budget} needs the {budget.unit} that one step takes, above zero: "
            f"pass {budget.unit}_per_step (it is {per_step})"
        )
    return max(1, int(budget.amount / per_step))
