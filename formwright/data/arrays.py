"""Arrays from a NumPy .npz file.

Names: `x` and `y`, split 80/10/10 by seed; or `x_train`, `y_train`, `x_test`, `y_test` and perhaps `x_validation` (or
x_val, x_valid), `y_validation`, kept as they are (capitals count as small letters; a missing part is taken from train).
What x holds follows from its type and shape:

| x                                                   | read as                              |
| --------------------------------------------------- | ------------------------------------ |
| whole numbers >= 0 (n, N), y (n, N) whole numbers   | tokens; predict y at each (lm)       |
| whole numbers >= 0 (n, N), y (n,) whole numbers     | tokens; classify                     |
| real (n, F), or whole (n, F) with real y            | F columns                            |
| uint8 (n, H, W), (n, H, W, C) or (n, C, H, W)       | pictures, C = 1 or 3                 |
| real (n, H, W, C) or (n, C, H, W)                   | pictures, scaled to bytes            |
| real (n, T, V)                                      | series of T steps, V variates        |
| real (T, V) or (T,) without y, `forecast` given     | one series, to be forecast           |

y of whole numbers or text is classified, y of real numbers regressed. A note says which reading was taken.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import torch

from formwright.data import cache as caching
from formwright.data.images import complete, of_pixels
from formwright.data.source import DataError, Scale, Source, shuffled
from formwright.data.table import of_arrays

_NAMES = "name them x and y, or x_train, y_train, x_test, y_test"
_SPLITS = {"": "all", "train": "train", "validation": "validation", "val": "validation", "valid": "validation",
           "test": "test"}  # fmt: skip


def open_arrays(
    path: Path,
    *,
    forecast: int | None = None,
    input_length: int | None = None,
    seed: int = 0,
    cache: str | None = None,
) -> Source:
    """A .npz file -> a Source. Raises DataError where its arrays are not named or shaped as this module says."""
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; give a .npz file with the arrays x and y")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise DataError(
            f"{path} is no readable .npz file ({error}); write it by numpy.savez(path, x=..., y=...)"
        ) from error
    found = _named(path, arrays)
    if forecast is not None:
        return _forecast(path, found, forecast, input_length, cache)
    if any(split != "all" and ("x", split) not in found for (_, split) in found) or not found:
        raise DataError(f"{path} holds {', '.join(arrays) or 'no arrays'}; {_NAMES}")
    order = [s for s in ("all", "train", "validation", "test") if ("x", s) in found]
    for split in order:
        if ("y", split) not in found:
            raise DataError(
                f"{path} has no targets for {_label('x', split)}; add {_label('y', split)}, or give forecast"
            )
        a, b = len(np.atleast_1d(found["x", split])), len(np.atleast_1d(found["y", split]))
        if a != b:
            raise DataError(
                f"{path}: {_label('x', split)} has {a} rows, but {_label('y', split)} has {b}; both need the same"
            )
    try:
        x = np.concatenate([found["x", s] for s in order])
        y = np.concatenate([found["y", s] for s in order])
    except ValueError as error:
        raise DataError(f"{path}: its parts differ in shape ({error})") from error
    if len(x) < 10:
        raise DataError(f"{path} has {len(x)} rows; at least 10 are needed")
    notes: list[str] = []
    answers, names, scale_y = _answers(path, x, y)
    classes = answers.dtype.kind == "i" and answers.ndim == 1
    if order == ["all"]:
        parts = shuffled(len(x), seed, answers if classes else None)
    else:
        ends = np.cumsum([0] + [len(found["x", s]) for s in order])
        parts = {s: np.zeros(0, dtype=np.int64) for s in ("train", "validation", "test")}
        parts |= {s: np.arange(a, b) for s, a, b in zip(order, ends, ends[1:], strict=False)}
        parts = complete(parts, answers, seed, str(path.name), notes)
    if not classes and answers.dtype.kind == "f":
        scale_y = Scale.fit(answers[parts["train"]])
        answers = scale_y.forward(answers)
    return _read(path, x, answers, names, parts, scale_y, notes, seed, cache)


def _named(path: Path, arrays: dict[str, np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
    """(x or y, split) -> array."""
    found = {}
    for name, array in arrays.items():
        match = re.fullmatch(r"(x|y)(?:_?(train|validation|valid|val|test))?", name.lower())
        if match:
            found[match[1], _SPLITS[match[2] or ""]] = array
    if not any(kind == "x" for kind, _ in found):
        raise DataError(f"{path} holds {', '.join(arrays) or 'no arrays'}, but no array x; {_NAMES}")
    if ("x", "all") in found and len({s for _, s in found}) > 1:
        raise DataError(f"{path} holds both x and parts such as x_train; keep one of the two forms")
    return found


def _label(kind: str, split: str) -> str:
    return kind if split == "all" else f"{kind}_{split}"


def _forecast(path: Path, found: dict, forecast: int, input_length: int | None, cache: str | None) -> Source:
    from formwright.data.series import open_series

    x = found.get(("x", "all"))
    if x is None or ("y", "all") in found or x.ndim > 2 or x.ndim == 0 or x.dtype.kind not in "iuf":
        raise DataError(f"{path}: a series to forecast is one array x of numbers (T, V) without y")
    values = x.astype(np.float64).reshape(len(x), -1)
    values[np.isinf(values)] = np.nan
    names = [f"variate {i + 1}" for i in range(values.shape[1])]
    return open_series(path.name, values, names, [], forecast=forecast, input_length=input_length, cache=cache)


def _answers(path: Path, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, list[str], Scale | None]:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind == "f":
        if y.ndim > 2:
            raise DataError(f"{path}: y of real numbers is (n,) or (n, outputs), but is {y.shape}")
        values = y.reshape(len(y), -1).astype(np.float64)
        if np.isnan(values).any(0).all() and np.isnan(values).all():
            raise DataError(f"{path}: y holds no numbers")
        return values, [f"output {i + 1}" for i in range(values.shape[1])], None
    if y.ndim == 2 and y.dtype.kind in "iu" and x.ndim == 2 and x.shape == y.shape:
        return y.astype(np.int64), [], None
    if y.ndim != 1 or y.dtype.kind not in "biuUS":
        raise DataError(
            f"{path}: y is whole numbers or text (n,), or real numbers (n, outputs), but is {y.dtype} {y.shape}"
        )
    kinds, codes = np.unique(y, return_inverse=True)
    if len(kinds) < 2:
        raise DataError(f"{path}: y has one class only, {kinds[0]}; at least two are needed")
    if len(kinds) > 0.5 * len(y):
        raise DataError(f"{path}: y has {len(kinds)} classes in {len(y)} rows; write it as real numbers to regress it")
    return codes.astype(np.int64), [str(k) for k in kinds], None


def _read(path, x, answers, names, parts, scale, notes, seed, cache) -> Source:
    name, whole = path.name, x.dtype.kind in "iub"
    fingerprint = caching.digest("arrays", caching.array_hash(x), caching.array_hash(answers), names, seed)
    if x.dtype.kind not in "iubf":
        raise DataError(f"{path}: x holds {x.dtype}, but must hold numbers")
    if not whole and not np.isfinite(x).all():
        at = np.argwhere(~np.isfinite(x))[0].tolist()
        raise DataError(f"{path}: x is missing or infinite at {at}; fill such values first")
    labels = answers.ndim == 1
    facts = {"classes": len(names)} if labels else {"outputs": answers.shape[1]}
    targets = torch.from_numpy(answers)

    def plain(embed: str, values: np.ndarray, more: dict) -> Source:
        inputs = torch.from_numpy(values)
        return of_arrays(
            name,
            "arrays",
            embed,
            inputs,
            targets,
            parts,
            facts | more,
            notes,
            names,
            fingerprint,
            scale=scale,
            cache=cache,
        )

    if x.ndim == 2 and whole and answers.dtype.kind == "i":
        if x.min() < 0:
            raise DataError(
                f"{path}: tokens are whole numbers from 0, but x holds {x.min()}; give real numbers for columns"
            )
        vocab = int(max(x.max(), 0 if labels else answers.max())) + 1
        notes.append(f"x is read as sequences of {x.shape[1]} tokens out of {vocab}.")
        source = plain("tokens", x.astype(np.int64), {"vocab": vocab, "length": x.shape[1]})
        if not labels:
            source.head, source.facts = "lm", {"vocab": vocab, "length": x.shape[1]}
            source.unit = ""
        return source
    if x.ndim == 2:
        notes.append(f"x is read as {x.shape[1]} columns of numbers.")
        x = x.astype(np.float64)
        values = Scale.fit(x[parts["train"]]).forward(x)
        return plain("columns", values, {"numeric": (x.shape[1],), "categories": ()})
    if x.ndim == 4 or (x.ndim == 3 and x.dtype == np.uint8):
        if not labels:
            raise DataError(f"{path}: pictures are classified; give y as whole numbers or text (n,)")
        pixels = _pixels(path, x, parts["train"])
        notes.append(f"x is read as pictures of {pixels.shape[1]} x {pixels.shape[2]}, {pixels.shape[3]} channels.")
        return of_pixels(name, "arrays", pixels, answers, parts, names, notes, fingerprint, cache=cache)
    if x.ndim == 3:
        steps, variates = x.shape[1:]
        notes.append(
            f"x is read as series of {steps} steps and {variates} variates (pictures would be uint8, or (n, H, W, 1))."
        )
        x = x.astype(np.float64)
        values = Scale.fit(x[parts["train"]].reshape(-1, variates)).forward(x)
        return plain("series", values, {"variates": variates, "input_length": steps})
    raise DataError(f"{path}: x has the shape {x.shape}; it must be (n, N), (n, T, V), (n, H, W) or (n, H, W, C)")


def _pixels(path: Path, x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Pictures as uint8 (n, H, W, C)."""
    if x.ndim == 3:
        x = x[..., None]
    elif x.shape[1] in (1, 3) and x.shape[-1] not in (1, 3):
        x = np.moveaxis(x, 1, -1)
    elif x.shape[-1] not in (1, 3):
        raise DataError(f"{path}: pictures have 1 or 3 channels, (n, H, W, C) or (n, C, H, W), but x is {x.shape}")
    if x.dtype == np.uint8:
        return x
    low, high = float(x[train].min()), float(x[train].max())
    return np.clip(np.rint((x - low) / max(high - low, 1e-12) * 255), 0, 255).astype(np.uint8)
