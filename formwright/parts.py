"""The register: every part by kind and name, with its Card.

A class in one of the rooms registers itself by `@register`; from then on the language, the laws, costs, docs and the
race see it. `from formwright.parts import attention, swiglu` gives parts as expressions, so that Python code and text
are one language: `3 * (attention(heads=4) + swiglu)`.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from formwright import lang
from formwright.contract import KINDS, Card

ROOMS = ("mixers", "channels", "positions", "norms", "wiring", "embeds", "heads")

_register: dict[str, type] = {}
_paths: dict[str, str] = {}
PartClass = TypeVar("PartClass", bound=type)


class UnknownPart(LookupError):
    """No part of that name is registered."""

    def __str__(self) -> str:
        return str(self.args[0])


def register(cls: PartClass) -> PartClass:
    """Enter a part's class, whose `card` names it, in the register.

    Raises ValueError where another class already has the name."""
    card = cls.card
    known = _register.get(card.name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(
            f"the name {card.name!r} is taken by {known.__module__}.{known.__qualname__}; give this part another name"
        )
    _register[card.name] = cls
    return cls


@functools.cache
def _import_rooms() -> None:
    for room in ROOMS:
        package = importlib.import_module(f"formwright.{room}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"formwright.{room}.{module.name}")


def names(kind: str | None = None) -> list[str]:
    """The names of all parts, or of those of one kind, sorted. Raises ValueError for an unknown kind."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of part; kinds are {', '.join(KINDS)}{nearest(kind, KINDS)}")
    _import_rooms()
    return sorted(name for name, cls in _register.items() if kind in (None, cls.card.kind))


def get(name: str, kind: str | None = None) -> type:
    """The class registered under `name`. Raises UnknownPart, with the nearest names, where there is none."""
    _import_rooms()
    cls = _register.get(name)
    if cls is None or kind not in (None, cls.card.kind):
        wanted = f"{kind} " if kind else ""
        raise UnknownPart(f"there is no {wanted}part {name!r}{nearest(name, names(kind))}")
    return cls


def card(name: str) -> Card:
    """The Card of the part registered under `name`."""
    return get(name).card


def card_of(factory: Callable) -> Card:
    """The Card of a part given as a factory: a class, or a functools.partial of one."""
    return class_of(factory).card


def class_of(factory: Callable) -> type:
    """The class behind a factory: itself, or what a functools.partial calls."""
    return factory.func if isinstance(factory, functools.partial) else factory


def options(cls: type) -> dict[str, inspect.Parameter]:
    """The options of a part's constructor by name: all but `self`, the width (an embedding says it itself), what a
    mixer makes a position for (heads, tokens' width, axes), and the stacks of a wiring."""
    hidden = {"self", *getattr(cls, "stacks", ())}
    if cls.card.kind != "embed":
        hidden.add("dim")
    if cls.card.kind == "position":
        hidden |= {"heads", "width", "rank"}
    return {name: p for name, p in inspect.signature(cls.__init__).parameters.items() if name not in hidden}


def describe(cls: type) -> str:
    """A part's card in words: what it computes, its equations, its source, its options with their defaults."""
    card = cls.card
    rows = [f"{card.name}  ({card.kind})", card.summary, ""]
    if card.kind == "mixer":
        rows.append(f"patterns  {', '.join(card.patterns)}")
        ranks = ", ".join(map(str, card.grid_ranks)) or "any"
        rows.append(f"axes      {ranks}    multiply-adds grow as {card.time}, the decode state as {card.state}")
    if card.kind == "position":
        relative = {"value": "what it adds moves along with the tokens"}
        relative = relative.get(cls.role, "scores depend on differences of positions alone")
        rows.append(f"role      {cls.role}; {relative if 'shift' in card.symmetries else 'places are absolute'}")
    if card.extrapolates is not None:
        made = "made for" if card.extrapolates else "not made for"
        rows.append(f"lengths   {made} longer inputs than those trained on")
    if card.source:
        rows.append(f"source    {card.source}")
    stacks = getattr(cls, "stacks", ())
    if stacks:
        rows.append(f"takes     {', '.join(stacks)}")
    given = [p for name, p in options(cls).items() if name not in ("causal", "rank")]
    if given:
        rows.append("options   " + "\n          ".join(_option(p) for p in given))
    module = inspect.getmodule(cls)
    if module is not None and module.__doc__:
        rows += ["", inspect.cleandoc(module.__doc__)]
    return "\n".join(rows)


def _option(parameter: inspect.Parameter) -> str:
    default = parameter.default
    if default is inspect.Parameter.empty:
        return f"{parameter.name}  (needed; the data tell it where they can)"
    if inspect.isclass(default) or isinstance(default, functools.partial):
        return f"{parameter.name}={card_of(default).name}"
    return f"{parameter.name}={default!r}"


def nearest(word: str, among: Any) -> str:
    """'; did you mean ...?' for the names nearest to `word`, or nothing."""
    close = difflib.get_close_matches(word, list(among), n=3, cutoff=0.55)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def load(target: str) -> type:
    """The class that `file.py:Class` names, registered under its card's name.

    Raises FileNotFoundError, ValueError or UnknownPart with a sentence that says what is missing."""
    path_text, _, class_name = target.rpartition(":")
    path = Path(path_text).expanduser().resolve()
    if not path_text or not class_name.isidentifier():
        raise ValueError(f"{target!r} names no class; write file.py:Class")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path_text!r} to take the part {class_name!r} from")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    name = f"formwright_user_{path.stem}_{digest}"
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise ValueError(f"{path_text} can't be imported: {type(error).__name__}: {error}") from error
    cls = getattr(module, class_name, None)
    if not inspect.isclass(cls):
        classes = [n for n, c in vars(module).items() if inspect.isclass(c) and c.__module__ == name]
        raise UnknownPart(f"{path_text} has no class {class_name!r}; it has {', '.join(classes) or 'no class'}")
    if not isinstance(getattr(cls, "card", None), Card):
        raise ValueError(f"{class_name} has no card; give it `card = Card(name=..., kind='mixer', patterns=(...))`")
    _import_rooms()
    if _register.get(cls.card.name) is not None and cls.card.name not in _paths:
        raise ValueError(f"{target}: the name {cls.card.name!r} is taken by a part of formwright; choose another name")
    _register[cls.card.name] = cls
    _paths[cls.card.name] = f"{path}:{class_name}"
    return cls


def origin(name: str) -> str | None:
    """`file.py:Class` of a part that came from a user's file, None for formwright's own."""
    return _paths.get(name)


def __getattr__(name: str) -> lang.Part:
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        get(name)
    except UnknownPart as error:
        raise AttributeError(str(error)) from None
    return lang.Part(name)
