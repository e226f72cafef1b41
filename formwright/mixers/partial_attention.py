"""Partial attention: tokens read a row's source alone, its first M tokens, however many have come after it.

    y_i = W_o sum_{j < min(i + 1, M)} softmax_j(q_i . k_j / sqrt(K)) v_j          M = `source`;  q, k, v linear in x

In attention to all tokens the source must share the weight with everything written since, and fades with length
("attention degeneration"). Beside such attention, `attention + partial_attention(source=M) + swiglu`, a decoder-only
model looks at its source at every step, as a cross mixer does. The published model has the source's tokens two
directions, positions of their own and a loss for them besides; this is its mixer alone, and causal.
Decoder-Only or Encoder-Decoder? Interpreting Language Model as a Regularized Encoder-Decoder, 2304.04052, 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, per_sequence, split_heads
from formwright.mixers.cache import Cache, append_heads, empty_cache
from formwright.ops.attention import attention, macs
from formwright.ops.masks import Causal
from formwright.parts import register


@register
class PartialAttention(TokenMixer):
    """Softmax attention to the first `source` tokens of a sequence: (B, N, D) -> (B, N, D), causal.

    Raises ValueError for heads that don't fit and a source without tokens."""

    card = Card(
        name="partial_attention",
        summary="softmax attention to the first tokens of a row, its source, and to no later one",
        source="Decoder-Only or Encoder-Decoder? Interpreting Language Model as a Regularized Encoder-Decoder, "
        "2304.04052, 2023",
        patterns=("causal",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        source: int = 64,
        heads: int | None = None,
        head_dim: int | None = None,
    ):
        """source is how many tokens are read."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("partial_attention", dim, heads, head_dim)
        if source < 1:
            raise ValueError(f"partial_attention: source={source} leaves nothing to read; make it at least 1")
        self.source = source
        self.inputs = nn.Linear(dim, 2 * self.heads * self.head_dim, bias=False)  # keys and values
        self.query = nn.Linear(dim, self.heads * self.head_dim, bias=False)
        self.out = nn.Linear(self.heads * self.head_dim, dim, bias=False)

    def _split(self, t: Tensor) -> Tensor:
        return t.unflatten(-1, (self.heads, self.head_dim))

    def _keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.inputs(x).chunk(2, -1)
        return self._split(k), self._split(v)

    def _read(self, x: Tensor, k: Tensor, v: Tensor, inside: int) -> Tensor:
        """x (B, T, D), its first `inside` tokens the last of the keys' own -> (B, T, D)."""
        q, parts = self._split(self.query(x)), []
        if inside:
            parts.append(attention(q[:, :inside], k, v, mask=Causal(), backend=self.backend))
        if inside < x.shape[1]:
            parts.append(attention(q[:, inside:], k, v, backend=self.backend))
        return self.out(torch.cat(parts, 1).flatten(2))

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        inside = min(self.source, x.shape[1])
        return self._read(x, *self._keys(x[:, :inside]), inside)

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """The source's keys and values (B, H, M, K), and how many of them came."""
        like = self.query.weight if like is None else like
        shape = batch, self.heads, self.head_dim
        return empty_cache(like, min(capacity or 0, self.source), keys=shape, values=shape)

    def extend(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        inside = min(x.shape[1], self.source - state["count"])
        k, v, state = append_heads(state, *self._keys(x[:, :inside]))
        return self._read(x, k, v, inside), state

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        """Maps of all tokens to queries and back, of the source's to keys and values; scores of the source alone."""
        parts = [layout] if layout.offsets is None else [alone for _, _, alone in layout.sequences()]
        how = {"heads": self.heads, "key_dim": self.head_dim, "batch": batch, "backend": self.backend}
        inner, total = self.heads * self.head_dim, 0
        for part in parts:
            n, m = part.tokens, min(self.source, part.tokens)
            total += 2 * batch * (n + m) * self.dim * inner
            total += macs(m, m, mask=Causal(), **how) + (macs(n - m, m, **how) if n > m else 0)
        state = 2 * batch * inner * min(self.source, layout.tokens) * element_size(self)
        return Cost(parameter_count(self), total, state)
