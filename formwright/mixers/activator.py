"""Activator: a gated linear unit where attention stood.

    u = LN(GELU(x W_1 + b_1)),   v = LN(x W_2 + b_2),   y = (u * v) W_3 + b_3          one LN, shared by u and v

Every map acts on the channels of one token; none acts across tokens, so that tokens meet only in the patches of the
embedding and in the pooling of the head. In the paper the unit alone is the block; beside a channel mixer it is the
block of the paper's larger form.

Activator: GLU Activations as The Core Functions of a Vision Transformer, arXiv 2405.15953, 2024.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, parameter_count
from formwright.parts import register


@register
class Activator(TokenMixer):
    """A gated linear unit with GELU, of hidden width expansion * D: (B, N, D) -> (B, N, D), token by token.

    Any grid, padded and packed batches; its state is empty."""

    card = Card(
        name="activator",
        summary="a gated linear unit with a shared norm in place of attention; tokens don't mix",
        source="Activator: GLU Activations as The Core Functions of a Vision Transformer, arXiv 2405.15953, 2024",
        patterns=("self", "causal"),
        time="N",
        state="0",
        symmetries=("permutation",),
    )

    def __init__(self, dim: int, *, causal: bool = False, expansion: float = 2.0):
        super().__init__(dim, causal=causal)
        self.hidden = max(1, round(expansion * dim))
        self.gate = nn.Linear(dim, self.hidden)
        self.value = nn.Linear(dim, self.hidden)
        self.norm = nn.LayerNorm(self.hidden)
        self.out = nn.Linear(self.hidden, dim)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        return self._gated(x)

    def _gated(self, x: Tensor) -> Tensor:
        return self.out(self.norm(F.gelu(self.gate(x))) * self.norm(self.value(x)))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> tuple[()]:
        if not self.causal:
            self.refuse("empty", "it was built with causal=False")
        return ()

    def extend(self, x: Tensor, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
        return self._gated(x), state

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=parameter_count(self), macs=3 * batch * layout.tokens * self.dim * self.hidden)
