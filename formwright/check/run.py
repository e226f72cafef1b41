"""Run the laws over a part and say what each found.

run("gla(heads=2)").passed        run("mine.py:Mine").to_json()        run(MyMixer, laws=["causality"])
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from formwright import binding, lang, parts
from formwright.check.causality import causality
from formwright.check.compiled import compile
from formwright.check.cost import cost
from formwright.check.ends import ENDS
from formwright.check.extend import extend
from formwright.check.gradients import gradients
from formwright.check.isolation import isolation
from formwright.check.reference import reference
from formwright.check.refusals import refusals
from formwright.check.repeat import determinism, save_load
from formwright.check.shapes import shapes
from formwright.check.subject import CALLS, Broken, Refused, Skipped, Subject
from formwright.check.symmetry import symmetry
from formwright.contract import Card

LAWS: dict[str, Callable[[Subject], str]] = {
    "shapes": shapes,
    "causality": causality,
    "extend": extend,
    "isolation": isolation,
    "reference": reference,
    "gradients": gradients,
    "cost": cost,
    "determinism": determinism,
    "save_load": save_load,
    "compile": compile,
    "symmetry": symmetry,
    "refusals": refusals,
}

WIDTHS = (32, 40, 48, 36, 42, 64, 128, 256)  # multiples of 5, 6, 7, 9 heads among them


@dataclass(frozen=True)
class Law:
    """What one law found: status "pass", "fail", "refused" or "skip", and in detail what was found where."""

    law: str
    status: str
    detail: str


@dataclass(frozen=True)
class Report:
    """The laws over one target."""

    target: str
    laws: list[Law]

    @property
    def passed(self) -> bool:
        """Whether no law is broken."""
        return all(law.status != "fail" for law in self.laws)

    def to_json(self) -> dict[str, Any]:
        """The report as plain dictionaries and lists."""
        rows = [{"law": law.law, "status": law.status, "detail": law.detail} for law in self.laws]
        return {"target": self.target, "laws": rows, "passed": self.passed}

    def table(self) -> Table:
        """The report as a Rich table."""
        colours = {"pass": "green", "fail": "bold red", "refused": "yellow", "skip": "dim"}
        verdict = "all laws hold" if self.passed else "a law is broken"
        table = Table(title=f"{self.target}: {verdict}", title_justify="left")
        for column in ("law", "status", "detail"):
            table.add_column(column)
        for law in self.laws:
            table.add_row(law.law, Text(law.status, colours[law.status]), Text(law.detail))
        return table

    def show(self, console: Console | None = None) -> None:
        """Print the table."""
        (console or Console()).print(self.table())


def run(target: str | type, *, laws: Iterable[str] | None = None, seed: int = 0, compiler: str = "aot_eager") -> Report:
    """Hold a part to the laws.

    target    a part's class, an expression of one part ("gla(heads=2)"), or "file.py:Class"
    laws      names of the laws to run; all of them without it
    seed      of weights and inputs
    compiler  torch.compile's backend in the law of compile

    Raises ValueError or LookupError for an unknown law, and for a target that is no part."""
    chosen = list(LAWS) if laws is None else list(laws)
    unknown = [law for law in chosen if law not in LAWS]
    if unknown:
        raise ValueError(f"there is no law {unknown[0]!r}{parts.nearest(unknown[0], LAWS)}; laws are {', '.join(LAWS)}")
    subject = find(target, seed, compiler)
    with poisoned():
        return Report(subject.target, [judge(law, subject) for law in chosen])


def judge(law: str, subject: Subject) -> Law:
    """One law over a subject; what it raises unforeseen breaks it."""
    table = ENDS if subject.kind in ("embed", "head") else LAWS if subject.kind in CALLS else {}
    if law not in table:
        return Law(law, "skip", f"it says nothing of {subject.kind} parts")
    try:
        return Law(law, "pass", table[law](subject))
    except Broken as found:
        return Law(law, "fail", str(found))
    except Refused as found:
        return Law(law, "refused", str(found))
    except Skipped as found:
        return Law(law, "skip", str(found))
    except Exception as error:
        text = " ".join(str(error).split())[:400]
        return Law(law, "fail", f"{type(error).__name__}: {text}" if text else type(error).__name__)


def find(target: str | type, seed: int = 0, compiler: str = "aot_eager") -> Subject:
    """The subject that a target names."""
    if not isinstance(target, str):
        if not isinstance(getattr(target, "card", None), Card):
            raise ValueError(f"{target!r} has no card; give it `card = Card(name=..., kind='mixer', patterns=(...))`")
        return Subject(target.__name__, target, {}, seed, compiler=compiler)
    if ".py:" in target and target.rpartition(":")[2].isidentifier():
        return Subject(target, parts.load(target), {}, seed, compiler=compiler)
    tree = lang.parse(target)
    if not isinstance(tree, lang.Part) or tree.arguments:
        raise ValueError(f"the laws hold single parts, such as attention(heads=2), and {target!r} is more than one")
    binding.check_names(tree, target)
    options = binding.written(tree, target)
    return _of_fitting_width(Subject(target, parts.get(tree.name), options, seed, compiler=compiler))


def _of_fitting_width(subject: Subject) -> Subject:
    """The subject at a width its options can be made at; what its constructor raised where there is none."""
    if not subject.options:
        return subject
    for dim in WIDTHS:
        try:
            sized = replace(subject, dim=dim)
            if sized.patterns:
                return sized
        except Skipped:
            continue
    try:
        subject.module(subject.first_pattern)
    except TypeError as error:
        raise ValueError(f"{subject.target}: {error}") from error
    raise ValueError(f"{subject.target} refuses every pattern of its card")


@contextmanager
def poisoned() -> Iterator[None]:
    """torch.empty filled with NaN, so that memory nobody wrote is seen, and one thread, for the tensors are small;
    settings as they were afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    enabled, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn)
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.set_num_threads(threads)
