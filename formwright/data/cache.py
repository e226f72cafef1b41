"""A folder for what is worked out once from a user's data: joined texts, tokens, decoded pictures.

Entries are named by what they were made from and appear whole or not at all (made beside, then renamed), so several
processes may open the same source at once. Anything in the folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from formwright.data.source import DataError


def root(cache: str | os.PathLike[str] | None = None) -> Path:
    """The cache folder: the one given, else $FORMWRIGHT_CACHE, else `formwright` in the user's cache folder."""
    if cache is None:
        cache = os.environ.get("FORMWRIGHT_CACHE") or Path(
            os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "formwright"
        )
    folder = Path(cache).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the cache folder {folder} can't be made ({error.strerror}); set FORMWRIGHT_CACHE to another"
        ) from error
    return folder


def digest(*parts: Any) -> str:
    """A short name for plain values (JSON), the same on every machine."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=12).hexdigest()


def array_hash(values: np.ndarray) -> str:
    """A short name for an array's shape, type and contents."""
    seen = hashlib.blake2b(f"{values.shape}{values.dtype}".encode(), digest_size=12)
    seen.update(np.ascontiguousarray(values).tobytes())
    return seen.hexdigest()


def listing(files: Iterable[Path]) -> str:
    """A name for these files as they now stand (path, size, time of change): cheap, for entries of this machine."""
    rows = []
    for file in files:
        facts = file.stat()
        rows.append([str(file.resolve()), facts.st_size, facts.st_mtime_ns])
    return digest(rows)


def entry(cache: str | os.PathLike[str] | None, name: str, build: Callable[[Path], None]) -> Path:
    """The cache entry (a folder) `name`, built by build(empty folder) if it isn't there."""
    top = root(cache)
    final = top / name
    if final.is_dir():
        return final
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=top))
    except OSError as error:
        raise DataError(
            f"the cache folder {top} can't be written ({error.strerror}); set FORMWRIGHT_CACHE to another"
        ) from error
    try:
        build(work)
        try:
            os.rename(work, final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


def save_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
