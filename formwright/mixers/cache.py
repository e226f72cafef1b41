"""What a decoding mixer keeps of tokens that are past: keys, values, or whatever grows by one row a token.

A cache is a dict of tensors (..., room, width), tokens on the axis before the last, and `count`, how many tokens came.
Rows are written in place, so that a cache given to `append` is spent (clone it to branch); where gradients need the old
one, it is copied. Without room a cache grows twofold. With a window it is a ring of at most so many rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Cache = dict[str, Any]


def empty_cache(like: Tensor, room: int | None = None, **shapes: tuple[int, ...]) -> Cache:
    """A cache before the first token, in `like`'s dtype and device: by name, the shape (..., width) of one token."""
    room = 0 if room is None else room
    return {name: like.new_zeros(*shape[:-1], room, shape[-1]) for name, shape in shapes.items()} | {"count": 0}


def append(cache: Cache, **new: Tensor) -> tuple[dict[str, Tensor], Cache]:
    """T more rows (..., T, width) by name -> all rows so far (..., count + T, width), in order, and the new cache."""
    count = cache["count"]
    stop = count + next(iter(new.values())).shape[-2]
    kept = {name: _with_room(cache[name], stop, None, rows) for name, rows in new.items()}
    for name, rows in new.items():
        kept[name][..., count:stop, :] = rows
    return {name: rows[..., :stop, :] for name, rows in kept.items()}, kept | {"count": stop}


def append_heads(cache: Cache, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Cache]:
    """`append` for keys and values as ops take them: T more (B, T, H, K) and (B, T, H, V) -> all so far
    (B, count + T, H, ...), and the new cache, which holds them as (B, H, room, ...)."""
    seen, cache = append(cache, keys=keys.transpose(1, 2), values=values.transpose(1, 2))
    return seen["keys"].transpose(1, 2), seen["values"].transpose(1, 2), cache


def append_ring(cache: Cache, window: int, *, ordered: bool = True, **new: Tensor) -> tuple[dict[str, Tensor], Cache]:
    """T more rows by name -> the rows that these T tokens may look back to, fewer than `window` places, and the new
    cache. The rows returned end with the new ones; for a single token of a full ring with ordered=False they are the
    ring itself, in its own order and without a copy."""
    count, tokens = cache["count"], next(iter(new.values())).shape[-2]
    stop = count + tokens
    kept = {name: _with_room(cache[name], min(stop, window), window, rows) for name, rows in new.items()}
    size = next(iter(kept.values())).shape[-2]
    if stop <= size:
        for name, rows in new.items():
            kept[name][..., count:stop, :] = rows
        return {name: rows[..., :stop, :] for name, rows in kept.items()}, kept | {"count": stop}
    device = next(iter(new.values())).device
    seen = {}
    if tokens > 1 or ordered:
        past = torch.arange(max(0, count - size + 1), count, device=device) % size
        seen = {name: torch.cat([kept[name][..., past, :], rows], -2) for name, rows in new.items()}
    last = min(tokens, size)
    slots = (
        torch.arange(stop - last, stop, device=device) % size if tokens > 1 else slice(count % size, count % size + 1)
    )
    for name, rows in new.items():
        kept[name][..., slots, :] = rows[..., tokens - last :, :]
    return seen or kept, kept | {"count": stop}


def _with_room(rows: Tensor, needed: int, most: int | None, new: Tensor) -> Tensor:
    """The rows themselves, or twice as many, at most `most`, where they are fewer than needed."""
    size = rows.shape[-2]
    if size < needed:
        grown = max(needed, 2 * size)
        larger = rows.new_zeros(*rows.shape[:-2], grown if most is None else min(grown, most), rows.shape[-1])
        larger[..., :size, :] = rows
        return larger
    return rows.clone() if torch.is_grad_enabled() and (new.requires_grad or rows.requires_grad) else rows
