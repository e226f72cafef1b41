"""Growing snakes, many at once: dash by dash (dashes.py), where the pictures' masks leave room.

A dash may stand where its mask and those of all dashes but the last one of its own snake don't touch; three are tried.
A first dash may stand where all pixels that it covers are free.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from formwright.data.dashes import DEGREES, FREE, TOUCH, Dashes, Ink, Look, steps

TRIES = 3


@dataclass
class Planes:
    """What is taken, (n, W, W) bytes each: masks, and masks widened by the margin. The picture lies in the middle, far
    enough from the edge for all that is put; outside it nothing is masked, and no dash may end."""

    mask: np.ndarray
    near: np.ndarray

    @staticmethod
    def wide(look: Look, t: Dashes) -> int:
        return look.size + 2 * t.edge

    @staticmethod
    def new(rows: int, look: Look, t: Dashes) -> Planes:
        mask = 255 - _middle(look, t, look.border)
        mask[_middle(look, t, 0) == 0] = 0
        near = 255 - _middle(look, t, look.border + t.margin)
        return Planes(np.repeat(mask[None], rows, 0), np.repeat(near[None], rows, 0))

    @staticmethod
    def join(parts: list[Planes]) -> Planes:
        return Planes(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("mask", "near")))

    def of(self, rows: np.ndarray) -> Planes:
        return Planes(self.mask[rows], self.near[rows])

    def put(self, rows: np.ndarray, other: Planes) -> None:
        self.mask[rows], self.near[rows] = other.mask, other.near

    def mark(self, who: np.ndarray, dash: np.ndarray, t: Dashes) -> None:
        """Put dashes (m, 3) into the planes `who` (m,), no plane twice."""
        for plane, ink in ((self.mask, t.mask), (self.near, t.near)):
            _put(plane, who, dash, ink, t.edge)


def _middle(look: Look, t: Dashes, border: int) -> np.ndarray:
    """(W, W): 255 in the picture without a border, 0 elsewhere."""
    out = np.zeros((Planes.wide(look, t),) * 2, np.uint8)
    e = t.edge + border
    out[e : len(out) - e, e : len(out) - e] = 255
    return out


def _where(plane: np.ndarray, who: np.ndarray, place: np.ndarray, edge: int) -> np.ndarray:
    """Where the pixels `place` (m, ..., 2) of the planes `who` (m,) lie in all of them, flattened: (m, ...)."""
    wide = plane.shape[-1]
    start = who * (wide * wide) + edge * (wide + 1)
    return start.reshape(-1, *[1] * (place.ndim - 2)) + place[..., 0] * wide + place[..., 1]


def _put(plane: np.ndarray, who: np.ndarray, dash: np.ndarray, ink: Ink, edge: int) -> None:
    flat, ids = plane.reshape(-1), dash[:, 2]
    where = _where(plane, who, dash[:, :2], edge)[:, None] + steps(ink, plane.shape[-1])[ids]
    flat[where] = np.maximum(flat[where], ink.level[ids])


def _inside(place: np.ndarray, size: int) -> np.ndarray:
    return ((place >= 0) & (place < size)).all(-1)


def two_snakes(rng: np.random.Generator, begun: int, look: Look, t: Dashes, number: int) -> tuple[Planes, np.ndarray]:
    """Of so many pairs begun those that grew to their length: planes, and (n, 2, number, 3) places and directions."""
    planes = Planes.new(begun, look, t)
    facing = rng.integers(0, DEGREES, size=(begun, 2))
    first, have = _beginnings(look, t)
    chosen = (rng.random(begun) * have[facing[:, 0]]).astype(np.int64)
    tails = np.repeat(first[facing[:, 0], chosen][:, None], 2, 1)
    turn = rng.integers(0, 360, size=begun) * np.pi / 180
    away = look.distance * np.stack([np.sin(turn), np.cos(turn)], -1)
    tails[:, 1] += np.rint(np.round(away, 9)).astype(np.int64)
    good = _inside(tails + t.head[facing], look.size) & _inside(tails + t.pivot[facing], look.size)
    who = np.flatnonzero(good.all(1) & (have[facing[:, 0]] > 0))
    placed = np.zeros((begun, 2, number, 3), np.int64)
    placed[:, :, 0] = np.concatenate([tails, facing[..., None]], -1)
    pivot = tails + t.pivot[facing]
    for k in range(1, number):
        for s in range(2):
            ok, pivot[who, s], placed[who, s, k] = _extend(rng, planes, who, pivot[who, s], placed[who, s, k - 1], t)
            who = who[ok]
    planes.mark(who, placed[who, 1, -1], t)
    return planes.of(who), placed[who]


def _extend(
    rng: np.random.Generator, planes: Planes, who: np.ndarray, pivot: np.ndarray, last: np.ndarray, t: Dashes
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One more dash for the snakes of the planes `who` (m,), whose last one (m, 3) is put there where it succeeds ->
    whether it does, the new pivots, the new dashes (m, 3)."""
    edge, wide, masks = t.edge, planes.mask.shape[-1], planes.mask.reshape(-1)
    pivot = pivot + t.ahead[last[:, 2]]
    ends = _where(planes.near, who, pivot, edge)[:, None] + t.reach @ [wide, 1]
    share = (t.weight[last[:, 2]] * (255 - planes.near.reshape(-1)[ends])).cumsum(1)
    ok = np.zeros(len(who), bool)
    pick = np.zeros(len(who), np.int64)
    firm = steps(t.firm, wide)[DEGREES:]
    rest = np.flatnonzero(share[:, -1] >= 255e-4)
    for _ in range(TRIES):
        now = (share[rest] > rng.random(len(rest))[:, None] * share[rest, -1:]).argmax(1)
        there = masks[ends[rest, now][:, None] + firm[now]]
        fits = (there.astype(np.int16) + t.firm.level[DEGREES + now] < TOUCH).all(1)
        ok[rest[fits]], pick[rest] = True, now
        rest = rest[~fits]
    planes.mark(who[ok], last[ok], t)
    return ok, pivot, np.concatenate([pivot + t.reach[pick], DEGREES + pick[:, None]], -1)


@lru_cache(maxsize=16)
def _frame(look: Look, t: Dashes, border: int) -> np.ndarray:
    """(W, W): whether a pixel lies in the picture's border."""
    return (_middle(look, t, 0) > 0) & (_middle(look, t, border) == 0)


@lru_cache(maxsize=16)
def _beginnings(look: Look, t: Dashes) -> tuple[np.ndarray, np.ndarray]:
    """For each whole degree the places where the first snake may begin (360, R, 2), and how many they are."""
    every = _every(look)
    frame, edge = _frame(look, t, 2 * look.distance)[None], t.edge
    start = _where(frame, np.zeros(len(every), np.int64), every, edge)[:, None]
    rooms = steps(t.room, frame.shape[-1])[:DEGREES]
    free = [
        every[~(frame.reshape(-1)[start + room] & (level > 0)).any(1)]
        for room, level in zip(rooms, t.room.level, strict=False)
    ]
    have = np.array([len(places) for places in free])
    first = np.zeros((DEGREES, max(1, have.max()), 2), np.int64)
    for places, into in zip(free, first, strict=True):
        into[: len(places)] = places
    return first, have


def _every(look: Look) -> np.ndarray:
    return np.stack(np.mgrid[: look.size, : look.size], -1).reshape(-1, 2)


def one_snake(
    rng: np.random.Generator, planes: Planes, look: Look, t: Dashes, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """A snake more in each of the planes, which are changed: those that succeed, and (n, number, 3) of all."""
    e, rows = t.edge, len(planes.mask)
    free = (planes.mask[:, e : e + look.size, e : e + look.size] <= FREE).mean((1, 2)) >= 0.01
    placed = np.zeros((rows, number, 3), np.int64)
    good = np.zeros(rows, bool)
    waiting = np.flatnonzero(free)
    for _ in range(TRIES):
        facing = rng.integers(0, DEGREES, size=len(waiting))
        found, tails = _first_dash(rng, planes.mask, waiting, facing, look, t)
        waiting, facing, tails = waiting[found], facing[found], tails[found]
        placed[waiting, 0] = np.concatenate([tails, facing[:, None]], -1)
        fits = _inside(tails + t.head[facing], look.size) & _inside(tails + t.pivot[facing], look.size)
        good[waiting[fits]] = True
        waiting = waiting[~fits]
    who = np.flatnonzero(good)
    pivot = placed[:, 0, :2] + t.pivot[placed[:, 0, 2]]
    for k in range(1, number):
        ok, pivot[who], placed[who, k] = _extend(rng, planes, who, pivot[who], placed[who, k - 1], t)
        who = who[ok]
    planes.mark(who, placed[who, -1], t)
    return who, placed


def _first_dash(
    rng: np.random.Generator, mask: np.ndarray, who: np.ndarray, facing: np.ndarray, look: Look, t: Dashes
) -> tuple[np.ndarray, np.ndarray]:
    """A place for it, uniform over those free: whether there is one (m,), and which (m, 2). Places are drawn until
    one is free; where 64 were not, all are looked at."""
    edge, frame = t.edge, _frame(look, t, 1)
    rooms, nowhere = steps(t.room, mask.shape[-1]), np.zeros(1, np.int64)
    found, tails = np.zeros(len(who), bool), np.zeros((len(who), 2), np.int64)

    def taken(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        room, level = rooms[facing[rows]][:, None], t.room.level[facing[rows]][:, None]
        masked = mask.reshape(-1)[_where(mask, who[rows], places, edge)[..., None] + room] > FREE
        framed = frame.reshape(-1)[_where(frame[None], nowhere, places, edge)[..., None] + room]
        return ((masked | framed) & (level > 0)).any(-1)

    rest = np.arange(len(who))
    for _ in range(8):
        places = rng.integers(0, look.size, size=(len(rest), 8, 2))
        free = ~taken(rest, places)
        here = free.any(1)
        tails[rest[here]] = places[here, free[here].argmax(1)]
        found[rest[here]] = True
        rest = rest[~here]
    every = _every(look)[None]
    for row in rest:
        free = np.flatnonzero(~taken(np.array([row]), every)[0])
        if len(free):
            tails[row], found[row] = every[0, free[rng.integers(len(free))]], True
    return found, tails


def render(dashes: np.ndarray, look: Look, t: Dashes) -> np.ndarray:
    """(n, S, S) bytes: the dashes (n, k, 3) of each row."""
    e, rows = t.edge, len(dashes)
    out = np.zeros((rows, *[Planes.wide(look, t)] * 2), np.uint8)
    for k in range(dashes.shape[1]):
        _put(out, np.arange(rows), dashes[:, k], t.line, e)
    return out[:, e : e + look.size, e : e + look.size]
