"""What block-wise ops share: tiles of rows and tokens, buffers that all tiles write into, dtypes they compute in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tile(NamedTuple):
    """Some chunks, all of one size, of one group of rows: tokens start..stop of rows row..row_end, whose states are
    state..state_end. `first` and `last` of their sequence."""

    row: int
    row_end: int
    start: int
    stop: int
    state: int
    state_end: int
    first: bool
    last: bool
    chunks: int = 1

    @property
    def size(self) -> int:
        """Tokens of one chunk."""
        return (self.stop - self.start) // self.chunks


def tile_plan(
    rows: int, bounds: list[tuple[int, int]], chunk: int, group: int, packed: bool, together: int = 1
) -> list[Tile]:
    """The chunks in the order they are computed, at most `together` whole ones a tile: groups of rows outermost, so
    that what a tile touches stays in cache; packed sequences one after another, each with chunks of its own."""
    tiles = []
    for number, (begin, end) in enumerate(bounds):
        for row in range(0, rows, group):
            row_end = min(row + group, rows)
            states = (number, number + 1) if packed else (row, row_end)
            start = begin
            while start < end:
                chunks = min(max(1, (end - start) // chunk), together)
                stop = min(start + chunks * chunk, end)
                tiles.append(Tile(row, row_end, start, stop, *states, start == begin, stop == end, chunks))
                start = stop
    return tiles


def padded_size(tokens: int) -> int:
    """The power of two that a chunk of `tokens` is filled up to where blocks are joined pairwise."""
    return 1 << (tokens - 1).bit_length()


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precisions are computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Workspace:
    """Buffers by name that all tiles write into again: on a CPU, freshly mapped memory costs more than the sums done
    in it. While a graph is traced it gives None, so that `out=None` leaves memory to the compiler."""

    def __init__(self, like: Tensor):
        self.dtype, self.device = compute_dtype(like.dtype), like.device
        self.buffers: dict[tuple, Tensor] | None = None if torch.compiler.is_compiling() else {}

    def __call__(self, name: str, *shape: int) -> Tensor | None:
        if self.buffers is None:
            return None
        if (name, shape) not in self.buffers:
            self.buffers[name, shape] = torch.empty(shape, dtype=self.dtype, device=self.device)
        return self.buffers[name, shape]

    def onto(self, tensor: Tensor) -> Tensor | None:
        """`tensor` itself as the place of a result that replaces it."""
        return None if self.buffers is None else tensor


def copied(source: Tensor, out: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
    if out is not None:
        return out.copy_(source)
    return source.contiguous() if dtype is None else source.to(dtype)
