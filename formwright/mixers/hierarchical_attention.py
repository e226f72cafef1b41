"""Hierarchical self-attention: softmax attention with one weight for each pair of sibling subtrees, by dynamic
programming over a tree of tokens.

    A = argmin sum_i KL(A_i || softmax_j(q_i . k_j / sqrt(K))),  A_ij one number for i in C, j in C', siblings

Tokens are the leaves of a balanced tree: blocks of `branching` b tokens, blocks of b blocks and so on, the last ones
shorter. Siblings see of one another the means of queries, keys and values. Energies go up from the leaves, which have
e_i = q_i . k_i / sqrt(K); among the children C of a node, of n_C tokens each,

    s_CC' = mean_C(q) . mean_C'(k) / sqrt(K)                Z_C = exp(e_C) + sum_C' n_C' exp(s_CC')
    e_node = sum_C n_C log Z_C / sum_C n_C

and outputs come down from the root, where o = 0 and the mass m = 1:

    o_C = o_node + m_node sum_C' n_C' exp(s_CC') / Z_C mean_C'(v)
    m_C = m_node exp(e_C) / Z_C        y_i = W_o (o_i + m_i v_i)

One level is plain attention; N tokens cost N b.

The equations here are worked out from what the paper states its attention to be, the one nearest softmax under these
constraints, not taken from its text.
Hierarchical Self-Attention: Generalizing Neural Attention Mechanics to Multi-Scale Problems, arXiv 2509.15448, 2025.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, parameter_count, per_sequence, split_heads
from formwright.mixers.grids import no_prefix, pieces
from formwright.parts import register


@register
class HierarchicalAttention(TokenMixer):
    """Attention tied between sibling blocks of a balanced tree: (B, N, D) -> (B, N, D)."""

    card = Card(
        name="hierarchical_attention",
        summary="the attention nearest to softmax whose weights are the same within each pair of sibling blocks",
        source="Hierarchical Self-Attention: Generalizing Neural Attention Mechanics to Multi-Scale Problems, "
        "arXiv 2509.15448, 2025",
        patterns=("self",),
        grid_ranks=(1,),
        time="N",
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        branching: int = 16,
    ):
        """
        heads, head_dim  heads of width head_dim; dim / heads without it
        branching        children of a node; from the number of tokens on it is plain attention

        Raises ValueError or Unsupported for what doesn't fit."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("hierarchical_attention", dim, heads, head_dim)
        if branching < 2:
            self.refuse(f"branching={branching}", "a node has at least 2 children")
        self.branching = branching
        width = self.heads * self.head_dim
        self.query, self.key, self.value = (nn.Linear(dim, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, dim, bias=False)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """x (B, N, D) -> (B, N, D)."""
        no_prefix(self, layout)
        if not layout.plain:
            return per_sequence(self, x, layout)
        return self._join(hierarchical_attention(*self._heads(x), self.branching))

    def reference(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """The definition: the whole matrix of weights."""
        return self._join(self.weights(x) @ self._heads(x)[2])

    def weights(self, x: Tensor) -> Tensor:
        """x (B, N, D) -> what each token takes of each: (B, H, N, N), rows sum to 1."""
        q, k, _ = self._heads(x)
        return dense_weights(q @ k.mT, self.branching)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, N, K) of scaled queries, keys and values."""
        sizes = self.heads, self.head_dim
        q, k, v = (part(x).unflatten(-1, sizes).transpose(1, 2) for part in (self.query, self.key, self.value))
        return q * self.head_dim**-0.5, k, v

    def _join(self, o: Tensor) -> Tensor:
        return self.out(o.transpose(1, 2).flatten(2))

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        """Projections, and all pairs of siblings, those that fill up the last families included."""
        width = self.heads * self.head_dim
        total = 4 * batch * layout.tokens * self.dim * width
        for part, rows in pieces(layout, batch, False):
            nodes = part.tokens
            while nodes > 1:
                children = min(nodes, self.branching)
                nodes = -(-nodes // children)
                total += 2 * rows * nodes * children**2 * width
        return Cost(parameter_count(self), total)


def hierarchical_attention(q: Tensor, k: Tensor, v: Tensor, branching: int) -> Tensor:
    """Scaled queries and keys (B, H, N, K), values (B, H, N, V) -> (B, H, N, V), up the balanced tree and down it."""
    counts = torch.ones(q.shape[2], dtype=torch.long, device=q.device)
    energy, leaves, families = (q * k).sum(-1), v, []
    while len(counts) > 1:
        nodes, children = len(counts), min(len(counts), branching)
        gap = -nodes % children
        q, k, v = (F.pad(x, (0, 0, 0, gap)).unflatten(2, (-1, children)) for x in (q, k, v))
        energy = F.pad(energy, (0, gap)).unflatten(2, (-1, children))
        counts = F.pad(counts, (0, gap)).view(-1, children)
        itself = torch.eye(children, dtype=torch.bool, device=q.device)
        # siblings that aren't there have the logarithm of nothing
        logits = torch.where(itself, energy[..., None], q @ k.mT + counts[:, None].to(q.dtype).log())
        weights = logits.softmax(-1)
        families.append((nodes, weights.diagonal(dim1=-2, dim2=-1), weights.masked_fill(itself, 0) @ v))
        part = counts.to(q.dtype) / counts.sum(-1, keepdim=True).to(q.dtype)
        energy = (part * logits.logsumexp(-1)).sum(-1)
        q, k, v = ((part[..., None] * x).sum(-2) for x in (q, k, v))
        counts = counts.sum(-1)
    mass, o = torch.ones_like(energy), torch.zeros_like(v)
    for nodes, stays, read in reversed(families):
        o = (o[..., None, :] + mass[..., None, None] * read).flatten(2, 3)[:, :, :nodes]
        mass = (mass[..., None] * stays).flatten(2)[:, :, :nodes]
    return o + mass[..., None] * leaves


def dense_weights(scores: Tensor, branching: int) -> Tensor:
    """The whole matrix A of scores (..., N, N), family after family, from means over the blocks of the scores."""
    tree = [(i, i + 1, []) for i in range(scores.shape[-1])]
    while len(tree) > 1:
        families = [tree[i : i + branching] for i in range(0, len(tree), branching)]
        tree = [(family[0][0], family[-1][1], family) for family in families]
    return _below(scores, *tree[0])[1]


def _below(scores: Tensor, start: int, stop: int, family: list[tuple]) -> tuple[Tensor, Tensor]:
    """The energy (...) of the subtree of tokens start to stop, and what its tokens take of one another."""
    if not family:
        return scores[..., start, start], torch.ones_like(scores[..., start:stop, start:stop])
    energy, rows = 0, []
    for child in family:
        a, b, _ = child
        own, within = _below(scores, *child)
        sizes = [d - c for c, d, _ in family]
        blocks = [scores[..., a:b, c:d].mean((-2, -1)) + math.log(d - c) for c, d, _ in family]
        logits = torch.stack([own if c == a else s for s, (c, *_) in zip(blocks, family, strict=True)], -1)
        shares = logits.softmax(-1)[..., None, None].unbind(-3)
        parts = [
            s * within if c == a else (s / n).expand(*s.shape[:-2], b - a, n)
            for s, n, (c, *_) in zip(shares, sizes, family, strict=True)
        ]
        rows.append(torch.cat(parts, -1))
        energy = energy + (b - a) / (stop - start) * logits.logsumexp(-1)
    return energy, torch.cat(rows, -2)
