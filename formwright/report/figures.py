"""The derived figures of a race that every report shares: scores over seeds, costs at one length, Pareto fronts.

A contender's quality is the mean over its seeds, its spread the sample standard deviation. On the front of quality
against a cost stands whoever no other contender beats: as good or better at no more than the same cost. Costs within
`TOLERANCE` of one another count as the same, or parameters matched to a few percent would be a contest.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass, field

from formwright.race.records import Contender, Race, Trial

TOLERANCE = 0.03
METRICS = {
    "bits_per_byte": "bits per byte",
    "accuracy": "accuracy",
    "mse": "MSE",
    "mae": "MAE",
    "rmse": "RMSE",
    "loss": "loss",
}
COSTS = {
    "params": "Parameters",
    "seconds": "Training time",
    "forward": "Forward latency",
    "state": "Decode state",
    "peak": "Peak memory",
    "decode": "Decode time a token",
}


@dataclass(frozen=True)
class Spread:
    """A score over seeds. `sd` is None where there is one seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass
class Row:
    """One contender's line. `costs` has the keys of COSTS, None where not measured; `fronts` those it stands on."""

    contender: Contender
    colour: int
    quality: Spread | None = None
    rank: int | None = None
    seeds: int = 0
    rate: float | None = None
    costs: dict[str, float | None] = field(default_factory=dict)
    fronts: list[str] = field(default_factory=list)
    failure: str | None = None

    @property
    def name(self) -> str:
        return self.contender.name


@dataclass
class Table:
    """The leaderboard: rows best first, then unscored ones; failed contenders apart; what the scores mean."""

    rows: list[Row]
    failed: list[Row]
    metric: str
    label: str
    lower: bool
    split: str
    places: dict[str, tuple[int, int]]

    @property
    def scored(self) -> list[Row]:
        return [row for row in self.rows if row.quality is not None]

    @property
    def everyone(self) -> list[Row]:
        return self.rows + self.failed

    @property
    def percent(self) -> bool:
        return self.metric.endswith("accuracy")

    def score(self, value: float | None) -> str:
        """A score in words: percent for accuracies, else as many decimals as give the largest four digits."""
        if value is None or not math.isfinite(value):
            return "–"
        if self.percent:
            return f"{100 * value:.2f}%"
        largest = max((abs(row.quality.mean) for row in self.scored), default=abs(value))
        decimals = 3 if largest == 0 else min(8, max(0, 3 - math.floor(math.log10(largest))))
        return f"{value:,.{decimals}f}"

    def spread(self, quality: Spread | None) -> str:
        """Mean ± standard deviation, or the mean alone of one seed."""
        if quality is None:
            return "–"
        return self.score(quality.mean) + (f" ± {self.score(quality.sd)}" if quality.sd is not None else "")


def tabulate(race: Race) -> Table:
    """The leaderboard of a loaded race, finished or not."""
    metric, lower = race.source.get("metric", "loss"), bool(race.source.get("lower_is_better", True))
    label, unit = METRICS.get(metric, metric.replace("_", " ")), race.source.get("unit") or ""
    if unit and unit.lower() not in (label.lower(), metric.lower(), "%", "fraction"):
        label = f"{label} ({unit})"
    rows = [
        Row(contender, colour=i, failure=failure(contender))
        for i, contender in enumerate(sorted(race.contenders, key=lambda c: c.position))
    ]
    running = [row for row in rows if row.failure is None]
    failed = [row for row in rows if row.failure is not None]
    split = _split(race, [row.contender for row in running], metric)
    places = {kind: place for kind in ("forward", "decode") if (place := common_place(running, kind))}
    for row in running:
        _fill(row, metric, split, places)
    scored = [row for row in running if row.quality is not None]
    scored.sort(key=lambda row: row.quality.mean if lower else -row.quality.mean)
    for rank, row in enumerate(scored, 1):
        row.rank = rank
    for cost in ("params", "seconds", "forward", "state"):
        measured = [row for row in scored if row.costs[cost] is not None]
        if matched([row.costs[cost] for row in measured]):
            continue
        flags = pareto_front([(row.quality.mean, row.costs[cost]) for row in measured], lower)
        for row, best in zip(measured, flags, strict=True):
            row.fronts += [cost] if best else []
    return Table([*scored, *(r for r in running if r.quality is None)], failed, metric, label, lower, split, places)


def failure(contender: Contender) -> str | None:
    """Why a contender has no result and will have none, or None."""
    if contender.error:
        return contender.error
    main = [trial for trial in contender.trials if trial.phase == "main"]
    if main and all(trial.status in ("failed", "diverged") for trial in main):
        causes = list(dict.fromkeys(trial.error or trial.status for trial in main))
        return "; ".join(causes[:3])
    return None


def score_of(trial: Trial, metric: str, split: str) -> float | None:
    """A trial's score: the one written at its end, or for 'validation' the last of its curve. None if there is none."""
    if trial.status in ("failed", "diverged"):
        return None
    value = trial.scores.get(split, {}).get(metric)
    if value is None and split == "validation":
        curve = [p for p in trial.points if p.split == "validation" and p.score == metric and math.isfinite(p.value)]
        value = max(curve, key=lambda p: p.step).value if curve else None
    return value if value is not None and math.isfinite(value) else None


def pareto_front(points: list[tuple[float, float]], lower: bool) -> list[bool]:
    """Which of the (quality, cost) points no other one beats; costs within TOLERANCE are equal."""

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        gain = (b[0] - a[0]) if lower else (a[0] - b[0])
        cheaper = a[1] < b[1] * (1 - TOLERANCE)
        dearer = a[1] > b[1] * (1 + TOLERANCE)
        return (gain > 0 and not dearer) or (gain == 0 and cheaper)

    return [not any(beats(other, point) for other in points) for point in points]


def matched(costs: list[float]) -> bool:
    """Whether the costs are all one within TOLERANCE, so that nobody can be better in them."""
    return not costs or max(costs) <= min(costs) * (1 + TOLERANCE)


def common_place(rows: list[Row], kind: str) -> tuple[int, int] | None:
    """The longest (length, batch) among those at which the most contenders were measured in that kind of work."""
    measured = [{(c.length, c.batch) for c in row.contender.costs if c.kind == kind} for row in rows]
    measured = [places for places in measured if places]
    if not measured:
        return None
    counts = Counter(place for places in measured for place in places)
    return max(counts, key=lambda place: (counts[place], place[0], -place[1]))


def cost_at(contender: Contender, kind: str, place: tuple[int, int] | None):
    """The measured cost of that kind at (length, batch), or None."""
    return next((c for c in contender.costs if c.kind == kind and (c.length, c.batch) == place), None)


def _fill(row: Row, metric: str, split: str, places: dict[str, tuple[int, int]]) -> None:
    contender = row.contender
    main = [trial for trial in contender.trials if trial.phase == "main"]
    values = [value for trial in main if (value := score_of(trial, metric, split)) is not None]
    row.quality, row.seeds = (Spread(tuple(values)) if values else None), len(main)
    good = [trial for trial in main if trial.status == "done"]
    forward, decode = (cost_at(contender, kind, places.get(kind)) for kind in ("forward", "decode"))
    row.rate = _mean(trial.tokens_per_second for trial in good)
    row.costs = {
        "params": contender.params,
        "seconds": _mean(trial.seconds for trial in good),
        "forward": forward and forward.milliseconds,
        "peak": forward and forward.peak_bytes,
        "decode": decode and decode.milliseconds,
        "state": decode and decode.state_bytes,
    }


def _split(race: Race, contenders: list[Contender], metric: str) -> str:
    """'test' once it can rank everyone; 'validation' while some contender of an unfinished race lacks a test score."""
    tested = [any(score_of(t, metric, "test") is not None for t in c.trials if t.phase == "main") for c in contenders]
    if race.finished or race.status == "done":
        return "test" if any(tested) else "validation"
    return "test" if tested and all(tested) else "validation"


def _mean(values) -> float | None:
    values = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(values) if values else None


def humanise(value: float | None, unit: str = "") -> str:
    """A figure for people. Units: '' for counts (2.03M), 'bytes' (12.4 MB), 'seconds' (4 min 12 s), 'ms' (0.420)."""
    if value is None or not math.isfinite(value):
        return "–"
    if unit == "seconds":
        return _duration(value)
    if unit == "ms":
        return f"{value:,.0f}" if value >= 100 else _digits(value)
    step = next((s for s in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(value) >= 0.9995 * s[0]), (1, ""))
    if unit == "bytes":
        return "0 B" if value == 0 else f"{_digits(value / step[0])} {step[1]}B"
    letter = "B" if step[1] == "G" and unit == "" else step[1]
    return (f"{value:g}" if step[0] == 1 and value == int(value) else _digits(value / step[0])) + letter


def _digits(value: float) -> str:
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")  # first, so that 0.9996 has the decimals of 1
    return f"{value:.{min(max(0, 2 - math.floor(math.log10(abs(rounded)))), 6)}f}"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{_digits(seconds)} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = round(seconds / 60)
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
