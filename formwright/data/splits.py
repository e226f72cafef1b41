"""Where a series is cut into training, validation and test, in the order of time.

70/10/20      the default: int(0.7 n) rows, the rest, int(0.2 n) rows
60/20/20      or any other three shares in per cent
ett           12, 4 and 4 months of 30 days, what lies behind them left out: the split under which the ETT files are
              compared, "Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting", arXiv
              2012.07436, 2020; files whose names begin with ETTh or ETTm (of hours, of 15 minutes) are split so
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from formwright.data.source import DataError

if TYPE_CHECKING:
    import pandas as pd

Bounds = tuple[int, int, int]
_MONTHS = (12, 16, 20)


def shares(rows: int, parts: tuple[float, float, float] = (70, 10, 20)) -> Bounds:
    """Rows where the parts end, of shares in per cent; the validation part takes up what rounding leaves."""
    return int(rows * (parts[0] / 100)), rows - int(rows * (parts[2] / 100)), rows


def months(rows: int, step: pd.Timedelta | None) -> Bounds | None:
    """Where the 12, 16 and 20 months of the ETT split end; None where the step or the number of rows forbids it."""
    import pandas as pd

    month = pd.Timedelta(days=30)
    if step is None or step <= pd.Timedelta(0) or month % step != pd.Timedelta(0):
        return None
    ends = tuple(int(n * (month // step)) for n in _MONTHS)
    return ends if ends[-1] <= rows else None


def read(name: str, rows: int, step: pd.Timedelta | None, asked: str | None = None) -> tuple[Bounds, list[str]]:
    """What `asked` says, else what a file's name implies -> bounds and notes. Raises DataError."""
    implied = re.match(r"ETT[hm]", name) is not None
    if asked is None and not implied:
        return shares(rows), []
    if asked is None or asked.strip().lower() == "ett":
        bounds = months(rows, step)
        if bounds is not None:
            left = f"; the last {rows - bounds[2]} rows are left out" if rows > bounds[2] else ""
            why = f", as the name {name} implies (splits=70/10/20 for shares)" if asked is None else ""
            return bounds, [f"Split as ETT files are: 12, 4 and 4 months of 30 days{why}{left}."]
        lack = "its times have no even step" if step is None else f"{rows} rows of {step} are fewer than 20 months"
        if asked is None:
            return shares(rows), [f"Split 70/10/20, not as ETT files are: {lack}."]
        raise DataError(f"{name}: splits=ett takes 20 months of 30 days, but {lack}; give shares such as 70/10/20")
    try:
        parts = tuple(float(part) for part in asked.split("/"))
    except ValueError:
        parts = ()
    if len(parts) != 3 or min(parts) <= 0 or abs(sum(parts) - 100) > 1e-6:
        raise DataError(f"splits is {asked!r}, but must be ett, or three shares of 100 such as 70/10/20")
    return shares(rows, parts), [f"Split {asked} in the order of time."]
