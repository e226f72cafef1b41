"""Synthetic tasks (tasks/) as sources: `mqar(pairs=16, length=128)`.

Items are made 1000 at a time when they are asked for, and the last blocks are kept: the training set is still a fixed
set of `examples` items, seen in epochs (shuffled by blocks and inside them). Blocks that take longer to make than to
read are kept in the cache folder, under the task's definition.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from formwright.data import cache as caching
from formwright.data.source import SPLITS, DataError, Scale, Source
from formwright.data.tasks import TASKS, Task, options

BLOCK = 1000
PARTS = ("source", "inputs", "targets")  # of a block; "source" where its items are pairs
SLOW = 0.2  # seconds of making a block from which on it is kept on disk
_KEPT = 256 << 20  # bytes of blocks kept


def is_task(spec: str) -> bool:
    """Whether a spec reads as a task, `name` or `name(...)`, known or not."""
    called = re.match(r"\s*([A-Za-z_]\w*)\s*\(", spec)
    return spec.strip() in TASKS or (called is not None and (called[1] in TASKS or spec.rstrip().endswith(")")))


def read(spec: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of a task's text. Raises DataError for names and options that don't exist."""
    from formwright.lang import Part, SyntaxProblem, parse

    try:
        part = parse(spec)
    except SyntaxProblem as problem:
        raise DataError(f"the task {spec!r} can't be read: {problem}") from problem
    if not isinstance(part, Part):
        raise DataError(f"{spec!r} is no task; write for example mqar(pairs=16, length=128)")
    if part.name not in TASKS:
        near = get_close_matches(part.name, TASKS, 1)
        hint = f"did you mean {near[0]}?" if near else f"the tasks are {', '.join(sorted(TASKS))}"
        raise DataError(f"there is no task {part.name!r}; {hint}")
    known = options(part.name)
    if part.arguments:
        raise DataError(f"{part.name}: write each option with its name, such as {next(iter(known))}=...")
    given = {k: v.name if isinstance(v, Part) and not v.options else v for k, v in part.options.items()}
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise DataError(f"{part.name} has no option {name!r}; {hint}its options are {', '.join(known)}")
    return part.name, {**known, **given}


def open_task(spec: str, *, seed: int = 0, cache: str | None = None) -> Source:
    """A task's text -> a Source."""
    name, chosen = read(spec)
    task = TASKS[name](**chosen)
    defaults = options(name)
    changed = ", ".join(f"{k}={v!r}" for k, v in chosen.items() if v != defaults[k])
    called = f"{name}({changed})" if changed else name
    if not isinstance(task, Task):
        return task(called, seed, cache)
    # the number of items made is no part of what an item is
    definition = caching.digest("task", name, {k: v for k, v in chosen.items() if k not in ("examples", "tests")}, seed)
    counts = {"train": task.examples, "validation": task.tests, "test": task.tests}
    checked = task.make_validation or task.make
    makers = {"train": task.make, "validation": checked, "test": task.make_test or checked}
    # Kept blocks are forgotten when the generator's file changes.
    kept = caching.digest(definition, Path(inspect.getfile(TASKS[name])).read_text(encoding="utf-8"))
    blocks = _blocks(makers, definition, kept, cache)
    *source, seen = [part.shape[1:] for part in blocks("train", 0)[:-1]]

    def take(split: str, index: np.ndarray, epoch: np.ndarray) -> tuple[Tensor | tuple[Tensor, Tensor], Tensor]:
        which, inside = np.divmod(index, BLOCK)
        taken = [np.empty((len(index), *part.shape[1:]), dtype=_wide(part)) for part in blocks(split, 0)]
        for block in np.unique(which).tolist():
            here = which == block
            for rows, made in zip(taken, blocks(split, block), strict=True):
                rows[here] = made[inside[here]]
        if task.ragged:
            end = np.flatnonzero((taken[-1] >= 0).any(0))[-1] + 1
            taken[-2:] = [rows[:, :end] for rows in taken[-2:]]
        if task.pixels:
            mean, deviation = task.pixels
            taken[0] = (taken[0].astype(np.float32) - np.float32(mean)) / np.float32(deviation)
        *inputs, targets = map(torch.from_numpy, taken)
        return tuple(inputs) if source else inputs[0], targets

    notes = list(task.notes)
    if task.make_test and task.harder:
        notes.append(f"The test part is harder than what was seen in training and validation: {task.harder}.")
    return Source(
        name=called,
        kind="synthetic",
        embed=task.embed,
        head=task.head,
        facts={"source_length": source[0][0], **task.facts} if source else dict(task.facts),
        shape=tuple(seen),
        source_shape=tuple(source[0]) if source else None,
        metric=task.metric,
        lower_is_better=task.lower_is_better,
        unit=task.unit,
        counts=counts,
        take=take,
        tokens_per_item=sum(shape[0] for shape in (*source, seen)),
        fingerprint=caching.digest(definition, counts),
        notes=notes,
        baselines=_baselines(task, _inputs_targets(blocks("train", 0)), _inputs_targets(blocks("test", 0))),
        padding=task.padding,
        scale=Scale(*np.array(task.pixels)[:, None]) if task.pixels else None,
        score=task.score,
        derive=task.derive and (lambda means, _: task.derive(means)),
        block=BLOCK,
    )


def _wide(array: np.ndarray) -> np.dtype:
    return np.dtype(np.int64 if array.dtype.kind in "iu" else np.float32)


def _baselines(task: Task, seen: tuple, tested: tuple) -> dict[str, float]:
    """What guessing, always giving the answer commonest in training, and the task's own baselines score on the test."""
    scores = {} if task.chance is None else {"guessing": task.chance}
    if seen[1].dtype.kind == "i" and task.metric == "accuracy":
        answers = tested[1][tested[1] >= 0]
        scores["the commonest answer"] = float((answers == np.bincount(seen[1][seen[1] >= 0]).argmax()).mean())
    return scores | (task.baselines(*seen, *tested) if task.baselines else {})


def _inputs_targets(block: tuple) -> tuple:
    """A block's inputs, a pair where there are sources, and its targets."""
    *inputs, targets = block
    return tuple(inputs) if len(inputs) > 1 else inputs[0], targets


def _blocks(makers: dict[str, Callable], definition: str, kept: str, cache: str | None) -> Callable[[str, int], tuple]:
    """(split, number) -> that block's sources (where items are pairs), inputs and targets, bytes kept as such, other
    whole numbers as int32."""

    def make(split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
        words = [int(definition[i : i + 8], 16) for i in range(0, len(definition), 8)]
        seed = np.random.SeedSequence([*words, SPLITS.index(split), number])
        # always a whole block, so that an item does not change with the number of items
        inputs, targets = makers[split](np.random.Generator(np.random.PCG64(seed)), BLOCK)
        made = (*inputs, targets) if isinstance(inputs, tuple) else (inputs, targets)
        return tuple(a.astype(_stored(a)) for a in made)

    def build(split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
        entry = caching.root(cache) / f"task-{kept}-{split}-{number}"
        if not entry.is_dir():
            began = time.perf_counter()
            made = make(split, number)
            if time.perf_counter() - began < SLOW:
                return made
            caching.entry(cache, entry.name, lambda folder: _write(folder, made))
        names = [name for name in PARTS if (entry / f"{name}.npy").is_file()]
        return tuple(np.load(entry / f"{name}.npy") for name in names)

    first = build("test", 0)
    size = sum(a.nbytes for a in first)
    return lru_cache(maxsize=max(4, _KEPT // size))(build)


def _stored(array: np.ndarray) -> np.dtype:
    whole = np.uint8 if array.dtype == np.uint8 else np.int32
    return np.dtype(whole if array.dtype.kind in "iu" else np.float32)


def _write(folder: Path, made: tuple[np.ndarray, ...]) -> None:
    for name, array in zip(PARTS[-len(made) :], made, strict=True):
        np.save(folder / f"{name}.npy", array)
