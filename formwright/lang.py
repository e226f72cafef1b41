"""The architecture language: text <-> expression tree.

    tokens(dim=256) >> 3*(3*(gated_deltanet + swiglu) >> attention(heads=8, position=rope) + swiglu) >> lm

The text is Python syntax, read with `ast` and never evaluated. The same operators work on expressions in Python code:

    a + b    residual branches in turn      a >> b   a, then b
    n * a    n copies with own weights      a | b    in parallel on the same input

`str(parse(text))` is the canonical text, and `parse(str(tree)) == tree`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from formwright import zoo

_PRECEDENCE = {"|": 1, ">>": 2, "+": 3, "*": 4}
_HYPHENATED = re.compile(r"[A-Za-z][\w.]*(-[\w.]+)+")
_FILE_PART = re.compile(r"(?<![\w.])((?:[\w.~-]*/)*[\w.-]+\.py):([A-Za-z_]\w*)")


class SyntaxProblem(ValueError):
    """A mistake in an expression: where it stands, what was found and what is allowed there."""

    def __init__(self, message: str, text: str = "", place: tuple[int, int] | None = None):
        self.reason, self.text, self.place = message, text, place
        super().__init__(f"{message}\n{_pointer(text, place)}" if place is not None and text else message)


def _pointer(text: str, place: tuple[int, int]) -> str:
    """The text on one line, clipped around the place, with carets under it."""
    start, end = place
    flat = re.sub(r"\s", " ", text)
    left = max(0, start - 60)
    shown = flat[left : left + 120].rstrip()
    width = max(1, min(end, left + len(shown)) - start)
    return f"  {shown}\n  {' ' * (start - left)}{'^' * width}"


class Expr:
    """A node of an expression tree; `+ >> * |` build larger ones."""

    place: tuple[int, int] | None

    def __add__(self, other: Expr) -> Sum:
        return Sum(_flatten(Sum, self, _expression(other, "+")))

    def __rshift__(self, other: Expr) -> Chain:
        return Chain(_flatten(Chain, self, _expression(other, ">>")))

    def __or__(self, other: Expr) -> Parallel:
        return Parallel(_flatten(Parallel, self, _expression(other, "|")))

    def __mul__(self, times: int) -> Repeat:
        return times * self

    def __rmul__(self, times: int) -> Repeat:
        if isinstance(times, bool) or not isinstance(times, int) or times < 1:
            raise SyntaxProblem(f"copies are counted by a whole number of at least 1, not {times!r}")
        return Repeat(times, self)


@dataclass(frozen=True, repr=False)
class Part(Expr):
    """`name(option=value, ...)`; `arguments` are the values given without a name, in order."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    arguments: tuple[Any, ...] = ()
    place: tuple[int, int] | None = field(default=None, compare=False)

    def __call__(self, *arguments: Any, **options: Any) -> Part:
        """This part with further options."""
        return Part(self.name, {**self.options, **options}, self.arguments + arguments)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        given = [_value(v) for v in self.arguments] + [f"{k}={_value(v)}" for k, v in self.options.items()]
        return f"{self.name}({', '.join(given)})" if given else self.name

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class Sum(Expr):
    """a + b + ...: residual branches in turn."""

    items: tuple[Expr, ...]
    place: tuple[int, int] | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return " + ".join(_inner(item, "+") for item in self.items)

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class Chain(Expr):
    """a >> b >> ...: one after another."""

    items: tuple[Expr, ...]
    place: tuple[int, int] | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return " >> ".join(_inner(item, ">>") for item in self.items)

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class Parallel(Expr):
    """(a | b | ...): on the same input, outputs merged."""

    items: tuple[Expr, ...]
    place: tuple[int, int] | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return "(" + " | ".join(_inner(item, "|") for item in self.items) + ")"

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class Repeat(Expr):
    """n * a: n copies in turn, each with weights of its own."""

    times: int
    body: Expr
    place: tuple[int, int] | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.times}*{_inner(self.body, '*')}"

    __repr__ = __str__


_SYMBOL = {Sum: "+", Chain: ">>", Parallel: "|", Repeat: "*"}
_OPERATORS = {ast.Add: "+", ast.RShift: ">>", ast.BitOr: "|", ast.Mult: "*"}


def _flatten(cls: type, left: Expr, right: Expr) -> tuple[Expr, ...]:
    """The items of left op right; all three operators are associative, so nested ones are taken apart."""
    head = left.items if isinstance(left, cls) else (left,)
    tail = right.items if isinstance(right, cls) else (right,)
    return head + tail


def _expression(value: Any, operator: str) -> Expr:
    if not isinstance(value, Expr):
        raise SyntaxProblem(f"{operator} joins parts, but here stands {value!r}")
    return value


def _inner(item: Expr, outer: str) -> str:
    text = str(item)
    symbol = _SYMBOL.get(type(item))
    if symbol is None or symbol == "|":
        return text
    return text if _PRECEDENCE[symbol] > _PRECEDENCE[outer] else f"({text})"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, tuple):
        return "(" + ", ".join(_value(v) for v in value) + ("," if len(value) == 1 else "") + ")"
    return str(value) if isinstance(value, Expr) else repr(value)


def parse(text: str) -> Expr:
    """The expression that `text` says; of a zoo entry where it names one.

    A part from a user's file may stand as `file.py:Class`; it is loaded and its card's name stands in its place.
    Raises SyntaxProblem, which points at the place."""
    if not isinstance(text, str):
        raise TypeError(f"parse takes text, not {type(text).__name__}")
    if not text.strip():
        raise SyntaxProblem("the expression is empty; write for example 3*(attention + swiglu)")
    published = zoo.find(text)
    if published is not None:
        text = published.expression
    elif _HYPHENATED.fullmatch(text.strip()):
        zoo.entry(text.strip())  # raises, with the nearest names: no part's name has a hyphen
    text = _FILE_PART.sub(_load_file_part, text)
    # Brackets let an expression run over several lines; their column is taken off every place again.
    try:
        body = ast.parse(f"({text}\n)", mode="eval").body
    except SyntaxError as error:
        place = _syntax_place(text, error)
        raise SyntaxProblem(f"this is no expression: {error.msg}", text, place) from None
    except (RecursionError, MemoryError, ValueError):
        raise SyntaxProblem("the expression is nested too deeply, or holds a character that none may") from None
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    try:
        return _read(body, text, starts)
    except RecursionError:
        raise SyntaxProblem("the expression is nested too deeply") from None


def _load_file_part(match: re.Match) -> str:
    from formwright import parts

    return parts.load(match.group(0)).card.name


def _syntax_place(text: str, error: SyntaxError) -> tuple[int, int]:
    if "never closed" in error.msg:
        # Our own closing bracket took the place of the one that is missing.
        opened = []
        for index, character in enumerate(text):
            if character == "(":
                opened.append(index)
            elif character == ")" and opened:
                opened.pop()
        if opened:
            return opened[-1], opened[-1] + 1
    lines = text.split("\n")
    row = min((error.lineno or 1) - 1, len(lines) - 1)
    column = (error.offset or 1) - 1 - (1 if row == 0 else 0)
    start = sum(len(line) + 1 for line in lines[:row]) + max(0, min(column, len(lines[row])))
    start = min(start, max(0, len(text) - 1))
    return start, start + 1


def _read(node: ast.expr, text: str, starts: list[int]) -> Expr:
    """The Expr of an ast node. `starts` holds where each line of the text begins."""
    place = _place(node, text, starts)
    if isinstance(node, ast.Name):
        return Part(node.id, place=place)
    if isinstance(node, ast.Call):
        return _read_call(node, text, starts, place)
    if isinstance(node, ast.BinOp):
        operator = _OPERATORS.get(type(node.op))
        if operator is None:
            sign = text[_place(node.left, text, starts)[1] : _place(node.right, text, starts)[0]].strip(" ()")
            raise SyntaxProblem(f"{sign!r} is no operator here; parts are joined by + >> * |", text, place)
        if operator == "*":
            return _read_repeat(node, text, starts, place)
        left, right = _read(node.left, text, starts), _read(node.right, text, starts)
        cls = next(c for c, symbol in _SYMBOL.items() if symbol == operator)
        return cls(_flatten(cls, left, right), place=place)
    found = text[place[0] : place[1]]
    raise SyntaxProblem(f"here must stand a part or an expression of parts, not {found!r}", text, place)


def _read_repeat(node: ast.BinOp, text: str, starts: list[int], place: tuple[int, int]) -> Repeat:
    count, body = node.left, node.right
    if _whole_number(count) is None and _whole_number(body) is not None:
        count, body = body, count
    times = _whole_number(count)
    if times is None or times < 1:
        where = _place(count, text, starts)
        found = text[where[0] : where[1]]
        raise SyntaxProblem(f"before * stands a whole number of copies of at least 1, not {found!r}", text, where)
    return Repeat(times, _read(body, text, starts), place=place)


def _whole_number(node: ast.expr) -> int | None:
    """The integer that `node` says, products of integers included, as Python multiplies from the left."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = _whole_number(node.left), _whole_number(node.right)
        return None if left is None or right is None else left * right
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _read_call(node: ast.Call, text: str, starts: list[int], place: tuple[int, int]) -> Part:
    if not isinstance(node.func, ast.Name):
        where = _place(node.func, text, starts)
        raise SyntaxProblem("only a part's name can stand before its options", text, where)
    arguments = tuple(_read_value(a, text, starts) for a in node.args)
    options: dict[str, Any] = {}
    for keyword in node.keywords:
        where = _place(keyword.value, text, starts)
        if keyword.arg is None:
            raise SyntaxProblem("options are written name=value, ** is not read", text, where)
        options[keyword.arg] = _read_value(keyword.value, text, starts)
    return Part(node.func.id, options, arguments, place=place)


def _read_value(node: ast.expr, text: str, starts: list[int]) -> Any:
    """Numbers, strings, booleans, None, tuples of those, or parts."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, bool, type(None))):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        inner = _read_value(node.operand, text, starts)
        if isinstance(inner, (int, float)) and not isinstance(inner, bool):
            return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.Tuple):
        return tuple(_read_value(item, text, starts) for item in node.elts)
    if isinstance(node, (ast.Name, ast.Call, ast.BinOp)):
        return _read(node, text, starts)
    place = _place(node, text, starts)
    found = text[place[0] : place[1]]
    raise SyntaxProblem(
        f"a value is a number, a string, True, False, None, a tuple or a part, not {found!r}", text, place
    )


def _place(node: ast.expr, text: str, starts: list[int]) -> tuple[int, int]:
    def offset(line: int, column: int) -> int:
        # ast counts columns in UTF-8 bytes; the first line has one more for our bracket.
        row = text[starts[line - 1] :].split("\n", 1)[0]
        column -= 1 if line == 1 else 0
        return starts[line - 1] + len(row.encode()[:column].decode(errors="ignore"))

    return offset(node.lineno, node.col_offset), offset(node.end_lineno, node.end_col_offset)


def as_expression(value: str | Expr) -> Expr:
    """`value` itself, or what its text says."""
    return value if isinstance(value, Expr) else parse(value)


def walk(tree: Expr) -> Iterator[Expr]:
    """Every node of the tree, parts given as options included, parents first."""
    yield tree
    if isinstance(tree, (Sum, Chain, Parallel)):
        for item in tree.items:
            yield from walk(item)
    elif isinstance(tree, Repeat):
        yield from walk(tree.body)
    elif isinstance(tree, Part):
        for value in (*tree.arguments, *tree.options.values()):
            if isinstance(value, Expr):
                yield from walk(value)


def rewrite(tree: Expr, change: Callable[[Part], Expr]) -> Expr:
    """The tree with every part replaced by change(part), innermost first."""
    if isinstance(tree, (Sum, Chain, Parallel)):
        return replace(tree, items=tuple(rewrite(item, change) for item in tree.items))
    if isinstance(tree, Repeat):
        return replace(tree, body=rewrite(tree.body, change))

    def inside(value: Any) -> Any:
        return rewrite(value, change) if isinstance(value, Expr) else value

    return change(
        replace(
            tree,
            arguments=tuple(inside(v) for v in tree.arguments),
            options={k: inside(v) for k, v in tree.options.items()},
        )
    )
