"""From what a user names to a Source: a path, a bundled name, or a task's text; the one place that decides which kind
of data it is and which options suit it."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from formwright.data import arrays, bundled, frame, images, synthetic, text
from formwright.data.source import DataError, Source
from formwright.data.tasks import TASKS

_LEAST = {"length": 2, "vocab": 300, "forecast": 1, "image_size": 4, "input_length": 1}
_HOSTILE = {
    ".pdf": "save its text as .txt", ".docx": "save its text as .txt", ".doc": "save its text as .txt",
    ".epub": "save its text as .txt", ".xlsx": "save the sheet as .csv", ".xls": "save the sheet as .csv",
    ".zip": "unpack it and give the folder", ".tar": "unpack it and give the folder",
    ".gz": "unpack it first", ".bz2": "unpack it first", ".xz": "unpack it first", ".zst": "unpack it first",
    ".7z": "unpack it and give the folder", ".npy": "save it by numpy.savez(path, x=..., y=...)",
    ".pkl": "save it as .csv, .parquet or .npz", ".h5": "save it as .csv, .parquet or .npz",
}  # fmt: skip


def open_source(
    spec: str | os.PathLike[str],
    *,
    length: int | None = None,
    vocab: int | None = None,
    forecast: int | None = None,
    target: str | None = None,
    image_size: int | None = None,
    input_length: int | None = None,
    splits: str | None = None,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
) -> Source:
    """Open data for training.

    spec          a path, a bundled name (`python-source`, `digits`, `macro`, ...), or a task (`mqar(pairs=16)`)
    length        text: tokens a window holds (256)
    vocab         text: learn so many byte-pair tokens; without it, bytes
    forecast      CSV, Parquet, .npz: a series, forecast this many steps
    target        CSV, Parquet: a table, predict this column
    image_size    folders of class folders of pictures: scale them to this many pixels
    input_length  series: steps a window reads (at most 96)
    splits        CSV, Parquet series: shares of training, validation, test (70/10/20), or ett, its 12/4/4 months
    seed          which items are drawn into which split, and a task's items
    cache         folder for what is worked out once (FORMWRIGHT_CACHE, else the user's cache folder)

    Raises DataError, with one sentence that says what to do, where the data or the options can't be used."""
    given: dict[str, Any] = {
        "length": length,
        "vocab": vocab,
        "forecast": forecast,
        "target": target,
        "image_size": image_size,
        "input_length": input_length,
        "splits": splits,
    }
    given = {name: value for name, value in given.items() if value is not None}
    for name, least in _LEAST.items():
        value = given.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise DataError(f"{name} is {value!r}, but must be a whole number of at least {least}")
    written = os.fspath(spec)
    cache = None if cache is None else os.fspath(cache)
    if not written.strip():
        raise DataError("no data are named; give a path, a bundled name such as python-source, or a task such as mqar")
    path = Path(os.path.expanduser(written))
    there = os.path.exists(path)  # unlike Path.exists, also answers for names that no file can have
    if written in bundled.NAMES:
        source = _bundled(written, given, seed, cache)
        if there:
            source.notes.append(f"This is the bundled {written}; write ./{written} for the path of that name.")
    elif there and path.is_dir():
        source = _folder(path, given, seed, cache)
    elif there:
        source = _file(path, given, seed, cache)
    elif synthetic.is_task(written):
        _allow(f"{written} is a synthetic task, whose options stand inside its brackets", given, ())
        source = synthetic.open_task(written, seed=seed, cache=cache)
    else:
        raise DataError(_missing(written, path))
    kept = str(path.resolve()) if there and written not in bundled.NAMES else written
    source.options = {"spec": kept, **given, "seed": seed, "cache": cache}
    return source


def _allow(what: str, given: dict[str, Any], allowed: tuple[str, ...]) -> None:
    """Raise DataError if an option was given that this kind of data has no use for."""
    for name in given:
        if name not in allowed:
            rest = f"; its options are {', '.join(allowed)}" if allowed else ""
            raise DataError(f"{what}: {name}={given[name]!r} does not apply, leave it out{rest}")


def _bundled(name: str, given: dict[str, Any], seed: int, cache: str | None) -> Source:
    if name in bundled.TEXTS:
        _allow(f"{name} is text", given, ("length", "vocab"))
        _, files = bundled.python_files()
        return text.open_text(name, files, [], cache=cache, **given)
    if name in bundled.SERIES:
        from formwright.data.series import open_series

        _allow(f"{name} is a series", given, ("forecast", "input_length"))
        values, names, notes, season = bundled.series(name)
        given = {"forecast": bundled.SERIES[name]} | given
        return open_series(name, values, names, notes, season=season, cache=cache, **given)
    if name in bundled.TABLES:
        from formwright.data.table import open_table

        _allow(f"{name} is a table", given, ("target",))
        rows, target = bundled.table(name)
        return open_table(name, rows, [], target=given.get("target", target), seed=seed, cache=cache)
    _allow(f"{name} is a set of pictures of 8 x 8", given, ())
    return bundled.digits(seed, cache)


def _folder(path: Path, given: dict[str, Any], seed: int, cache: str | None) -> Source:
    pictures = len(images.pictures_below(path))
    texts = sum(p.suffix.lower() in text.EXTENSIONS for p in path.rglob("*") if p.is_file())
    tables = [p for p in path.glob("*") if p.suffix.lower() in frame.EXTENSIONS | {".npz"}]
    if pictures and pictures >= texts:
        _allow(f"{path.name} is a folder of pictures", given, ("image_size",))
        return images.open_images(path.name, path, image_size=given.get("image_size"), seed=seed, cache=cache)
    if tables and not texts:
        raise DataError(f"{path} is a folder of tables; give one file, such as {sorted(tables)[0]}")
    if not any(path.iterdir()):
        raise DataError(f"{path} is an empty folder; put text files, or class folders of pictures, into it")
    _allow(f"{path.name} is a folder of text", given, ("length", "vocab"))
    files, notes = text.gather(path)
    return text.open_text(path.name, files, notes, cache=cache, **given)


def _file(path: Path, given: dict[str, Any], seed: int, cache: str | None) -> Source:
    extension = path.suffix.lower()
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} may not be read; change its permissions")
    if extension in frame.EXTENSIONS:
        return _frame(path, dict(given), seed, cache)
    if extension == ".npz":
        _allow(f"{path.name} is a file of arrays", given, ("forecast", "input_length"))
        if "input_length" in given and "forecast" not in given:
            raise DataError(f"{path.name}: input_length needs forecast beside it, the number of steps to forecast")
        return arrays.open_arrays(path, seed=seed, cache=cache, **given)
    if extension in images.EXTENSIONS:
        raise DataError(f"{path} is a single picture; give a folder with one folder of pictures for each class")
    if extension in _HOSTILE:
        raise DataError(f"{path}: files of type {extension} are not read; {_HOSTILE[extension]}")
    if extension and extension not in text.EXTENSIONS:
        raise DataError(
            f"{path}: the extension {extension} is not known; text is .txt (.md, .py, ...), tables and series are "
            ".csv, .tsv or .parquet, arrays .npz: rename the file to what it is"
        )
    _allow(f"{path.name} is text", given, ("length", "vocab"))
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; give a text")
    return text.open_text(path.name, [path], [], cache=cache, **given)


def _frame(path: Path, given: dict[str, Any], seed: int, cache: str | None) -> Source:
    if "forecast" in given and "target" in given:
        raise DataError(
            f"{path.name}: forecast makes a series of all its columns, target a table with one column to predict; "
            "give one of the two"
        )
    if "forecast" in given:
        from formwright.data import splits
        from formwright.data.series import open_series, season_by, time_order, variates

        _allow(f"{path.name} is a series", given, ("forecast", "input_length", "splits"))
        rows, notes = frame.read_frame(path)
        rows, more, step = time_order(rows, path.name)
        values, names, rest = variates(rows, path.name)
        bounds, cut = splits.read(path.name, len(values), step, given.pop("splits", None))
        notes = notes + more + rest + cut
        return open_series(path.name, values, names, notes, bounds=bounds, season=season_by(step), cache=cache, **given)
    if "target" in given:
        from formwright.data.table import open_table

        _allow(f"{path.name} is a table", given, ("target",))
        rows, notes = frame.read_frame(path)
        return open_table(path.name, rows, notes, target=given["target"], seed=seed, cache=cache)
    _allow(f"{path.name} is a table or a series", given, ("forecast", "target", "input_length", "splits"))
    rows, _ = frame.read_frame(path)
    shown = ", ".join(rows.columns[:8]) + (", ..." if len(rows.columns) > 8 else "")
    raise DataError(
        f"{path.name} can be a series or a table: give forecast=24 (--forecast 24) to forecast its next 24 rows, or "
        f"target=COLUMN (--target COLUMN) to predict one of its columns {shown}"
    )


def _missing(written: str, path: Path) -> str:
    names = [*bundled.NAMES, *TASKS]
    near = get_close_matches(written.lower(), names, 1, 0.6)
    if not near and os.path.isdir(path.parent):
        beside = {p.name: str(path.parent / p.name) for p in path.parent.iterdir()}
        near = [beside[n] for n in get_close_matches(path.name, beside, 1, 0.75)]
    if near:
        return f"there is no file, folder or bundled source {written!r}; did you mean {near[0]}?"
    return f"there is no file, folder or bundled source {written!r}; bundled are {', '.join(names)}"
