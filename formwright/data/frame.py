"""CSV and Parquet files as pandas frames, strictly: a row with too few or too many fields, a file that is no UTF-8, a
missing header are found and named, never patched over.

CSV: the separator is the commonest of , ; tab | in the first line; decimals may be written with a comma where the
separator is another; a first line of numbers means that there is no header.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING

from formwright.data.source import DataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

EXTENSIONS = frozenset({".csv", ".tsv", ".parquet", ".pq"})
_COMMA = re.compile(r"^\s*[+-]?\d+,\d+\s*$")


def read_frame(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """A CSV, TSV or Parquet file -> frame and notes. Raises DataError."""
    import pandas as pd

    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; give a file with a header line and rows of values")
    if path.suffix.lower() in (".parquet", ".pq"):
        try:
            frame = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is no readable Parquet file ({_first_line(error)})") from error
        notes: list[str] = []
        if not isinstance(frame.index, pd.RangeIndex):
            frame = frame.reset_index()
    else:
        frame, notes = _read_csv(path)
    frame.columns = [str(c) for c in frame.columns]
    if len(frame) == 0:
        raise DataError(f"{path} has a header but no rows; give a file with rows of values")
    first = frame.columns[0]
    if first in ("Unnamed: 0", "index", "") and pd.api.types.is_integer_dtype(frame[first]):
        steps = frame[first].diff().dropna()
        if (steps == 1).all():
            frame = frame.drop(columns=first)
            notes.append("Left out the first column: it only counts the rows.")
    blank = [c for c in frame.columns if frame[c].isna().all()]
    if blank:
        frame = frame.drop(columns=blank)
        notes.append(f"Left out column{'s' * (len(blank) > 1)} without any value: {', '.join(blank[:5])}.")
    if not len(frame.columns):
        raise DataError(f"{path} holds no values")
    return frame, notes


def _read_csv(path: Path) -> tuple[pd.DataFrame, list[str]]:
    import pandas as pd

    notes = []
    header, separator = _survey(path)
    repeated = sorted({cell for cell in header if cell and header.count(cell) > 1})
    named = not all(_is_number(cell) for cell in header)
    options = {"sep": separator, "encoding": "utf-8-sig", "low_memory": False, "skipinitialspace": True}
    if not named:
        options |= {"header": None, "names": [f"column{i + 1}" for i in range(len(header))]}
        repeated = []
        notes.append(f"The first line of {path.name} holds numbers, so its columns are called column1, column2, ...")
    if repeated:
        notes.append(
            f"Several columns are called {', '.join(repeated)}; the later ones are called {repeated[0]}.1, ..."
        )
    try:
        frame = pd.read_csv(path, **options)
        if separator != "," and any(_decimal_comma(frame[c]) for c in frame.columns):
            frame = pd.read_csv(path, decimal=",", **options)
            notes.append("Read numbers with a decimal comma.")
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path} is no readable CSV ({_first_line(error)})") from error
    return frame, notes


def _survey(path: Path) -> tuple[list[str], str]:
    """The header's cells and the separator, after every row was seen to have as many fields as the first."""
    header: list[str] = []
    separator = ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            while first and not first.strip():
                first = file.readline()
            bare = re.sub(r'"[^"]*"', "", first)
            separator = max(",;\t|", key=bare.count) if any(s in bare for s in ",;\t|") else ","
            file.seek(0)
            rows = csv.reader(file, delimiter=separator, skipinitialspace=True)
            for row in rows:
                if not row or (len(row) == 1 and not row[0].strip() and len(header) != 1):
                    continue
                if not header:
                    header = row
                elif len(row) != len(header):
                    raise DataError(
                        f"{path}, line {rows.line_num}: {len(row)} fields, but the first line has {len(header)}; "
                        "mend that line (put a field that holds the separator into quotes)"
                    )
    except UnicodeDecodeError as error:
        line, place = _bad_bytes(path)
        raise DataError(
            f"{path}, line {line}: not UTF-8 at byte {place}; convert the file "
            "(for example: iconv -f latin1 -t utf-8 old.csv > new.csv)"
        ) from error
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}; is this a CSV file?") from error
    if not header:
        raise DataError(f"{path} is empty; give a file with a header line and rows of values")
    return header, separator


def _bad_bytes(path: Path) -> tuple[int, int]:
    """Line (from 1) and offset of the first byte that is no UTF-8."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return number, offset + error.start
            offset += len(line)
    return number, offset


def numbers(column: pd.Series, notes: list[str]) -> np.ndarray | None:
    """A column as float64 (rows,), NaN where missing or infinite; None where it is no column of numbers. Text counts as
    numbers if at least nine in ten of its cells are; the others become missing, with a note."""
    import numpy as np
    import pandas as pd

    types = pd.api.types
    if types.is_datetime64_any_dtype(column) or types.is_timedelta64_dtype(column):
        return None
    if types.is_bool_dtype(column) or types.is_numeric_dtype(column):
        values = column.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        parsed = pd.to_numeric(column.astype("string").str.strip(), errors="coerce").astype("Float64")
        bad = parsed.isna() & column.notna()
        if bad.sum() > 0.1 * max(1, column.notna().sum()):
            return None
        values = parsed.to_numpy(dtype=np.float64, na_value=np.nan)
        if bad.any():
            row = int(np.flatnonzero(bad.to_numpy())[0])
            notes.append(
                f"Column {column.name}: cells that are no numbers count as missing, {int(bad.sum())} in all; the first "
                f"is {str(column.iloc[row])!r} in data row {row + 1}."
            )
    infinite = np.isinf(values)
    if infinite.any():
        notes.append(f"Column {column.name}: {int(infinite.sum())} infinite values count as missing.")
        values = np.where(infinite, np.nan, values)
    return values


def times(column: pd.Series) -> pd.Series | None:
    """A column of dates or times as datetime64, NaT where unreadable; None where it is no such column."""
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(column):
        return column.dt.tz_convert("UTC").dt.tz_localize(None) if column.dt.tz is not None else column
    if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return None
    text = column.astype("string").str.strip()
    sample = text.dropna().iloc[:50]
    if sample.empty or sample.str.contains(r"\d").mean() < 0.9 or pd.to_numeric(sample, errors="coerce").notna().all():
        return None
    if all(_parse_times(sample, day_first).notna().mean() < 0.9 for day_first in (False, True)):
        return None
    best = None
    for day_first in (False, True):
        read = _parse_times(text, day_first)
        better = best is None or read.notna().sum() > best.notna().sum()
        straighter = best is not None and read.notna().sum() == best.notna().sum()
        if better or (straighter and read.is_monotonic_increasing and not best.is_monotonic_increasing):
            best = read
    return best if best.notna().sum() >= 0.9 * text.notna().sum() else None


def _parse_times(text: pd.Series, day_first: bool) -> pd.Series:
    import warnings

    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = pd.to_datetime(text, errors="coerce", dayfirst=day_first)
        if pd.api.types.is_datetime64_any_dtype(read):
            return read.dt.tz_convert("UTC").dt.tz_localize(None) if read.dt.tz is not None else read
        return pd.to_datetime(text, errors="coerce", dayfirst=day_first, utc=True).dt.tz_localize(None)


def _decimal_comma(column: pd.Series) -> bool:
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        return False
    cells = column.dropna().astype("string").iloc[:200]
    return bool(len(cells)) and bool(cells.str.match(_COMMA).mean() > 0.9)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
