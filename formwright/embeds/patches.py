"""Patch embedding:  x_i = W patch_i + b + p_i, the pixels of each patch of an N-D image by one linear map.

An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale, arXiv 2010.11929, 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Embed, Layout, Unsupported, parameter_count
from formwright.embeds.tokens import embedded_position
from formwright.parts import register


@register
class Patches(Embed):
    """Images (B, *image, channels), channel last and of any number of axes -> (B, N, D) on the grid of their patches.

    size      of a patch, for all axes or for each; left open, for each axis the largest that divides it and leaves at
              least 7 patches, or 1
    cls       a class token before the patches
    position  "grid", a learned vector for each place of the grid; "tokens", for the class token as well, as ViT has it;
              a part of role "embed"; or None

    Raises ValueError for images whose sides the patch doesn't divide, or of other sides than `image` where the
    positions are learned."""

    card = Card(
        name="patches",
        kind="embed",
        summary="cuts images of any rank into patches, each a token",
        source="An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale, arXiv 2010.11929, 2020",
    )

    def __init__(
        self,
        dim: int,
        *,
        channels: int,
        image: tuple[int, ...],
        size: int | tuple[int, ...] | None = None,
        cls: bool = False,
        position: Callable | str | None = "grid",
    ):
        super().__init__()
        self.dim, self.channels, self.image, self.rank = dim, channels, tuple(image), len(image)
        if size is None:
            size = tuple(max(p for p in range(1, n + 1) if n % p == 0 and (p == 1 or n // p >= 7)) for n in image)
        self.size = (size,) * self.rank if isinstance(size, int) else tuple(size)
        if len(self.size) != self.rank or min(self.size) < 1:
            raise ValueError(f"patches: size={size} doesn't fit images of {self.rank} axes; give one number for each")
        grid = self._grid(self.image)
        self.length = math.prod(grid) + cls
        self.project = nn.Linear(math.prod(self.size) * channels, dim)
        self.cls = nn.Parameter(torch.randn(dim) * 0.02) if cls else None
        learned = isinstance(position, str)
        if learned and position not in ("grid", "tokens"):
            raise ValueError(f"patches: position is 'grid', 'tokens', a position part or None, not {position!r}")
        self.prefixed = position == "tokens"
        places = (self.length,) if self.prefixed else grid
        self.places = nn.Parameter(torch.randn(*places, dim) * 0.02) if learned else None
        self.position = None if learned else embedded_position("patches", position, dim)

    def forward(self, inputs: Tensor, layout: Layout | None = None) -> tuple[Tensor, Layout]:
        if layout is not None and not layout.plain:
            raise Unsupported("patches", "lengths and offsets", "images are not padded or packed")
        layout = self.layout(tuple(inputs.shape[1:]))
        cut = [n for pair in zip(layout.grid, self.size, strict=True) for n in pair]
        pixels = inputs.reshape(len(inputs), *cut, self.channels)
        axes = [*range(1, 2 * self.rank, 2), *range(2, 2 * self.rank + 1, 2), 2 * self.rank + 1]
        x = self.project(pixels.permute(0, *axes).flatten(self.rank + 1))
        if self.places is not None and not self.prefixed:
            x = x + self.places
        x = x.flatten(1, -2)
        if self.cls is not None:
            x = torch.cat([self.cls.to(x.dtype).expand(len(x), 1, -1), x], 1)
        if self.prefixed:
            x = x + self.places
        if self.position is not None:
            x = self.position.embed(x, layout.positions(x.device))
        return x, layout

    def layout(self, inputs: tuple[int, ...]) -> Layout:
        if len(inputs) != self.rank + 1 or inputs[-1] != self.channels:
            wanted = ", ".join(str(n) for n in (*self.image, self.channels))
            raise ValueError(f"patches: an image is ({wanted}), channels last, but the input is {inputs}")
        sides = tuple(inputs[:-1])
        if self.places is not None and sides != self.image:
            raise ValueError(
                f"patches: the image is {sides}, but positions were learned for image={self.image}; resize it, or set "
                "position=None"
            )
        return Layout(self._grid(sides), prefix=0 if self.cls is None else 1)

    def _grid(self, sides: tuple[int, ...]) -> tuple[int, ...]:
        if any(n % p for n, p in zip(sides, self.size, strict=True)):
            raise ValueError(
                f"patches: an image of {sides} can't be cut by size={self.size}; take sizes that divide it"
            )
        return tuple(n // p for n, p in zip(sides, self.size, strict=True))

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=parameter_count(self), macs=batch * math.prod(layout.grid) * self.project.weight.numel())
