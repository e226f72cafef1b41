"""EcoFormer: attention by binary codes, whose scores count the bits that two tokens share; time linear in N.

    u = W_u x / |W_u x|                                                              for queries and keys alike
    kappa_m(u) = exp(-|u - p_m|^2 / 4) - exp(-1/2)                   p_m: anchors, points about the unit sphere
    h_b(u) = sign(g_b),  g = A kappa(u) + c                                          hash functions: a code of b bits
    s_ij = h(u_i) . h(u_j) + b + 1 = 2 (b - Hamming distance) + 1                    positive, and linear in the codes
    y_i = W_o concat_h sum_j s_ij v_j / sum_j s_ij

4 is twice the expected squared distance of unit vectors, and exp(-1/2) about the mean of kappa. Gradients go straight
through the signs where |g| <= 1. The paper learns the hash functions apart from the model, so that the codes of tokens
that are most and least alike agree and differ; here A, c and p are parameters that train with the model, and
`similarity_loss` is the paper's objective, to add to its loss.
EcoFormer: Energy-Saving Attention with Linear Complexity, arXiv 2209.09004, 2022.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
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
from formwright.mixers.kernels import read_all, read_all_macs
from formwright.mixers.linear_attention import normalised, packed_lengths
from formwright.mixers.sequences import state_before
from formwright.mixers.sse import exactly
from formwright.ops import recurrence
from formwright.ops.straight_through import Held, straight_through
from formwright.parts import register


@register
class EcoFormer(TokenMixer):
    """Attention by hashed kernels, causal, two-directional or across: (B, N, D) -> (B, N, D).

    Raises Unsupported for packed tokens with a context, ValueError for heads and counts that don't fit."""

    card = Card(
        name="ecoformer",
        summary="binary codes of queries and keys by learned kernelised hashing; scores count shared bits, time linear",
        source="EcoFormer: Energy-Saving Attention with Linear Complexity, arXiv 2209.09004, 2022",
        patterns=("self", "causal", "cross", "causal_cross"),
        symmetries=("permutation",),
    )
    held: Held | None = None

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        bits: int = 16,
        anchors: int = 25,
        bias: bool = False,
    ):
        """bits of a code, anchors of its kernels; bias that of the maps to values and outputs."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("ecoformer", dim, heads, head_dim)
        self.bits, self.anchors = bits, anchors
        if bits < 1 or anchors < 1:
            raise ValueError(f"ecoformer: bits={bits} and anchors={anchors} must be at least 1")
        inner = self.heads * self.head_dim
        self.code = nn.Linear(dim, inner, bias=False)
        self.value = nn.Linear(dim, inner, bias=bias)
        self.out = nn.Linear(inner, dim, bias=bias)
        self.points = nn.Parameter(F.normalize(torch.randn(self.heads, anchors, self.head_dim), dim=-1))
        self.hash = nn.Parameter(torch.randn(self.heads, bits, anchors))
        self.offset = nn.Parameter(torch.zeros(self.heads, bits))

    def _hash(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B,N,D) -> u (B,H,N,K) and g (B,H,N,bits), in float32 at least: rounding seldom flips a bit."""
        u = F.normalize(exactly(x, self.code).unflatten(-1, (self.heads, -1)), dim=-1, eps=1e-6).transpose(1, 2)
        with torch.autocast(x.device.type, enabled=False):
            points, weights, offset = (t.to(u.dtype) for t in (self.points, self.hash, self.offset))
            distance = u.square().sum(-1, keepdim=True) + points.square().sum(-1)[:, None] - 2 * u @ points.mT
            return u, (torch.exp(-distance / 4) - math.exp(-0.5)) @ weights.mT + offset[:, None]

    def codes(self, x: Tensor, name: str = "codes") -> Tensor:
        """x (B,N,D) -> codes of +1 and -1 (B,N,H,bits)."""
        g = self._hash(x)[1].transpose(1, 2)
        return straight_through(torch.where(g > 0, 1.0, -1.0).to(g.dtype), g.clamp(-1, 1), self.held, name)

    def similarity_loss(self, x: Tensor, pairs: int = 10) -> Tensor:
        """The hash functions' own objective at x (B,N,D), a scalar: how far h_i . h_j / b is from 1 for the `pairs`
        tokens j most like each i, and from -1 for those least like it; sign gives way to 2 sigmoid(g) - 1."""
        u, g = self._hash(x)
        alike = (u @ u.mT).detach()
        near, far = (alike.topk(min(pairs, x.shape[1]), -1, largest=most)[1] for most in (True, False))
        h = 2 * torch.sigmoid(g) - 1
        agreement = h @ h.mT / self.bits
        return ((agreement.gather(-1, near) - 1).square() + (agreement.gather(-1, far) + 1).square()).mean()

    def _parts(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """[h, b + 1], [h, 1] and values, (B,N|M,H,.): the products of the first two are the scores."""
        h = self.codes(x)
        k = h if context is None else self.codes(context, "context")
        v = self.value(x if context is None else context).unflatten(-1, (self.heads, -1)).to(h.dtype)
        return F.pad(h, (0, 1), value=self.bits + 1.0), F.pad(k, (0, 1), value=1.0), v

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """x (B, N, D), context (B, M, D) -> (B, N, D). With a context every token reads all of it and no other token of
        x, so that the causal cross pattern is the same."""
        across = layout if context is None else context_layout
        if context is not None and (layout.offsets is not None or (across is not None and across.offsets is not None)):
            self.refuse("packed tokens with a context", "pad them, or run each sequence with its own context")
        if context is None and self.causal:
            return self._causal(x, None, layout.offsets)[0]
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        valid = None if across is None else across.valid(x.device)
        o = read_all(*self._parts(x, context), valid=valid, backend=self.backend)
        return self.out(o.flatten(2).to(x.dtype))

    def _causal(self, x: Tensor, state: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
        o, state = normalised(*self._parts(x, None), 0.0, state=state, offsets=offsets, backend=self.backend)
        return self.out(o.flatten(2).to(x.dtype)), state

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Tensor:
        """The sums of [h, 1] [v, 1]^T: (B, H, bits+1, V+1)."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        return state_before(
            self.code.weight if like is None else like, batch, self.heads, self.bits + 1, self.head_dim + 1
        )

    def extend(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self._causal(x, state, None)

    def cost(self, layout: Layout, batch: int = 1, context_layout: Layout | None = None) -> Cost:
        """A context is read whole, as two-directional tokens are."""
        n, inner = layout.tokens, self.heads * self.head_dim
        m = n if context_layout is None else context_layout.tokens
        hashed = n if context_layout is None else n + m
        linear = (n + m) * self.dim * inner
        linear += hashed * (self.dim * inner + self.heads * self.anchors * (self.head_dim + self.bits))
        shape = self.heads, self.bits + 1, self.head_dim + 1
        if self.causal and context_layout is None:
            products = recurrence.macs(batch, n, *shape, lengths=packed_lengths(layout))
        else:
            products = read_all_macs(
                n, m, heads=self.heads, features=self.bits + 1, value_dim=self.head_dim, batch=batch
            )
        state = batch * math.prod(shape) * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), batch * linear + products, state)
