"""The dashes of pathfinder's snakes: how they look, what they keep clear of, and where a snake may go on.

A dash ("paddle") is a line of `length` pixels in one of a finite number of directions; around it lies its mask, the
dash widened by `margin`. Both are drawn once for each direction, at twice the size, and shrunk by a Lanczos filter of
three lobes, in bytes. From a dash in direction a the next one starts at a pivot, `length + 2 margin` ahead of the last;
its far end is one of the pixels on the circle of radius length + margin around it, with probability proportional to

    (1 - m) cos(min(continuity |a - b|, pi/2))^2

b the direction from the pivot to it, m the greatest mask within `margin` of it. Linsley et al., "Learning long-range
spatial dependencies with horizontal gated recurrent units", arXiv 1805.08315, 2018; the details as in the generator
that its authors published.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

FINE = 2  # how much finer dashes and discs are drawn
FREE = 76  # a mask of at most 0.3 leaves a pixel free for a new dash
TOUCH = 459  # and two masks whose sum reaches 1.8 touch
DEGREES = 360


@dataclass(frozen=True)
class Look:
    """How pictures of one size look (pixels): dashes, the space between them, the border kept clear, how far apart the
    two snakes begin, the discs at their ends, how straight snakes are, what is divided by the distractors' length to
    give their number, and how bright snakes and distractors are drawn."""

    size: int
    length: int
    thickness: float
    margins: tuple[int, ...]
    border: int
    distance: int
    radius: float
    continuity: float
    distractors: int
    bright: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Ink:
    """The pixels that are not 0 in small pictures: offset (I, Q, 2) from the centre and level (I, Q) in bytes; rows
    with fewer are filled up by a pixel that is 0."""

    offset: np.ndarray
    level: np.ndarray

    @classmethod
    def of(cls, pictures: np.ndarray) -> Ink:
        """Of bytes (I, K, K), whose corners are 0."""
        flat = pictures.reshape(len(pictures), -1)
        order = np.argsort(flat == 0, axis=1, kind="stable")[:, : int((flat > 0).sum(1).max())]
        level = np.take_along_axis(flat, order, 1)
        order = np.where(level > 0, order, 0)
        size = pictures.shape[-1]
        return cls(np.stack([order // size, order % size], -1) - size // 2, level)


@lru_cache(maxsize=64)
def steps(ink: Ink, wide: int) -> np.ndarray:
    """(I, Q): the ink's offsets in flattened pictures of this width."""
    return ink.offset[..., 0] * wide + ink.offset[..., 1]


@dataclass(frozen=True, eq=False)
class Dashes:
    """What is known of each direction (I = 360 whole degrees, then those that lead to the C pixels around a pivot).

    edge                    how far beyond a picture anything is put, or looked for
    ahead (I, 2)            from one pivot to the next
    head, pivot (I, 2)      of a first dash, from its tail
    reach (C, 2)            the pixels around a pivot
    weight (I, C)           cos^2 of going on in each
    line, mask, near, firm  what a dash sets around where it begins (at its tail for degrees, at its far end for the
                            others): its picture, its mask as far as it counts, the mask widened by `margin`, the mask
                            where it may touch another
    room                    the pixels that must be free for a first dash
    """

    margin: int
    edge: int
    ahead: np.ndarray
    head: np.ndarray
    pivot: np.ndarray
    reach: np.ndarray
    weight: np.ndarray
    line: Ink
    mask: Ink
    near: Ink
    firm: Ink
    room: Ink


def lanczos(size: int, smaller: int) -> np.ndarray:
    """(smaller, size): the weights that shrink a row of pixels, as imaging libraries take them."""
    scale = size / smaller
    centre = (np.arange(smaller)[:, None] + 0.5) * scale
    place = np.arange(size)[None]
    first, last = np.floor(centre - 3 * scale + 0.5), np.floor(centre + 3 * scale + 0.5)
    x = (place + 0.5 - centre) / scale
    weight = np.where((place >= first) & (place < last) & (np.abs(x) < 3), np.sinc(x) * np.sinc(x / 3), 0.0)
    return weight / weight.sum(1, keepdims=True)


def shrink(picture: np.ndarray, smaller: int) -> np.ndarray:
    """Bytes (..., n, n) -> (..., smaller, smaller), rows first, rounded after each direction."""
    weight = lanczos(picture.shape[-1], smaller)
    wide = np.clip(np.rint(picture.astype(np.float64) @ weight.T), 0, 255)
    return np.clip(np.rint(weight @ wide), 0, 255).astype(np.uint8)


def rounded_up(values: np.ndarray) -> np.ndarray:
    """The next whole numbers; sines and cosines that miss one by rounding count as it."""
    return np.ceil(np.round(values, 9)).astype(np.int64)


def disc(radius: int) -> np.ndarray:
    """(S, 2) whole offsets within a radius."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return np.stack([y, x], -1)[y**2 + x**2 <= radius**2]


def draw_line(size: int, centre: int, towards: np.ndarray, width: int) -> np.ndarray:
    """Bytes (size, size): the line from (centre, centre) over `towards`, 255 on it."""
    out = np.zeros((size, size), dtype=np.uint8)
    if width == 1:
        steps = int(np.abs(towards).max())
        for i in range(steps + 1):
            y, x = (np.floor(centre + towards * i / steps + 0.5)).astype(int)
            out[y, x] = 255
        return out
    y, x = np.mgrid[:size, :size] - centre
    long = np.hypot(*towards)
    along, across = (y * towards[0] + x * towards[1]) / long, (x * towards[0] - y * towards[1]) / long
    out[(np.round(along, 9) >= 0) & (np.round(along - long, 9) <= 0) & (np.round(across + width / 2, 9) >= 0)
        & (np.round(across - width / 2, 9) < 0)] = 255  # fmt: skip
    return out


def widen(picture: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The greatest value of a picture over these offsets around each pixel."""
    r = int(np.abs(offsets).max())
    padded, n = np.pad(picture, r), len(picture)
    return np.max([padded[r + y : r + y + n, r + x : r + x + n] for y, x in offsets], axis=0)


@lru_cache(maxsize=16)
def dashes(look: Look, margin: int) -> Dashes:
    """The tables of a look, with one of its margins."""
    length, width = look.length, round(look.thickness * FINE)
    radius = length + margin
    around = np.arange(0, 360, 360 / (2 * np.pi * radius)) * np.pi / 180
    circle = np.stack([np.sin(around), np.cos(around)], -1) * radius
    reach = np.unique(np.floor(np.round(circle, 9)).astype(np.int64), axis=0)
    seeds = np.arange(-180, 180) * np.pi / 180
    towards = np.arctan2(reach[:, 0], reach[:, 1])
    angles = np.concatenate([seeds, towards])
    drawn = np.concatenate([seeds, np.where(towards < 0, towards + np.pi, towards - np.pi)])
    half = length + int(np.ceil(look.thickness)) + margin
    fine, small = 2 * half * FINE + 1, 2 * half + 1
    unit = np.stack([np.sin(drawn), np.cos(drawn)], -1)
    lines = np.stack([draw_line(fine, half * FINE, over, width) for over in rounded_up(unit * length * FINE)])
    wide = np.stack([widen(line, disc(margin * FINE)) for line in lines])
    mask = shrink(wide, small)
    unit = np.stack([np.sin(angles), np.cos(angles)], -1)
    apart = np.abs(angles[:, None] - towards)
    apart = np.minimum(np.minimum(apart, 2 * np.pi - apart) * look.continuity, np.pi / 2)
    head = rounded_up(unit * length)
    # A first dash needs room where its mask is full, as far as `radius` around the pixel beside its tail.
    y, x = np.mgrid[-half : half + 1, -half : half + 1] + 1
    cut = (np.abs(y) <= radius) & (np.abs(x) <= radius)
    room = np.roll(np.where(cut & (mask == 255), mask, 0), 1, (1, 2))
    around = np.pad(mask, ((0, 0), (margin, margin), (margin, margin)))
    return Dashes(
        margin=margin,
        edge=half + margin + 2,
        ahead=rounded_up(unit * (length + 2 * margin)),
        head=head,
        pivot=head + rounded_up(-unit * radius),
        reach=reach,
        weight=np.maximum(np.cos(apart), 0) ** 2,
        line=Ink.of(shrink(lines, small)),
        mask=Ink.of(np.where(mask > FREE, mask, 0)),
        near=Ink.of(np.stack([widen(m, disc(margin)) for m in around])),
        firm=Ink.of(np.where(mask >= TOUCH - 255, mask, 0)),
        room=Ink.of(room),
    )
