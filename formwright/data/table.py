"""Tables: predict one column from the others.

A target of text, of truth values, or of at most 20 different whole numbers is classified; any other number is regressed
(z-scored). Rows are split 80/10/10 at random by seed, classes in equal shares.

Columns of numbers are z-scored, their missing values filled by the training median; dates become days; all other
columns are categories: code 0 stands for "missing, or never seen in the training rows". Text columns of more than 1000
kinds, or where over half of the rows differ, are left out, with a note; so are rows without a target.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from formwright.data import baselines
from formwright.data import cache as caching
from formwright.data.frame import numbers, read_frame, times
from formwright.data.source import DataError, Scale, Source, shuffled

if TYPE_CHECKING:
    import pandas as pd

FEW = 20


@dataclass
class Columns:
    """How the inputs of a table are read: numeric columns with training medians and scale, categories with codes."""

    numeric: list[str]
    dates: list[str]
    categorical: dict[str, dict[str, int]]
    median: np.ndarray
    scale: Scale

    def encode(self, frame: pd.DataFrame) -> np.ndarray:
        """frame -> (rows, numeric + categorical) float32."""
        lacking = [c for c in [*self.numeric, *self.categorical] if c not in frame.columns]
        if lacking:
            raise DataError(f"the table lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}")
        raw = self.raw(frame)
        parts = [self.scale.forward(np.where(np.isnan(raw), self.median, raw))] if self.numeric else []
        for column, codes in self.categorical.items():
            parts.append(np.array([[codes.get(v, 0)] for v in labels(frame[column])], dtype=np.float32))
        return np.concatenate(parts, axis=1)

    def raw(self, frame: pd.DataFrame) -> np.ndarray:
        """The numeric columns (rows, numeric) float64, NaN where missing."""
        found = [days(frame[c]) if c in self.dates else numbers(frame[c], []) for c in self.numeric]
        for column, values in zip(self.numeric, found, strict=True):
            if values is None:
                raise DataError(f"column {column} held {'dates' if column in self.dates else 'numbers'} in training")
        return np.stack(found, 1) if found else np.zeros((len(frame), 0))


def days(column: pd.Series) -> np.ndarray | None:
    """A column of dates as days since 1970 (rows,), NaN where missing; None where it is no such column."""
    stamps = times(column)
    if stamps is None:
        return None
    seconds = stamps.to_numpy().astype("datetime64[s]").astype(np.int64).astype(np.float64)
    return np.where(stamps.isna().to_numpy(), np.nan, seconds / 86400)


def labels(column: pd.Series) -> list[str | None]:
    """A column's cells as text, None where missing; whole numbers without a decimal point."""
    out: list[str | None] = []
    for value, missing in zip(column.tolist(), column.isna().tolist(), strict=True):
        whole = isinstance(value, float) and not missing and value.is_integer()
        out.append(None if missing else str(int(value)) if whole else str(value).strip())
    return out


def _columns(frame: pd.DataFrame, train: np.ndarray, name: str, notes: list[str]) -> Columns:
    """Decide how each column is read; medians, scales and categories come from the training rows."""
    numeric, dates, categorical, dropped = [], [], {}, []
    for column in frame.columns:
        if numbers(frame[column], notes) is not None:
            numeric.append(column)
        elif days(frame[column]) is not None:
            numeric.append(column)
            dates.append(column)
        else:
            cells = labels(frame[column])
            seen = {cells[i] for i in train} - {None}
            if len(seen) > 1000 or (len(train) >= 20 and len(seen) > 0.5 * len(train)):
                dropped.append(column)
            elif seen:
                categorical[column] = {value: i + 1 for i, value in enumerate(sorted(seen))}
    if dropped:
        notes.append(f"Left out text column{'s' * (len(dropped) > 1)} with too many kinds: {', '.join(dropped)}.")
    if dates:
        notes.append(f"Dates in {', '.join(dates)} are read as days.")
    reader = Columns(numeric, dates, categorical, np.zeros(len(numeric)), Scale(np.zeros(0), np.ones(0)))
    values = reader.raw(frame)
    known = ~np.isnan(values[train]).all(0)
    if not known.all():
        gone = [c for c, k in zip(numeric, known, strict=True) if not k]
        notes.append(f"Left out column{'s' * (len(gone) > 1)} without a value in the training rows: {', '.join(gone)}.")
        reader.numeric, values = [c for c in numeric if c not in gone], values[:, known]
    if not reader.numeric and not reader.categorical:
        raise DataError(f"{name} has no column to predict from beside the target")
    if reader.numeric:
        reader.median = np.nanmedian(values[train], axis=0)
        reader.scale = Scale.fit(np.where(np.isnan(values), reader.median, values)[train])
        gaps = {c: int(n) for c, n in zip(reader.numeric, np.isnan(values).sum(0), strict=True) if n}
        if gaps:
            which = ", ".join(f"{c} ({n})" for c, n in list(gaps.items())[:5]) + ", ..." * (len(gaps) > 5)
            notes.append(f"Missing numbers in {which} are filled by the training median.")
    holes = {c: int(frame[c].isna().sum()) for c in reader.categorical if frame[c].isna().any()}
    if holes:
        which = ", ".join(f"{c} ({n})" for c, n in list(holes.items())[:5]) + ", ..." * (len(holes) > 5)
        notes.append(f"Missing values in {which} are a category of their own.")
    return reader


def classifies(column: pd.Series) -> bool:
    """Whether a target is classified: text, truth values, or at most 20 different whole numbers."""
    import pandas as pd

    if pd.api.types.is_bool_dtype(column):
        return True
    values = numbers(column, [])
    if values is None:
        return True
    seen = np.unique(values[~np.isnan(values)])
    return len(seen) <= FEW and bool((seen == np.rint(seen)).all()) and len(seen) <= 0.5 * len(values)


def open_table(
    name: str, frame: pd.DataFrame, notes: list[str], *, target: str, seed: int = 0, cache: str | None = None
) -> Source:
    """A frame and its target column -> a Source. Raises DataError where the target is unknown, has one value only, or
    names every row."""
    notes = list(notes)
    if target not in frame.columns:
        near = get_close_matches(target, frame.columns, 1)
        hint = f"did you mean {near[0]}?" if near else f"the columns are {', '.join(frame.columns[:20])}"
        raise DataError(f"{name} has no column {target!r}; {hint}")
    known = frame[target].notna()
    if not known.all():
        notes.append(f"Left out {int((~known).sum())} rows without a value of {target}.")
        frame = frame[known].reset_index(drop=True)
    if len(frame) < 10:
        raise DataError(f"{name} has {len(frame)} rows with a target; a table needs at least 10")
    inputs = frame.drop(columns=target)
    scale: Scale | None = None
    if classifies(frame[target]):
        cells = labels(frame[target])
        names = sorted(set(cells), key=_natural)
        if len(names) < 2:
            raise DataError(f"{name}: every row has the same {target}, {names[0]!r}; there is nothing to learn")
        if len(names) > 0.5 * len(cells):
            raise DataError(
                f"{name}: {target} has {len(names)} different values in {len(cells)} rows, so it names rows rather "
                "than classes; choose another target"
            )
        codes = {value: i for i, value in enumerate(names)}
        answers = np.array([codes[c] for c in cells], dtype=np.int64)
        parts = shuffled(len(frame), seed, answers)
        facts = {"classes": len(names)}
        notes.append(f"{target} has {len(names)} classes: the target is classified.")
    else:
        names = [target]
        values = numbers(frame[target], notes)[:, None]
        parts = shuffled(len(frame), seed)
        scale = Scale.fit(values[parts["train"]])
        if np.nanstd(values) == 0:
            raise DataError(f"{name}: every row has the same {target}; there is nothing to learn")
        answers = scale.forward(values)
        facts = {"outputs": 1}
        notes.append(f"{target} holds numbers: the target is regressed.")
    reader = _columns(inputs, parts["train"], name, notes)
    encoded = reader.encode(inputs)
    facts |= {
        "numeric": (len(reader.numeric),),
        "categories": tuple(len(codes) + 1 for codes in reader.categorical.values()),
    }

    def prepare(path: str) -> tuple[Tensor, list[str]]:
        new, _ = read_frame(Path(path))
        try:
            return torch.from_numpy(reader.encode(new)), [f"row {i + 1}" for i in range(len(new))]
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    return of_arrays(
        name,
        "table",
        "columns",
        torch.from_numpy(encoded),
        torch.from_numpy(answers),
        parts,
        facts,
        notes,
        names,
        caching.digest(
            "table", list(frame.columns), target, seed, caching.array_hash(encoded), caching.array_hash(answers)
        ),
        scale=scale,
        prepare=prepare,
        cache=cache,
    )


def of_arrays(
    name: str,
    kind: str,
    embed: str,
    inputs: Tensor,
    answers: Tensor,
    parts: dict[str, np.ndarray],
    facts: dict,
    notes: list[str],
    names: list[str],
    fingerprint: str,
    *,
    scale: Scale | None = None,
    prepare=None,
    features: baselines.Features | None = None,
    cache: str | None = None,
) -> Source:
    """Inputs (rows, ...) with answers, int64 (rows,) classes or (rows, N) tokens, or float32 (rows, outputs), split by
    `parts` -> Source. features are what a linear model is given of inputs that are neither columns nor series."""
    classes = not answers.is_floating_point()
    table = {split: torch.from_numpy(np.asarray(index)) for split, index in parts.items()}

    def take(split: str, index: np.ndarray, epoch: np.ndarray) -> tuple[Tensor, Tensor]:
        rows = table[split][torch.from_numpy(index)]
        return inputs[rows], answers[rows]

    def derive(means: dict[str, float], split: str) -> dict[str, float]:
        if classes or answers.shape[1] != 1:
            return {}
        spread = float(np.nanvar(answers[table[split]].numpy().astype(np.float64)))
        more = {"r2": 1 - means["mse"] / spread} if spread > 0 else {}
        if scale is not None:
            unit = float(scale.deviation[0])
            more |= {"mae_in_units": means["mae"] * unit, "rmse_in_units": means["mse"] ** 0.5 * unit}
        return more

    features = features or _features(embed, inputs.numpy(), facts)
    drawn = caching.digest(fingerprint, {split: caching.array_hash(index) for split, index in parts.items()})
    scores = baselines.kept(cache, drawn, lambda: baselines.items(answers.numpy(), parts, features))
    shape = tuple(inputs.shape[1:])
    return Source(
        name=name,
        kind=kind,
        embed=embed,
        head="classify" if classes else "regress",
        facts=facts,
        shape=shape,
        metric="accuracy" if classes else "mse",
        lower_is_better=not classes,
        unit="" if classes else "z-scored",
        counts={split: len(index) for split, index in parts.items()},
        take=take,
        tokens_per_item=shape[0],
        fingerprint=fingerprint,
        notes=notes,
        names=names,
        baselines=scores,
        scale=scale,
        derive=derive,
        prepare=prepare,
    )


def _features(embed: str, inputs: np.ndarray, facts: dict) -> baselines.Features | None:
    """What a linear model sees of the inputs: columns, each category one, or all of a series; None of tokens."""
    if embed == "columns":
        return lambda rows: baselines.encoded(inputs[rows], facts["categories"])
    if embed == "series":
        return lambda rows: inputs[rows].reshape(len(rows), -1)
    return None


def _natural(value: str) -> tuple[bool, float, str]:
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value
