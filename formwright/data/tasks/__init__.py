"""Synthetic tasks: small functions from options to a Task, one file each, registered by name.

    @task
    def mytask(*, length: int = 64, vocab: int = 16) -> Task: ...

makes `--data "mytask(length=128)"` work. Items are made in blocks, each from its own random stream named by (task and
options, seed, split, block): any item of any split can be made alone, and is the same on every machine. A task whose
items are read instead, from a folder or from what is bundled, makes an Opener: (name, seed, cache) -> Source.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from formwright.data.source import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from formwright.data.source import Source


@dataclass
class Task:
    """What a synthetic task is.

    make       (generator, rows) -> inputs (rows, ...), targets (rows, ...): integers, or reals; for an encoder-decoder
               the inputs are a pair (source, target), each (rows, ...), and need not be of one length
    facts      what the builder needs (vocab, length, classes, ...)
    examples   items of the training split; `tests` items of validation and of test
    make_validation  makes the items of validation and test, where others are scored than those trained on
    make_test  makes the items of the test part, where they are to differ from those seen (longer ones); `harder` says
               in what they do; "" where they are only others
    ragged     True where rows end at different places: a batch is cut behind the last target of its rows
    padding    the token behind a row's end, where rows are of unequal length and their ends matter; None: none is
    chance     accuracy of guessing, said beside every score; None where it has no meaning
    baselines  what answers without a model score, said likewise: (training inputs, targets, tested inputs, targets), a
               block of items each -> a name ("the root operator alone") and its score in `metric`, each
    pixels     where inputs are pictures of bytes (uint8): their mean and deviation, by which a batch is z-scored
    score      scores besides the head's: (outputs, inputs, targets) of a batch -> a name and (sum, number) each; ready
               ones in scoring.py
    derive     what follows from the mean scores: all of them -> further ones
    """

    make: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
    facts: dict[str, Any]
    embed: str = "tokens"
    head: str = "lm"
    metric: str = "accuracy"
    lower_is_better: bool = False
    unit: str = ""
    examples: int = 100_000
    tests: int = 3_000
    make_validation: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]] | None = None
    make_test: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]] | None = None
    harder: str = "it has other lengths"
    ragged: bool = False
    padding: int | None = None
    chance: float | None = None
    baselines: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], dict[str, float]] | None = None
    pixels: tuple[float, float] | None = None
    score: Callable[[Tensor, Tensor, Tensor], dict[str, tuple[Any, int]]] | None = None
    derive: Callable[[dict[str, float]], dict[str, float]] | None = None
    notes: list[str] = field(default_factory=list)


Opener = Callable[[str, int, str | None], "Source"]
TASKS: dict[str, Callable[..., Task | Opener]] = {}


def task(function: Callable[..., Task | Opener]) -> Callable[..., Task | Opener]:
    """Register a task by its function's name; its keyword arguments are its options."""
    TASKS[function.__name__] = function
    return function


def options(name: str) -> dict[str, Any]:
    """A task's options and their defaults."""
    return {k: p.default for k, p in inspect.signature(TASKS[name]).parameters.items()}


def summary(name: str) -> str:
    """A task in one sentence."""
    return re.match(r".*?(?<!\.)[.?](?= |$)", " ".join((inspect.getdoc(TASKS[name]) or f"{name}.").split()))[0]


def describe(name: str) -> str:
    """A task in words: its definition and source, what its items are, its options."""
    function = TASKS[name]
    chosen = ", ".join(f"{k}={v!r}" for k, v in options(name).items())
    about = inspect.getdoc(inspect.getmodule(function)) or ""
    return "\n\n".join((f"{name}  (task)", about, inspect.getdoc(function) or "", f"--data '{name}({chosen})'"))


def at_least(name: str, **bounds: tuple[Any, int]) -> None:
    """Raise DataError unless each option=(value, least) is a whole number of at least `least`."""
    for option, (value, least) in bounds.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise DataError(f"{name}: {option} is {value!r}, but must be a whole number of at least {least}")


def draw_distinct(rng: np.random.Generator, rows: int, number: int, population: int) -> np.ndarray:
    """(rows, number) in 0..population-1, distinct and in random order within each row (partial Fisher-Yates)."""
    pool = np.tile(np.arange(population, dtype=np.int32), (rows, 1))
    row = np.arange(rows)
    for j in range(number):
        other = rng.integers(j, population, size=rows)
        pool[row, j], pool[row, other] = pool[row, other], pool[row, j].copy()
    return pool[:, :number].astype(np.int64)


for _module in pkgutil.iter_modules(__path__):  # each registers its task
    importlib.import_module(f"{__name__}.{_module.name}")
