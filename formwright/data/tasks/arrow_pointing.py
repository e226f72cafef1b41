"""Arrow pointing: does the arrow point to the disc?

On white, a black disc of radius r, 15 to 30 pixels at size 192, and an arrow of 15 to 30 pixels; from one to the
other it is at least 2 r across and 2 r down. The ray from the arrow's middle along its direction passes the disc's
centre at less than r / 1.2 (label 1) or at more than 1.2 r (label 0), the direction uniform over those allowed; both
labels are as likely. Pictures of other sizes are drawn to scale, but those of the test part are `tested_size` wide
(twice the size, unless one says) with disc and arrow as large as in training: who learned where to look at size 192
is asked at 384, and validation tells the accuracy at the size seen. Pöppel et al., "pLSTM: parallelizable Linear
Source Transition Mark networks", arXiv 2506.11997, 2025; lines are drawn smooth here, in grey.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task

WIDE = 192  # the size at which lengths are given
RADIUS, LENGTH, WIDTH = (15.0, 30.0), (15.0, 30.0), (2.0, 3.0)
BORDER, APART, CLEAR = 30.0, 2.0, 1.2
BARB, SPREAD = 0.4, 0.5  # of the arrow's head: its length in arrows, its angle
PIXELS = (242.0, 54.0)  # mean and deviation
CHUNK = 100


@dataclass
class Scene:
    """Arrow and disc (rows, 2) in pixels, across and down, direction, radius, length and width of the arrow (rows,)."""

    arrow: np.ndarray
    disc: np.ndarray
    angle: np.ndarray
    radius: np.ndarray
    length: np.ndarray
    width: np.ndarray


@task
def arrow_pointing(
    *, size: int = WIDE, tested_size: int | None = None, examples: int = 100_000, tests: int = 10_240
) -> Task:
    """Whether an arrow points to a disc, asked at twice the size too. inputs (rows, S, S, 1), targets (rows,)."""
    tested = 2 * size if tested_size is None else tested_size
    at_least("arrow_pointing", size=(size, 24), tested_size=(tested, size), examples=(examples, 1), tests=(tests, 1))
    common = math.gcd(size, tested)
    patch = max(p for p in range(1, max(2, size // 12 + 1)) if common % p == 0)
    if tested // patch > 128:
        raise DataError(
            f"arrow_pointing: pictures of {size} and {tested} pixels can't be cut into patches alike; take tested_size "
            "a multiple of size"
        )

    def maker(wide: int):
        def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
            scene, labels = draw(rng, rows, wide, size / WIDE)
            return paint(scene, wide)[..., None], labels

        return make

    return Task(
        maker(size),
        {"channels": 1, "image": (size, size), "classes": 2},
        embed=f"patches(size={patch}, position=None)",  # learned positions would end where the pictures seen do
        head="classify",
        examples=examples,
        tests=tests,
        make_test=maker(tested) if tested != size else None,
        harder=f"its pictures are {tested} x {tested}",
        pixels=PIXELS,
        chance=0.5,
    )


def draw(rng: np.random.Generator, rows: int, wide: int, scale: float) -> tuple[Scene, np.ndarray]:
    """Where things are in pictures of this width, lengths times `scale`; labels (rows,)."""
    field = wide - 2 * BORDER * scale
    labels = rng.integers(0, 2, size=rows)
    radius = scale * rng.uniform(*RADIUS, size=rows)
    arrow = field * rng.random((rows, 2))
    gap = APART * radius[:, None]
    disc = (arrow + gap + (field - 2 * gap) * rng.random((rows, 2))) % field  # around the field's edges
    towards = disc - arrow
    far = np.hypot(*towards.T)
    half = np.arcsin(np.where(labels == 1, radius / CLEAR, radius * CLEAR) / far)
    u = rng.random(rows)
    turn = np.where(labels == 1, half * (2 * u - 1), half + u * (2 * np.pi - 2 * half))
    scene = Scene(
        arrow=arrow + BORDER * scale,
        disc=disc + BORDER * scale,
        angle=np.arctan2(towards[:, 1], towards[:, 0]) + turn,
        radius=radius,
        length=scale * rng.uniform(*LENGTH, size=rows),
        width=np.maximum(1.0, scale * rng.uniform(*WIDTH, size=rows)),
    )
    return scene, labels


def paint(scene: Scene, wide: int) -> np.ndarray:
    """(rows, S, S) bytes, 255 white; a pixel that an edge passes is as dark as about the share that is covered."""
    out = np.full((len(scene.angle), wide, wide), 255, np.uint8)
    for start in range(0, len(out), CHUNK):
        part = Scene(*(values[start : start + CHUNK] for values in vars(scene).values()))
        place, apart = _window(part.disc, part.radius.max(), wide)
        _darken(out[start : start + CHUNK], place, part.radius[:, None] - np.hypot(*apart))
        place, apart = _window(part.arrow, part.length.max() / 2 + part.width.max(), wide)
        inside = np.max([part.width[:, None] / 2 - away for away in _strokes(part, apart)], axis=0)
        _darken(out[start : start + CHUNK], place, inside)
    return out


def _window(centre: np.ndarray, reach: float, wide: int) -> tuple[np.ndarray, np.ndarray]:
    """Around each centre (m, 2) a square of pixels: where they are in their picture (m, Q), and how far from the centre
    across and down (2, m, Q). No square leaves the picture."""
    n = min(wide, 2 * int(reach + 3))
    corner = np.clip(np.floor(centre - n / 2).astype(np.int64), 0, wide - n)
    x, y = (corner[:, k, None] + np.arange(n) for k in (0, 1))
    place = y[:, :, None] * wide + x[:, None, :]
    apart = np.broadcast_arrays((x - centre[:, :1])[:, None, :], (y - centre[:, 1:])[:, :, None])
    return place.reshape(len(centre), -1), np.stack([a.reshape(len(centre), -1) for a in apart])


def _strokes(scene: Scene, apart: np.ndarray) -> list[np.ndarray]:
    """How far pixels are from the arrow's shaft and from the two barbs at its tip, (m, Q) each."""
    ahead = np.stack([np.cos(scene.angle), np.sin(scene.angle)])[..., None]
    half = scene.length[:, None] / 2
    tip = ahead * half
    barbs = [scene.angle + np.pi + turn for turn in (-SPREAD, SPREAD)]
    lines = [(-tip, ahead, 2 * half)]
    lines += [(tip, np.stack([np.cos(a), np.sin(a)])[..., None], BARB * 2 * half) for a in barbs]
    out = []
    for start, direction, long in lines:
        along = np.clip(((apart - start) * direction).sum(0), 0, long)
        out.append(np.hypot(*(apart - start - along * direction)))
    return out


def _darken(pictures: np.ndarray, place: np.ndarray, inside: np.ndarray) -> None:
    """Set pixels that lie so far (in pixels) inside a shape's edge; less than half a pixel, partly."""
    flat = pictures.reshape(len(pictures), -1)
    row = np.arange(len(flat))[:, None]
    grey = np.floor(255 * np.clip(0.5 - inside, 0, 1) + 0.5).astype(np.uint8)
    flat[row, place] = np.minimum(flat[row, place], grey)
