"""interleaved_latents(local, across, group=g, latents=m): a stack within groups of tokens, one on the groups' latents.

    x_t = local(x_t)                                       tokens of group t, by themselves: g of them on each axis
    z_t = z_0 + attend(norm(z_0), norm(x_t))               m latents of group t read its tokens
    z = across(z),   all groups' latents in one sequence
    x_t = x_t + attend(norm(x_t), norm(z_t))               and are written back to its tokens

Repeated, `4*interleaved_latents(attention + swiglu, 2*(attention + swiglu), group=16)` interleaves local and global
layers. Attention within groups costs N g, among latents (m N / g)^2: N^(4/3) with g = N^(1/3). A sequence's last group
may be smaller. The paper carries the latents of one round into the next; here a round begins with the learned ones,
and with tokens that the last round has written to.
FIT: Far-reaching Interleaved Transformers, arXiv 2305.12689, 2023.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, Unsupported, Wiring, parameter_count
from formwright.mixers.attention import Attention
from formwright.norms.rmsnorm import RMSNorm
from formwright.parts import register


@register
class InterleavedLatents(Wiring):
    card = Card(
        name="interleaved_latents",
        kind="wiring",
        summary="a stack within groups of tokens, and one on a few latents of each group that read and write them",
        source="FIT: Far-reaching Interleaved Transformers, arXiv 2305.12689, 2023",
    )
    stacks = ("local", "across")

    @classmethod
    def inside(cls, stack: str, flow: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        if flow.get("causal"):
            raise Unsupported("interleaved_latents", "causal=True", "a group's latents read all of its tokens")
        group = options.get("group", 32)
        if stack == "local":
            return {**flow, "length": group}
        groups = math.ceil(flow["length"] / max(1, group)) ** flow["rank"]
        return {**flow, "length": groups * options.get("latents", 4), "rank": 1}

    def __init__(
        self, dim: int, local: Wiring, across: Wiring, *, group: int = 32, latents: int = 4, heads: int | None = None
    ):
        """group is the tokens of a group along each axis, latents those of each group, heads those of reading and
        writing."""
        super().__init__()
        if group < 1 or latents < 1:
            raise ValueError(f"interleaved_latents: group={group} and latents={latents} must be at least 1")
        if local.dim_out != dim or across.dim_out != dim:
            raise ValueError(f"interleaved_latents: local and across must keep the width {dim} that they are given")
        self.dim = self.dim_out = dim
        self.group = group
        self.local, self.across = local, across
        self.latents = nn.Parameter(torch.randn(latents, dim) * 0.02)
        self.read, self.write = Attention(dim, heads=heads), Attention(dim, heads=heads)
        self.norm_latents, self.norm_read = RMSNorm(dim), RMSNorm(dim)
        self.norm_tokens, self.norm_write = RMSNorm(dim), RMSNorm(dim)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        if not layout.plain:
            if context is not None:
                raise Unsupported(
                    "interleaved_latents", "padded or packed tokens with a context", "run each sequence with its own"
                )
            out = torch.zeros_like(x)
            for row, where, alone in layout.sequences():
                out[row : row + 1, where] = self(x[row : row + 1, where], alone)[0]
            return out, layout
        batch, read, place = len(x), [], Layout((len(self.latents),))
        parts = split_groups(x, layout, self.group)
        for i, (tokens, inside) in enumerate(parts):
            tokens, _ = self.local(tokens, inside, *_for_each(len(tokens) // batch, context, context_layout))
            z = self.latents.repeat(len(tokens), 1, 1)
            z = z + self.read(self.norm_latents(z), place, self.norm_read(tokens), inside)
            parts[i] = tokens, inside
            read.append(z.unflatten(0, (batch, -1)).flatten(1, 2))
        z = torch.cat(read, 1)
        z, after = self.across(z, Layout((z.shape[1],)), context, context_layout)
        if after.tokens != z.shape[1] or z.shape[1] % len(self.latents):
            raise ValueError("interleaved_latents: `across` must keep the number of latents it is given")
        z = self.norm_write(z).unflatten(1, (-1, len(self.latents)))
        z = z.split([len(tokens) // batch for tokens, _ in parts], 1)
        for i, ((tokens, inside), own) in enumerate(zip(parts, z, strict=True)):
            tokens = tokens + self.write(self.norm_tokens(tokens), inside, own.flatten(0, 1), place)
            parts[i] = tokens, inside
        return join_groups(parts, batch, layout, self.group), layout

    def _places(self, layout: Layout) -> list[tuple[int, Layout]]:
        """(number of groups, layout of each): whole groups, then a smaller last one."""
        if len(layout.grid) == 1:
            whole, rest = divmod(layout.tokens, self.group)
            found = (whole, self.group), (1, rest)
            return [(count, Layout((size,))) for count, size in found if count and size]
        return [(math.prod(n // self.group for n in layout.grid), Layout((self.group,) * len(layout.grid)))]

    def inner(self, layout: Layout) -> list[tuple[str, nn.Module, Layout]]:
        places = self._places(layout)
        latents = Layout((len(self.latents) * sum(count for count, _ in places),))
        return [("local", self.local, places[0][1]), ("across", self.across, latents)]

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        if not layout.plain:
            parts = [self.cost(alone) for _, _, alone in layout.sequences()]
            return replace(sum(parts, Cost()), params=parameter_count(self))
        places, few = self._places(layout), Layout((len(self.latents),))
        total = self.across.cost(Layout((len(self.latents) * sum(count for count, _ in places),)), batch)
        for count, inside in places:
            rows = batch * count
            total = total + self.local.cost(inside, rows)
            total = total + self.read.cost(few, rows, inside) + self.write.cost(inside, rows, few)
        return replace(total, params=parameter_count(self), state_bytes=0)


def split_groups(x: Tensor, layout: Layout, group: int) -> list[tuple[Tensor, Layout]]:
    """x (B, N, D) -> (tokens (B groups, n, D), layout of a group): whole groups, then a sequence's smaller last one.

    Raises Unsupported for prefix tokens on a grid, ValueError for one whose axes aren't multiples of `group`."""
    if len(layout.grid) == 1:
        whole = layout.tokens // group * group
        pieces = x[:, :whole].unflatten(1, (-1, group)).flatten(0, 1) if whole else None, x[:, whole:]
        return [(piece, Layout((piece.shape[1],))) for piece in pieces if piece is not None and piece.shape[1]]
    if layout.prefix:
        raise Unsupported("interleaved_latents", "prefix", "class tokens belong to no group; set cls=False")
    if any(n % group for n in layout.grid):
        raise ValueError(
            f"interleaved_latents: the axes of the grid {layout.grid} must be multiples of group={group}; choose one "
            "that divides them"
        )
    axes = len(layout.grid)
    x = x.view(len(x), *(n for size in layout.grid for n in (size // group, group)), -1)
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1]
    return [(x.permute(order).flatten(0, axes).flatten(1, -2), Layout((group,) * axes))]


def join_groups(parts: list[tuple[Tensor, Layout]], batch: int, layout: Layout, group: int) -> Tensor:
    """The inverse of split_groups: (B, N, D)."""
    if len(layout.grid) == 1:
        return torch.cat([tokens.unflatten(0, (batch, -1)).flatten(1, 2) for tokens, _ in parts], 1)
    axes = len(layout.grid)
    x = parts[0][0].view(batch, *(n // group for n in layout.grid), *(group,) * axes, -1)
    order = [0, *(a for i in range(axes) for a in (1 + i, 1 + axes + i)), 2 * axes + 1]
    return x.permute(order).flatten(1, -2)


def _for_each(
    groups: int, context: Tensor | None, layout: Layout | None
) -> tuple[Tensor, Layout | None] | tuple[None, None]:
    """The context of every row, for each of its groups."""
    if context is None:
        return None, None
    if layout is not None and layout.lengths is not None:
        layout = replace(layout, lengths=layout.lengths.repeat_interleave(groups))
    return context.repeat_interleave(groups, 0), layout
