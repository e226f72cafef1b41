"""Written options -> a constructor's arguments: names checked, values checked, facts of the data filled in."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from formwright import parts, zoo
from formwright.contract import ResidualStyle
from formwright.lang import Expr, Part, SyntaxProblem

FACTS = (
    *("causal", "length", "rank", "vocab", "classes", "outputs", "channels", "image", "variates", "horizon"),
    *("input_length", "numeric", "categories", "source_length"),
)


def check_names(part: Part, text: str) -> None:
    """Raise SyntaxProblem unless the part is registered and its options are among those it has."""
    if part.name not in parts.names():
        raise SyntaxProblem(_unknown(part.name), text, _name_place(part))
    cls = parts.get(part.name)
    allowed = [*getattr(cls, "stacks", ()), *parts.options(cls)]
    if issubclass(cls, ResidualStyle):
        allowed = ["stack", *allowed]
    for option in part.options:
        if option not in allowed:
            have = f"its options are {', '.join(allowed)}" if allowed else "it has no options"
            message = f"{part.name} has no option {option!r}{parts.nearest(option, allowed)}; {have}"
            raise SyntaxProblem(message, text, part.place)
    if len(part.arguments) > len(allowed):
        raise SyntaxProblem(f"{part.name} takes at most {len(allowed)} values", text, part.place)
    for option in allowed[: len(part.arguments)]:
        if option in part.options:
            raise SyntaxProblem(f"{part.name} is given {option!r} twice", text, part.place)


def _unknown(name: str) -> str:
    if name in zoo.names():
        return f"{name} is a whole architecture of the zoo, with embedding and head; it stands alone"
    return f"there is no part {name!r}{parts.nearest(name, [*parts.names(), *zoo.names()])}"


def _name_place(part: Part) -> tuple[int, int] | None:
    return part.place and (part.place[0], part.place[0] + len(part.name))


def written(part: Part, text: str, *, stacks: tuple[str, ...] = ()) -> dict[str, Any]:
    """The options written at a part by name, their values checked, parts among them turned into factories."""
    cls = parts.get(part.name)
    given = dict(zip([*stacks, *parts.options(cls)], part.arguments, strict=False)) | part.options
    for name, value in given.items():
        if name in stacks:
            continue
        _check_value(part, name, value, cls, text)
        if isinstance(value, Part):
            given[name] = factory(value, text)
    return given


def bound(
    part: Part, flow: dict[str, Any], text: str, *, stacks: tuple[str, ...] = (), extra: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The part's constructor arguments by name: those written, then facts that bear an open one's name."""
    parameters = parts.options(parts.get(part.name))
    given = written(part, text, stacks=stacks)
    for fact in (*FACTS, *extra):
        if fact in parameters and fact not in given and flow.get(fact) is not None:
            given[fact] = flow[fact]
    missing = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in given]
    if missing:
        raise SyntaxProblem(
            f"{part.name} needs {', '.join(missing)}; write {part.name}({missing[0]}=...), or give data that tell",
            text,
            part.place,
        )
    return given


def factory(part: Part, text: str) -> Callable:
    """A part given as an option: its class with its own options bound."""
    cls = parts.get(part.name)
    given = bound(part, {}, text)
    return functools.partial(cls, **given) if given else cls


def _check_value(part: Part, name: str, value: Any, cls: type, text: str) -> None:
    allowed, takes_parts = _value_types(typing.get_type_hints(cls.__init__).get(name))
    if isinstance(value, Expr):
        if not isinstance(value, Part) or not takes_parts:
            wanted = "one part" if takes_parts else "no part"
            raise SyntaxProblem(f"{part.name}: {name} takes {wanted}, not {value}", text, value.place)
        return
    if allowed is None or type(value) in allowed or (float in allowed and type(value) is int):
        return
    words = {int: "a whole number", float: "a number", str: "a string", bool: "True or False", tuple: "a tuple"}
    wanted = " or ".join(["a part"] * takes_parts + [words.get(t, "None") for t in allowed])
    raise SyntaxProblem(f"{part.name}: {name} is {wanted}, not {value!r}", text, part.place)


def _value_types(hint: Any) -> tuple[tuple[type, ...] | None, bool]:
    """(the plain types that a hint allows, None where it says nothing; whether it allows a part)."""
    if hint is None or hint is Any:
        return None, True
    united = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    members = [typing.get_origin(m) or m for m in (typing.get_args(hint) if united else (hint,))]
    plain = tuple(m for m in members if m in (int, float, str, bool, tuple, type(None)))
    return plain, len(plain) < len(members)
