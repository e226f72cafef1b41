"""Stochastically subsampled attention: in training a token reads a random share of the others, afterwards all.

    training   P a random order of the N tokens, cut into G groups of N / G;   i reads the tokens j of its own group
    after it   i reads all
    y_i = W_o concat_h sum_j softmax_j(q_hi . k_hj / sqrt(K)) v_hj

Every pass, layer by layer, draws a sub-network of the pathways between tokens anew, and training costs G times less
attention. P is uniform, or, with a spread sigma, local: the order of i + sigma n_i with n_i normal, so that groups are
blurred windows. A token always reads itself; causal groups keep the order of time. A model in train() gives one
sub-model of the ensemble that the paper averages. How groups are drawn is our reading of it.
The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles, arXiv 2306.01705, 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from formwright.contract import (
    Card,
    Cost,
    Layout,
    TokenMixer,
    element_size,
    parameter_count,
    per_sequence,
    split_heads,
)
from formwright.mixers.cache import Cache, append_heads, empty_cache
from formwright.mixers.rotary import rotary, turned
from formwright.mixers.scores import attend, attend_macs, looks_back
from formwright.ops.attention import attention
from formwright.parts import register


@register
class SSA(TokenMixer):
    """Attention that is subsampled in training: (B, N, D) -> (B, N, D). `cost` is that of the whole attention.

    Raises ValueError or Unsupported for widths, groups, spreads and positions that don't fit."""

    card = Card(
        name="ssa",
        summary="softmax attention within random groups of tokens in training, whole attention afterwards",
        source="The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles, arXiv 2306.01705, 2023",
        patterns=("self", "causal"),
        time="N^2",
        state="N",
        symmetries=("permutation",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        groups: int = 4,
        spread: float | None = None,
        position: Callable | None = None,
        bias: bool = False,
    ):
        """
        heads, head_dim  heads of width head_dim; dim / heads without it
        groups           how many groups the tokens are cut into in training; attention costs so many times less
        spread           how far, in tokens, the local order moves a token; without it the order is uniform
        position         a rotary position
        bias             of the four linear maps
        """
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("ssa", dim, heads, head_dim)
        if groups < 1 or (spread is not None and spread < 0):
            raise ValueError(f"ssa: groups is at least 1 and spread at least 0, but they are {groups} and {spread}")
        self.groups, self.spread = groups, spread
        self.inputs = nn.Linear(dim, 3 * self.heads * self.head_dim, bias=bias)
        self.out = nn.Linear(self.heads * self.head_dim, dim, bias=bias)
        self.position = rotary(self, position, self.head_dim)
        if position is not None:
            self.card = replace(self.card, symmetries=())

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        sampled = self.training and self.groups > 1
        if sampled and (layout.offsets is not None or (layout.lengths is not None and not self.causal)):
            return per_sequence(self, x, layout)
        q, k, v = self._split(x, layout.positions(x.device))
        if sampled:
            return self.out(self._attend_groups(q, k, v).flatten(2))
        o = attend(q, k, v, layout, causal=self.causal, mask=looks_back(self.causal), backend=self.backend)
        return self.out(o.flatten(2))

    def _split(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.inputs(x).unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)
        return turned(q, self.position, positions), turned(k, self.position, positions), v

    def draw(self, tokens: int, device: torch.device | None = None) -> list[Tensor]:
        """A random division of the tokens into groups: index tensors (groups of one size, size), each group in order.
        Sizes differ by one at most. All rows and heads share it."""
        if self.spread is None:
            order = torch.randperm(tokens, device=device)
        else:
            steps = torch.arange(tokens, device=device)
            order = (steps + self.spread * torch.randn(tokens, device=device)).argsort()
        groups = min(self.groups, tokens)
        size, larger = divmod(tokens, groups)
        split = larger * (size + 1)
        parts = order[:split].view(larger, size + 1), order[split:].view(groups - larger, size)
        return [part.sort(-1).values for part in parts if part.numel()]

    def _attend_groups(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = self.draw(q.shape[1], q.device)
        out = []
        for index in parts:
            groups = (each[:, index].flatten(0, 1) for each in (q, k, v))  # (B groups, size, H, K)
            o = attention(*groups, mask=looks_back(self.causal), backend=self.backend)
            out.append(o.unflatten(0, (len(q), len(index))).flatten(1, 2))
        back = torch.cat([index.flatten() for index in parts]).argsort()
        return torch.cat(out, 1)[:, back]

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """Keys and values (B, H, capacity, K)."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        shape = batch, self.heads, self.head_dim
        return empty_cache(self.inputs.weight if like is None else like, capacity, keys=shape, values=shape)

    def extend(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        """Further tokens read all before them: decoding is not training."""
        positions = torch.arange(state["count"], state["count"] + x.shape[1], device=x.device)[:, None]
        q, k, v = self._split(x, positions)
        k, v, state = append_heads(state, k, v)
        o = attention(q, k, v, mask=None if x.shape[1] == 1 else looks_back(True), backend=self.backend)
        return self.out(o.flatten(2)), state

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, inner = layout.tokens, self.heads * self.head_dim
        how = {"heads": self.heads, "key_dim": self.head_dim, "mask": looks_back(self.causal), "backend": self.backend}
        products = attend_macs(layout, batch, causal=self.causal, **how)
        state = 2 * batch * n * inner * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), 4 * batch * n * self.dim * inner + products, state)
