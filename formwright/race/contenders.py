"""What a race is between: texts -> named contenders, each a stack of its own.

A bare mixer stands for the default stack around it. `file.py:Class` is a part from a user's file; the file is copied
into the race's folder, so that workers, a resumed race and the saved model all use the code that was raced.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from formwright import lang, parts, zoo
from formwright.build import BuildProblem, build, complete, default_stack, is_bare_mixer, positioned
from formwright.lang import Chain, Expr, Part
from formwright.model import Model
from formwright.pairs import replaced
from formwright.unfilled import Unfilled

MIXER = "MIXER"  # in a stack: the place of a bare mixer
SHORT = 40  # a text up to so many characters is its contender's name


class RaceProblem(ValueError):
    """A race can't be run as asked for. The message says why and what to do."""


@dataclass(frozen=True)
class Entry:
    """One contender: `text` as the user wrote it, `tree` the expression raced (its stack alone, or with embedding and
    head where written), `files` card name -> "file.py:Class" of parts from a user's files. Sizing fills `expression`
    (canonical, with its width) and the figures; `error` says why it can't run. `published` is the width that a zoo
    entry has given up, for one that fits the race. `state_bytes`: see Contender."""

    name: str
    text: str
    tree: Expr
    files: dict[str, str] = field(default_factory=dict)
    folder: str = ""
    expression: str | None = None
    dim: int | None = None
    params: int | None = None
    macs: int | None = None
    error: str | None = None
    state_bytes: int | None = None
    published: int | None = None


def read_contenders(
    texts: list[str], *, depth: int = 4, sized: bool = False, data: Any = None, stack: str | None = None
) -> list[Entry]:
    """Texts -> contenders with names and folders of their own. Where a race is `sized`, zoo entries give up the width
    that they were published with. A bare mixer stands for the default stack of `depth` blocks, which depends on whether
    the `data` give pairs; or for `stack` with itself in the place of MIXER, read from both ends where it sees one way
    alone and the data's head looks both ways.

    Raises SyntaxProblem, FileNotFoundError, UnknownPart or ValueError for a text that is wrong on any data, RaceProblem
    for an empty list."""
    if not texts:
        raise RaceProblem("a race needs at least one contender: formwright race attention gla --data notes.txt")
    entries: list[Entry] = []
    owners: dict[str, str] = {}
    for text in texts:
        tree = lang.as_expression(text)
        files = {name: parts.origin(name) for name in sorted(_names(tree)) if parts.origin(name)}
        error = None
        for name, origin in files.items():
            first = owners.setdefault(name, origin)
            if first != origin and _digest(first) != _digest(origin):
                error = f"its part is called {name!r}, as that of another file in this race: give its card another name"
                parts.load(first)
        name = _name(str(text), tree, files)
        published = tree.items[0].options.get("dim") if sized and zoo.find(text) else None
        if is_bare_mixer(tree):
            inside = stack is not None and getattr(data, "source_shape", None) is None
            tree = _within(stack, tree, data) if inside else default_stack(tree, depth, data)
        elif published:
            tree = _any_width(tree)
        entries.append(Entry(name, str(text), tree, files, error=error, published=published))
    return _distinct(entries)


def pair_notes(texts: list[str], source: Any) -> list[str]:
    """Sentences on places of an encoder-decoder that attention takes for a bare mixer."""
    if source.source_shape is None:
        return []
    causal = parts.get(source.head).causal
    trees = [lang.as_expression(text) for text in dict.fromkeys(texts)]
    return [note for tree in trees if is_bare_mixer(tree) and (note := replaced(tree, causal))]


def keep_files(entries: list[Entry], folder: Path) -> list[Entry]:
    """Copy the users' files into `folder` and let the contenders use the copies."""
    kept: dict[str, str] = {}
    taken: dict[str, str] = {}

    def keep(target: str) -> str:
        path, _, class_name = target.rpartition(":")
        digest = _digest(target)
        if digest not in kept:
            name = Path(path).name
            if taken.setdefault(name, digest) != digest:
                name = f"{Path(path).stem}_{digest[:8]}.py"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
            kept[digest] = str(folder / name)
        return f"{kept[digest]}:{class_name}"

    return [replace(e, files={name: keep(target) for name, target in e.files.items()}) for e in entries]


def written_dim(tree: Expr, source: Any) -> int | None:
    """The width that the contender's own text gives at its embedding, or None where it leaves it open."""
    first = complete(tree, source).items[0]
    return first.options.get("dim", first.arguments[0] if first.arguments else None)


def check_words(entry: Entry, source: Any) -> None:
    """Raise SyntaxProblem, pointing at the place, where a part or an option is misspelt: wrong on any data, unlike
    what this data or this width refuse."""
    try:
        build_unfilled(entry.tree, source, 128)
    except lang.SyntaxProblem as problem:
        raise lang.SyntaxProblem(problem.reason, "" if entry.files else entry.text, problem.place) from None
    except BuildProblem:
        return


def build_unfilled(tree: Expr, source: Any, dim: int | None) -> Model:
    """The model with weights that nobody has drawn, for its figures alone: memory never written is not taken."""
    with Unfilled():
        return build(tree, source, dim=dim)


def _within(stack: str, mixer: Part, data: Any) -> Expr:
    """The stack with the mixer wherever it says MIXER."""
    one_way = parts.get(mixer.name).card.kind == "mixer" and "self" not in parts.get(mixer.name).card.patterns
    if data is not None and not parts.get(data.head).causal and one_way:
        mixer = Part("bidirectional", {}, (mixer,))
    mixer = positioned(mixer)
    return lang.rewrite(lang.parse(stack), lambda part: mixer if part.name == MIXER else part)


def _names(tree: Expr) -> set[str]:
    return {node.name for node in lang.walk(tree) if isinstance(node, Part)}


def _any_width(tree: Chain) -> Chain:
    """A zoo entry without the width at its embedding."""
    first = tree.items[0]
    kept = {name: value for name, value in first.options.items() if name != "dim"}
    return replace(tree, items=(replace(first, options=kept), *tree.items[1:]))


def _digest(target: str) -> str:
    return hashlib.sha256(Path(target.rpartition(":")[0]).read_bytes()).hexdigest()


def _name(text: str, tree: Expr, files: dict[str, str]) -> str:
    """The text where it is short; else the canonical stack, then without options, then cut."""
    if not files and len(text) <= SHORT:
        return " ".join(text.split())
    stack = Chain(tree.items[1:-1]) if isinstance(tree, Chain) and len(tree.items) > 2 and _framed(tree) else tree
    bare = lang.rewrite(stack, lambda part: Part(part.name, {}, tuple(a for a in part.arguments if _expr(a))))
    for candidate in (str(tree), str(stack), str(bare)):
        if len(candidate) <= SHORT:
            return candidate
    return str(bare)[: SHORT - 1] + "…"


def _expr(value: Any) -> bool:
    return isinstance(value, Expr)


def _framed(tree: Chain) -> bool:
    kinds = [parts.get(i.name).card.kind if isinstance(i, Part) and i.name in parts.names() else "" for i in tree.items]
    return kinds[0] == "embed" and kinds[-1] == "head"


def _distinct(entries: list[Entry]) -> list[Entry]:
    """Numbered where a name comes twice; folders that every file system takes."""
    names: set[str] = set()
    folders: set[str] = set()
    result = []
    for entry in entries:
        name = _free(entry.name, names, " ({})")
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "contender"
        result.append(replace(entry, name=name, folder=_free(slug, folders, "-{}")))
    return result


def _free(word: str, taken: set[str], suffix: str) -> str:
    free = next(w for w in [word, *(word + suffix.format(n) for n in range(2, 1000))] if w not in taken)
    taken.add(free)
    return free
