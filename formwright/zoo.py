"""The zoo: published architectures as expressions, data and not code, one small TOML file each in zoo/.

    expression   the architecture with its published width; a vocabulary, classes and the like are left to the data
    parameters   how many it has, as published; notes say where that differs from what the paper prints
    source       title, arXiv id, year
    notes        what a reader should know (optional)
    [facts]      what the published model was built for, used where no data say it: vocab, classes, image, ...

A name stands wherever an expression is taken: formwright show gpt2-small, build("gpt2-small"), a race's contender. It
stands alone: it brings embedding and head, so that nothing can be added to it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

_KEYS = {"expression", "parameters", "source", "notes", "facts"}


@dataclass(frozen=True)
class Entry:
    """One published architecture."""

    name: str
    expression: str
    parameters: int
    source: str
    notes: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class UnknownEntry(LookupError):
    """The zoo has no architecture of that name."""


@cache
def _folder() -> Path:
    """Where the files are: inside an installed package, or beside it in the project's own tree."""
    inside = Path(__file__).with_name("published")
    return inside if inside.is_dir() else Path(__file__).parent.parent / "zoo"


@cache
def names() -> tuple[str, ...]:
    """The names of all entries, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.toml")))


@cache
def entry(name: str) -> Entry:
    """The entry of that name. Raises UnknownEntry with the nearest names, ValueError where its file is broken."""
    if name not in names():
        import difflib

        close = difflib.get_close_matches(name, names(), n=3, cutoff=0.55)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else "; formwright list zoo shows all"
        raise UnknownEntry(f"the zoo has no architecture {name!r}{hint}")
    path = _folder() / f"{name}.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"zoo/{path.name} is no TOML: {error}") from None
    wrong = sorted(content.keys() - _KEYS) + sorted({"expression", "parameters", "source"} - content.keys())
    if wrong:
        raise ValueError(f"zoo/{path.name}: keys are {', '.join(sorted(_KEYS))}; wrong or missing: {', '.join(wrong)}")
    facts = {k: tuple(v) if isinstance(v, list) else v for k, v in content.get("facts", {}).items()}
    texts = {key: " ".join(content.get(key, "").split()) for key in ("expression", "source", "notes")}
    return Entry(name=name, parameters=content["parameters"], facts=facts, **texts)


def find(text: Any) -> Entry | None:
    """The entry that a text names, None for anything else."""
    return entry(text.strip()) if isinstance(text, str) and text.strip() in names() else None


def get(name: str) -> str:
    """The expression of the entry of that name. Raises UnknownEntry, with the nearest names, where there is none."""
    return entry(name).expression


def describe(name: str) -> str:
    """An entry in words: expression, parameters, source, what it was built for, notes."""
    it = entry(name)
    rows = [f"{it.name}  (zoo)", "", it.expression, "", f"parameters  {it.parameters:,}", f"source      {it.source}"]
    if it.facts:
        rows.append("built for   " + ", ".join(f"{k}={v}" for k, v in it.facts.items()))
    return "\n".join(rows + (["", it.notes] if it.notes else []))
