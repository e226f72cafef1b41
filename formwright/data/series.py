"""Multivariate series: forecast the next `horizon` steps of every variate from the last `input_length`.

Rows are in the order of time (sorted by the time column where there is one) and are split in that order, 70/10/20 or
as splits.py says. A training window lies wholly in the first part; the inputs of later windows may reach back into
earlier parts, their targets never. Each variate is z-scored by mean and deviation of the training rows alone.

Missing values: inputs are filled forward from the past, gaps at the beginning by the training mean; missing targets
stay NaN and are not scored. No value is ever filled from the future.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from formwright.data import baselines
from formwright.data import cache as caching
from formwright.data.frame import numbers, read_frame, times
from formwright.data.source import SPLITS, DataError, Scale, Source
from formwright.data.splits import shares

if TYPE_CHECKING:
    import pandas as pd

_TIME_NAMES = ("date", "time", "datetime", "timestamp", "ds", "year", "unix", "epoch", "utc")


def time_order(frame: pd.DataFrame, name: str) -> tuple[pd.DataFrame, list[str], pd.Timedelta | None]:
    """The frame sorted by its time column, without it; notes; the usual step, where times are dates.

    A time column is the first column of dates, or one of whole, strictly changing numbers that is called by a name of
    time. Raises DataError where a row's time can't be read, or where times repeat so often that several series must be
    stacked."""
    import pandas as pd

    for column in frame.columns:
        stamps = times(frame[column])
        if stamps is None and column.strip().lower() in _TIME_NAMES:
            values = numbers(frame[column], [])
            stamps = None if values is None or np.unique(values).size < len(values) else pd.Series(values)
        if stamps is not None:
            break
    else:
        return frame, [f"{name} has no time column: its rows are taken in the order of the file, equally spaced."], None
    unread = np.flatnonzero(stamps.isna().to_numpy())
    if len(unread):
        raise DataError(
            f"{name}, data row {int(unread[0]) + 1}: the time in column {column} is missing or can't be read; "
            "mend or remove the row"
        )
    repeats = int(stamps.duplicated().sum())
    if repeats > 0.2 * len(stamps):
        raise DataError(
            f"{name}: {repeats} of {len(stamps)} rows repeat a time in column {column}, so several series seem to be "
            "stacked; give a file with one row for each time"
        )
    notes = [f"Column {column} is the time; it orders the rows and is not forecast."]
    frame = frame.drop(columns=column)
    if not stamps.is_monotonic_increasing:
        order = np.argsort(stamps.to_numpy(), kind="stable")
        frame, stamps = frame.iloc[order].reset_index(drop=True), stamps.iloc[order]
        notes.append(f"The rows were not in the order of {column}; they have been sorted.")
    if repeats:
        notes.append(f"{repeats} rows repeat a time; all are kept, in the order of the file.")
    steps, step = np.diff(stamps.to_numpy()), None
    if len(steps):
        lengths, number = np.unique(steps, return_counts=True)
        if pd.api.types.is_datetime64_any_dtype(stamps):
            step = pd.Timedelta(lengths[number.argmax()])
        odd = int(len(steps) - number.max())
        if odd > 0.2 * len(steps) and pd.api.types.is_datetime64_any_dtype(stamps):
            odd = 0 if _calendar(pd.DatetimeIndex(stamps)) else odd
        if odd:
            notes.append(
                f"{odd} of {len(steps)} steps of time differ from the usual one; rows count as equally spaced."
            )
    return frame, notes, step


def season_by(step: pd.Timedelta | None) -> tuple[int, str] | None:
    """The rows of a season and its name, from the usual step of time: a day of steps that divide it, a week of days, a
    year of weeks, months or quarters. None for others."""
    import pandas as pd

    day = pd.Timedelta(days=1)
    if step is None or step <= pd.Timedelta(0):
        return None
    if step < day:
        return (day // step, "a day") if day % step == pd.Timedelta(0) else None
    days = step / day
    for low, high, rows, name in (
        (1, 1, 7, "a week"),
        (7, 7, 52, "a year"),
        (28, 31, 12, "a year"),
        (90, 92, 4, "a year"),
    ):
        if low <= days <= high:
            return rows, name
    return None


def _calendar(index: pd.DatetimeIndex) -> bool:
    """Whether the times are months, quarters, years: equal steps of the calendar, unequal in days."""
    months = np.diff(index.year * 12 + index.month)
    return bool(len(months)) and bool((months == months[0]).all()) and months[0] > 0


def variates(frame: pd.DataFrame, name: str) -> tuple[np.ndarray, list[str], list[str]]:
    """The numeric columns -> values (rows, V) float64 with NaN, their names, notes."""
    notes: list[str] = []
    columns, names, dropped = [], [], []
    for column in frame.columns:
        values = numbers(frame[column], notes)
        if values is None:
            dropped.append(column)
        else:
            columns.append(values)
            names.append(column)
    if dropped:
        notes.append(f"Left out column{'s' * (len(dropped) > 1)} without numbers: {', '.join(dropped)}.")
    if not columns:
        raise DataError(f"{name} has no column of numbers to forecast; its columns are {', '.join(frame.columns)}")
    return np.stack(columns, 1), names, notes


def fill(values: np.ndarray) -> np.ndarray:
    """z-scored values (rows, V) with each gap filled from the past; a gap at the beginning becomes 0, the mean."""
    if not np.isnan(values).any():
        return values.astype(np.float32, copy=False)
    rows = np.where(np.isnan(values), -1, np.arange(len(values))[:, None])
    last = np.maximum.accumulate(rows, axis=0)
    return np.where(last < 0, 0.0, np.take_along_axis(values, np.maximum(last, 0), 0)).astype(np.float32)


def open_series(
    name: str,
    values: np.ndarray,
    names: list[str],
    notes: list[str],
    *,
    forecast: int,
    input_length: int | None = None,
    bounds: tuple[int, int, int] | None = None,
    season: tuple[int, str] | None = None,
    cache: str | None = None,
) -> Source:
    """values (rows, V) with NaN where missing -> a Source of windows.

    bounds are the rows where the three parts end (70/10/20 without); what lies behind the last is left out. season is
    its number of rows and what it is, without it that of the highest autocorrelation. Raises DataError where a part is
    too short."""
    notes = list(notes)
    bounds = [0, *(bounds or shares(len(values)))]
    values, rows, horizon = values[: bounds[3]], bounds[3], forecast
    shortest = min(bounds[2] - bounds[1], bounds[3] - bounds[2])
    if horizon > shortest:
        raise DataError(
            f"{name} has {rows} rows, its validation part {bounds[2] - bounds[1]}, its test part {rows - bounds[2]}: "
            f"shorter than forecast={horizon}; "
            + (f"forecast at most {shortest} steps, or give a longer series" if shortest else "give a longer series")
        )
    if input_length is None:
        input_length = max(1, min(96, (bounds[1] - horizon) // 2))
        notes.append(f"Windows read {input_length} steps and forecast {horizon} (input_length sets the former).")
    room = bounds[1] - input_length - horizon + 1
    if room < 1:
        raise DataError(
            f"{name}: the training part has {bounds[1]} rows, fewer than one window of input_length={input_length} "
            f"plus forecast={horizon}; take a smaller input_length, or give a longer series"
        )
    absent = np.isnan(values[: bounds[1]]).all(0)
    if absent.any():
        gone = [n for n, a in zip(names, absent, strict=True) if a]
        notes.append(f"Left out column{'s' * (len(gone) > 1)} without a value in the training part: {', '.join(gone)}.")
        values, names = values[:, ~absent], [n for n, a in zip(names, absent, strict=True) if not a]
        if not names:
            raise DataError(f"{name}: no column has a value in the training part (the first {bounds[1]} rows)")
    scale = Scale.fit(values[: bounds[1]].astype(np.float64))
    flat = [n for n, column in zip(names, values[: bounds[1]].T, strict=True) if np.nanstd(column) == 0]
    if flat:
        notes.append(f"Constant in the training part: {', '.join(flat)}.")
    missing = int(np.isnan(values).sum())
    if missing:
        which = [n for n, some in zip(names, np.isnan(values).any(0), strict=True) if some]
        notes.append(
            f"{missing} missing values in {', '.join(which[:5])}{', ...' * (len(which) > 5)}: inputs are filled "
            "forward from the past (gaps at the beginning by the training mean); missing targets are not scored."
        )
    scaled = scale.forward(values)
    inputs, targets = torch.from_numpy(fill(scaled)), torch.from_numpy(scaled)
    starts = {"train": (0, room)}
    for split, a, b in zip(SPLITS[1:], bounds[1:], bounds[2:], strict=False):
        first = max(a - input_length, 0)
        starts[split] = (first, b - horizon - input_length + 1 - first)

    fingerprint = caching.digest("series", caching.array_hash(values), names, input_length, horizon, bounds[1:])
    if season is None:
        period = baselines.season_of(inputs[: bounds[1]].numpy())
        season = None if period is None else (period, "the highest autocorrelation of the training part")
    if season is not None and season[0] > bounds[1] // 2:
        season = None
    if season is not None:
        notes.append(f"A season, for the forecast from a season ago, is {season[0]} rows: {season[1]}.")
    scores = baselines.kept(
        cache,
        caching.digest(fingerprint, season),
        lambda: baselines.forecasts(
            inputs.numpy(), targets.numpy(), starts, input_length, horizon, season and season[0]
        ),
    )

    def take(split: str, index: np.ndarray, epoch: np.ndarray) -> tuple[Tensor, Tensor]:
        at = torch.from_numpy(starts[split][0] + index)[:, None]
        return (
            inputs[at + torch.arange(input_length)],
            targets[at + input_length + torch.arange(horizon)],
        )

    def derive(means: dict[str, float], split: str) -> dict[str, float]:
        if len(names) > 1:
            return {}
        unit = float(scale.deviation[0])
        return {"mae_in_units": means["mae"] * unit, "rmse_in_units": means["mse"] ** 0.5 * unit}

    def prepare(path: str) -> tuple[Tensor, list[str]]:
        frame, _ = read_frame(Path(path))
        frame, _, _ = time_order(frame, str(path))
        lacking = [n for n in names if n not in frame.columns]
        if lacking:
            raise DataError(
                f"{path} lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)} of the training data"
            )
        new, _, _ = variates(frame[names], str(path))
        if new.shape[1] != len(names):
            raise DataError(f"{path}: of {', '.join(names)} not every column holds numbers")
        if len(new) < input_length:
            raise DataError(f"{path} has {len(new)} rows, but a forecast reads the last {input_length}")
        window = fill(scale.forward(new))[-input_length:]
        return torch.from_numpy(np.ascontiguousarray(window))[None], [Path(path).name]

    return Source(
        name=name,
        kind="series",
        embed="series",
        head="forecast",
        facts={"variates": len(names), "input_length": input_length, "horizon": horizon},
        shape=(input_length, len(names)),
        metric="mse",
        lower_is_better=True,
        unit="z-scored",
        counts={split: number for split, (_, number) in starts.items()},
        take=take,
        tokens_per_item=input_length,
        fingerprint=fingerprint,
        notes=notes,
        names=names,
        baselines=scores,
        scale=scale,
        derive=derive,
        prepare=prepare,
    )
