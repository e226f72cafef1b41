"""The geometry of tokens: their grid, padding or packing, and places. It travels beside x (B, N, D), made once a
forward; parts take it from formwright.contract.

Shapes by letters: B batch, N tokens, D width, A axes, S packed sequences.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The geometry of the N tokens of x: (B, N, D).

    grid     token axes after `prefix` class or register tokens; prefix + prod(grid) = N
    lengths  (B,) integers: valid tokens of each row of a padded batch (valid tokens come first)
    offsets  (S+1,) integers: bounds of S sequences packed end to end in one row (B = 1)
    coords   (B, N, A) reals: coordinates of irregular tokens (points, events, time stamps)
    """

    grid: tuple[int, ...]
    prefix: int = 0
    lengths: Tensor | None = None
    offsets: Tensor | None = None
    coords: Tensor | None = None

    @property
    def tokens(self) -> int:
        """N, the number of tokens."""
        return self.prefix + math.prod(self.grid)

    @property
    def plain(self) -> bool:
        """True when every row holds one sequence of N valid tokens: neither padded nor packed."""
        return self.lengths is None and self.offsets is None

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless this layout describes x: (B, N, D)."""
        if x.ndim != 3:
            raise ValueError(f"tokens are (B, N, D), but got a tensor of shape {tuple(x.shape)}")
        if x.shape[1] != self.tokens:
            raise ValueError(f"the layout {self.prefix} + {self.grid} has {self.tokens} tokens, but x has {x.shape[1]}")
        if self.lengths is not None and self.offsets is not None:
            raise ValueError("a layout is padded (lengths) or packed (offsets), not both")
        if self.lengths is not None and self.lengths.shape != (x.shape[0],):
            raise ValueError(f"lengths must be ({x.shape[0]},), one a row, but are {tuple(self.lengths.shape)}")
        if self.lengths is not None and not ((self.lengths >= 1) & (self.lengths <= self.tokens)).all():
            raise ValueError(f"lengths must lie in 1..{self.tokens}, but are {self.lengths.tolist()}")
        if self.offsets is not None:
            bounds = self.offsets.tolist()
            if x.shape[0] != 1 or bounds[0] != 0 or bounds[-1] != x.shape[1] or bounds != sorted(bounds):
                raise ValueError(f"offsets must rise from 0 to N={x.shape[1]} in one row, but are {bounds}")
        if self.coords is not None and self.coords.shape[:2] not in (x.shape[:2], (1, x.shape[1])):
            raise ValueError(f"coords must be (B, N, A), but are {tuple(self.coords.shape)}")

    def valid(self, device: torch.device | None = None) -> Tensor | None:
        """(B, N) booleans, True for tokens that are no padding; None where nothing is padded."""
        if self.lengths is None:
            return None
        return torch.arange(self.tokens, device=device) < self.lengths.to(device)[:, None]

    def sequence_ids(self, device: torch.device | None = None) -> Tensor | None:
        """(N,) the number of the packed sequence each token belongs to; None where nothing is packed."""
        if self.offsets is None:
            return None
        steps = torch.arange(self.tokens, device=device)
        return torch.bucketize(steps, self.offsets.to(device)[1:], right=True)

    def positions(self, device: torch.device | None = None) -> Tensor:
        """(N, A) or (B, N, A) coordinates: `coords` where given, else grid indices; prefix tokens stand at 0,
        packed sequences each begin at 0."""
        if self.coords is not None:
            return self.coords.to(device)
        if self.offsets is not None:
            bounds = self.offsets.to(device)
            steps = torch.arange(self.tokens, device=device)
            return (steps - bounds[self.sequence_ids(device)])[:, None]
        axes = [torch.arange(n, device=device) for n in self.grid]
        index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(self.grid))
        if self.prefix:
            index = torch.cat([index.new_zeros(self.prefix, len(self.grid)), index])
        return index

    def sequences(self) -> Iterator[tuple[int, slice, Layout]]:
        """(row, slice of tokens, plain layout) of every sequence of a padded or packed batch, without its padding."""
        if self.offsets is not None:
            bounds = self.offsets.tolist()
            for a, b in itertools.pairwise(bounds):
                coords = None if self.coords is None else self.coords[:, a:b]
                if b > a:
                    yield 0, slice(a, b), Layout((b - a,), coords=coords)
        elif self.lengths is not None:
            if len(self.grid) > 1:
                raise ValueError("a padded batch has one token axis, but the grid has " + str(len(self.grid)))
            for row, n in enumerate(self.lengths.tolist()):
                coords = None if self.coords is None else self.coords[row : row + 1, :n]
                yield row, slice(0, n), Layout((n - self.prefix,), self.prefix, coords=coords)

    def with_grid(self, *grid: int) -> Layout:
        """This layout with another grid (lengths, offsets and coords must be absent)."""
        if not self.plain or self.coords is not None:
            raise ValueError("only a plain layout can change its grid")
        return replace(self, grid=tuple(grid))
