"""bidirectional(mixer): a causal mixer read from both ends, by two copies with weights of their own.

    y = f(x) + reverse(g(reverse(x)))                 merge="sum"
    y = W [f(x); reverse(g(reverse(x)))]              merge="concat"

reverse turns the order of each sequence's valid tokens round; padding stays at the end. A grid is one sequence in
row-major order, its prefix tokens first, and so last for g: a class token reads all others.
Schuster and Paliwal, Bidirectional Recurrent Neural Networks, 1997; for selective state spaces: Vision Mamba,
2401.09417, 2024.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, Unsupported, Wiring, parameter_count
from formwright.mixers.sequences import reversed_tokens
from formwright.parts import register
from formwright.wiring.stack import Plain

MERGES = ("sum", "concat")


@register
class Bidirectional(Wiring):
    card = Card(
        name="bidirectional",
        kind="wiring",
        summary="a causal mixer read from both ends by two copies, for stacks that look both ways",
        source="Bidirectional Recurrent Neural Networks, 1997; Vision Mamba, 2401.09417, 2024",
    )
    stacks = ("mixer",)
    branch = True
    copies = 2

    @classmethod
    def inside(cls, stack: str, flow: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        if flow.get("causal"):
            raise Unsupported(
                "bidirectional", "causal=True", "its second copy begins at the last token; write the mixer alone"
            )
        return {**flow, "causal": True, "rank": 1}

    def __init__(self, dim: int, mixer: tuple[Wiring, Wiring], *, merge: str = "sum"):
        super().__init__()
        for copy in mixer:
            if not isinstance(copy, Plain) or not isinstance(copy.part, TokenMixer) or not copy.part.causal:
                raise ValueError("bidirectional: it takes one causal token mixer, for example bidirectional(gla)")
        if merge not in MERGES:
            raise ValueError(f"bidirectional: merge is one of {', '.join(MERGES)}, not {merge!r}")
        self.dim = self.dim_out = dim
        self.ahead, self.back = mixer
        self.join = nn.Linear(2 * dim, dim, bias=False) if merge == "concat" else None

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        line = _in_line(layout)
        coords = None if line.coords is None else reversed_tokens(line.coords, line)
        ahead, _ = self.ahead(x, line)
        back, _ = self.back(reversed_tokens(x, line), replace(line, coords=coords))
        back = reversed_tokens(back, line)
        return ahead + back if self.join is None else self.join(torch.cat([ahead, back], -1)), layout

    def inner(self, layout: Layout) -> list[tuple[str, nn.Module, Layout]]:
        return [("ahead", self.ahead, _in_line(layout)), ("back", self.back, _in_line(layout))]

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        """Both copies, and no state: what reads from both ends can't decode."""
        works = super().cost(layout, batch)
        joined = 0 if self.join is None else batch * layout.tokens * self.join.weight.numel()
        return Cost(parameter_count(self), works.macs + joined, 0, works.other_flops)


def _in_line(layout: Layout) -> Layout:
    """The layout's tokens as sequences along one axis."""
    return replace(layout, grid=(layout.tokens,), prefix=0)
