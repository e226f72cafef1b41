"""Grid-cell positions: pairs of channels are turned by the phases of plane waves, in several directions and scales.

    (x_c, x_{c+m}) turned by a = r^(-s) k_j . p,     c = (j, s): directions j, scales s = 0, 1, ..., m pairs in all

On A > 1 axes the directions k_j are the A + 1 corners of a regular simplex about its centre (three at 120 degrees in
the plane, as the lattice of a grid cell has them), on one axis the axis itself, where r = base^(2/K) gives RoPE. The
ratio of scales is r = e^(1/A), the one at which a given number of cells resolves most. Scores depend on differences
of positions alone; coordinates may be reals. Channels left over are not turned.
GridPE: Unifying Positional Encoding in Transformers with a Grid Cell-Inspired Framework, 2406.07049, 2024; the ratio:
Wei, Prentice and Balasubramanian, The Sense of Place: Grid Cells in the Brain and the Transcendental Number e,
1304.0031, 2013.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from formwright.contract import Card, Position
from formwright.parts import register
from formwright.positions.rope import turn


def directions(axes: int) -> list[list[float]]:
    """The corners of a regular simplex, at distance 1 from its centre; one axis has one direction."""
    if axes == 1:
        return [[1.0]]
    size = math.sqrt((axes + 1) / axes)
    helmert = [[1.0] * k + [-float(k)] + [0.0] * (axes - k) for k in range(1, axes + 1)]
    return [[size * row[i] / math.sqrt(k * (k + 1)) for k, row in enumerate(helmert, 1)] for i in range(axes + 1)]


@register
class GridPE(Position):
    card = Card(
        name="gridpe",
        kind="position",
        summary="turns queries and keys by plane waves of several directions and scales, as grid cells see space",
        source="GridPE: Unifying Positional Encoding in Transformers, 2406.07049, 2024",
        symmetries=("shift",),
        extrapolates=False,
    )
    role = "rotate"

    def __init__(self, dim: int, *, ratio: float | None = None):
        """dim is the width of a head; ratio that of one scale to the next, e^(1/A) without it. Raises ValueError for a
        ratio that is not above 1."""
        super().__init__()
        if ratio is not None and ratio <= 1:
            raise ValueError(f"gridpe: the ratio of scales must be above 1, but is {ratio}")
        self.dim, self.ratio = dim, ratio

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, N, H, K), positions (N, A) or (B, N, A) -> x turned. Raises ValueError where heads are too narrow for
        one pair a direction."""
        axes = positions.shape[-1]
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        waves = torch.tensor(directions(axes), dtype=wide, device=x.device)
        scales = self.dim // (2 * len(waves))
        if scales == 0:
            raise ValueError(f"gridpe: {axes} axes take heads of {2 * len(waves)} channels, but they have {self.dim}")
        ratio = math.exp(1 / axes) if self.ratio is None else self.ratio
        sizes = ratio ** -torch.arange(scales, dtype=wide, device=x.device)
        phases = (positions.to(wide)[..., None, :] * waves).sum(-1)  # (..., N, directions)
        return turn(x, (phases[..., None] * sizes).flatten(-2).unsqueeze(-2))
