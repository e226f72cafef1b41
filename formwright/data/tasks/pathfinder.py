"""Pathfinder: two dashed snakes among shorter ones, and two discs; do the discs lie at the ends of the same snake?

The two snakes begin near each other and grow dash by dash in turn, touching no dash but the newest; where one can't,
both are begun anew. One disc lies where one of them began, the other where that one (label 1) or the other (label 0)
ended. Distractors, a third as long, are put where there is room; one that finds none in five attempts is left out.
Sizes 32 and 128 (Path-X), also 64 and 256, with the settings of Tay et al., "Long Range Arena", arXiv 2011.04006, 2020,
whose "hard" pictures have snakes of 14 dashes (9 intermediate, 6 easy). At size 32 those settings draw distractors
brighter than the two snakes by a third; `alike` draws all as bright. The generator is that of Linsley et al., arXiv
1805.08315, 2018 (snakes.py), for many pictures at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from formwright.data.dashes import FINE, Dashes, Look, shrink
from formwright.data.dashes import dashes as tables
from formwright.data.snakes import Planes, one_snake, render, two_snakes
from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task

LOOKS = {
    32: Look(32, 2, 0.5, (1,), 1, 7, 1.5, 1.0, 20, (1.5, 2.0)),
    64: Look(64, 5, 1.0, (1,), 1, 12, 2.5, 1.8, 22, (0.8, 0.8)),
    128: Look(128, 5, 1.5, (2, 3), 1, 20, 3.0, 1.8, 35, (0.9, 0.9)),
    256: Look(256, 5, 2.0, (3,), 22, 27, 5.0, 1.8, 30, (1.0, 1.0)),
}
PIXELS = {32: (27.6, 58.2), 64: (16.8, 46.3), 128: (7.94, 36.1), 256: (2.93, 24.2)}  # mean and deviation
ATTEMPTS = 5  # for a distractor


@dataclass
class Scene:
    """Pictures before they are put together: bytes snakes (n, 2, S, S), distractors and discs (n, S, S), and where the
    snakes begin and end, (n, 2, 2) each."""

    snakes: np.ndarray
    distractors: np.ndarray
    begin: np.ndarray
    end: np.ndarray


@task
def pathfinder(
    *,
    size: int = 32,
    dashes: int = 14,
    sequence: bool = False,
    alike: bool = False,
    examples: int = 160_000,
    tests: int = 20_000,
) -> Task:
    """Whether two discs lie on one dashed curve. inputs (rows, S, S, 1) pictures, or (rows, S S) grey values as tokens
    where `sequence`; targets (rows,)."""
    if size not in LOOKS:
        raise DataError(f"pathfinder: size is {size!r}, but the sizes defined are {', '.join(map(str, LOOKS))}")
    at_least("pathfinder", dashes=(dashes, 3), examples=(examples, 1), tests=(tests, 1))
    if dashes > 18:
        raise DataError(f"pathfinder: two snakes of dashes={dashes} hardly ever fit; take at most 18")
    if not isinstance(sequence, bool) or not isinstance(alike, bool):
        raise DataError("pathfinder: sequence and alike are True or False")
    look = LOOKS[size]
    if alike:
        look = replace(look, bright=(look.bright[0], look.bright[0]))

    def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        pictures, labels, _ = draw(rng, rows, look, dashes)
        return pictures.reshape(rows, -1) if sequence else pictures[..., None], labels

    facts = {"classes": 2}
    facts |= {"vocab": 256, "length": size * size} if sequence else {"channels": 1, "image": (size, size)}
    return Task(
        make,
        facts,
        embed="tokens" if sequence else "patches",
        head="classify",
        examples=examples,
        tests=tests,
        pixels=None if sequence else PIXELS[size],
        chance=0.5,
    )


def draw(rng: np.random.Generator, rows: int, look: Look, number: int) -> tuple[np.ndarray, np.ndarray, Scene]:
    """Pictures (rows, S, S) in bytes, labels (rows,), and what the pictures are made of."""
    margin = rng.integers(0, len(look.margins), size=rows)
    size = look.size
    scene = Scene(*(np.zeros((rows, *s), np.uint8) for s in ((2, size, size), (size, size))),
                  *(np.zeros((rows, 2, 2), np.int64) for _ in range(2)))  # fmt: skip
    for which, value in enumerate(look.margins):
        here = np.flatnonzero(margin == which)
        if len(here):
            made = _scene(rng, len(here), look, tables(look, value), number)
            for name in ("snakes", "distractors", "begin", "end"):
                getattr(scene, name)[here] = getattr(made, name)
    row = np.arange(rows)
    first, labels = rng.integers(0, 2, size=rows), rng.integers(0, 2, size=rows)
    last = np.where(labels == 1, first, 1 - first)
    discs = np.maximum(_disc(scene.begin[row, first], look), _disc(scene.end[row, last], look))
    bright = np.maximum(scene.snakes.max(1) * look.bright[0], scene.distractors * look.bright[1])
    bright = np.maximum(bright, discs)
    return np.floor(bright / bright.max((1, 2), keepdims=True) * 255 + 0.5).astype(np.uint8), labels, scene


def _disc(place: np.ndarray, look: Look) -> np.ndarray:
    """(n, S, S) bytes: a disc around each place."""
    n = look.size * FINE
    along = np.arange(n) - place[..., None] * FINE  # (n, 2, S FINE)
    fine = along[:, 0, :, None] ** 2 + along[:, 1, None, :] ** 2 <= (look.radius * FINE) ** 2
    return shrink(fine.astype(np.uint8) * 255, look.size)


def _scene(rng: np.random.Generator, rows: int, look: Look, t: Dashes, number: int) -> Scene:
    """Scenes that succeed, in the order in which they were begun."""
    begun = max(64, min(32 * rows, (32 << 20) // Planes.wide(look, t) ** 2))
    found, have = [], 0
    while have < rows:
        found.append(two_snakes(rng, begun, look, t, number))
        have += len(found[-1][1])
    planes = Planes.join([planes for planes, _ in found]).of(np.arange(rows))
    placed = np.concatenate([made for _, made in found])[:rows]
    snakes = np.stack([render(placed[:, s], look, t) for s in range(2)], 1)
    distractors = np.zeros((rows, look.size, look.size), np.uint8)
    short = number // 3
    for _ in range(look.distractors // short):
        waiting = np.arange(rows)
        for _ in range(ATTEMPTS):
            tried = planes.of(waiting)
            done, more = one_snake(rng, tried, look, t, short)
            planes.put(waiting[done], tried.of(done))
            distractors[waiting[done]] = np.maximum(distractors[waiting[done]], render(more[done], look, t))
            waiting = np.delete(waiting, done)
            if not len(waiting):
                break
    return Scene(snakes, distractors, placed[:, :, 0, :2], placed[:, :, -1, :2])
