"""Attention of many continuations to one prefix, whose keys are read once for all of them.

    o_ci = sum_j p_cij v_j  over the prefix's keys j <= P and, of continuation c alone, the keys up to i

The same outputs and gradients as from B copies of the prefix before their continuations, while its keys and values are
held once, and its own tokens (attention among themselves: `ops.attention`) are computed once: Prefix Grouper,
2506.05433, 2025. In training of many answers to one question (GRPO) the prefix is most of the tokens.

Softmax is taken over both parts apart and joined by their log-sum-exp. For other normalisers all continuations lie end
to end behind the prefix, in one row under the mask `Branches`, block by block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from formwright.ops.attention import attention
from formwright.ops.attention_kernel import merged_attention, refusal
from formwright.ops.masks import Causal, Mask, Ranges
from formwright.ops.normalisers import Normaliser, Softmax, normaliser_of

BACKENDS = ("auto", "reference", "merge", "blocks")


@dataclass(frozen=True)
class Branches(Mask):
    """The first `prefix` keys, and those of the query's own branch of `size` tokens: all of them, or (causal) up to the
    query itself. Branches lie end to end behind the prefix."""

    prefix: int
    size: int
    causal: bool = True

    def allows(self, b, i, j):
        own = ((i - self.prefix) // self.size == (j - self.prefix) // self.size) & (i >= self.prefix)
        inside = (i < self.prefix) & (j < self.prefix)
        seen = own | inside
        seen = seen & (j <= i) if self.causal else seen
        return seen | ((i >= self.prefix) & (j < self.prefix))

    def touches(self, start, stop, m):
        if start < self.prefix:
            last = self.prefix if stop <= self.prefix else self._edge(stop - 1) + self.size
            return _joined(0, 0, min(m, stop if self.causal else last))
        last = stop if self.causal else self._edge(stop - 1) + self.size
        return _joined(min(self.prefix, m), self._edge(start), min(last, m))

    def covers(self, start, stop, m):
        if start < self.prefix:
            return _joined(0, 0, start + 1 if self.causal else self.prefix)
        edge = self._edge(start)
        own = start + 1 if self.causal else edge + self.size
        alone = self._edge(stop - 1) == edge
        return _joined(min(self.prefix, m), edge, min(own, m)) if alone else _joined(min(self.prefix, m), 0, 0)

    def _edge(self, i: int) -> int:
        """Where the branch of position i begins."""
        return self.prefix + (i - self.prefix) // self.size * self.size

    def __str__(self) -> str:
        return f"Branches({self.prefix} + n x {self.size}{'' if self.causal else ', two-directional'})"


def _joined(prefix: int, start: int, stop: int) -> Ranges:
    if prefix >= start and stop > prefix:
        return [(0, stop)]
    return [pair for pair in ((0, prefix), (start, stop)) if pair[0] < pair[1]]


def shared_prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    *,
    causal: bool = True,
    normaliser: str | Normaliser = "softmax",
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """q (B, N, H, K), k (B, N, G, K), v (B, N, G, V) of B continuations, prefix_k (A, P, G, K) and prefix_v
    (A, P, G, V) of A prefixes -> (B, N, H, V). Prefix a is that of rows a C to a C + C - 1, with C = B / A.

    causal      a token sees its own continuation up to itself, or else all of it; it always sees the whole prefix
    backend     "merge" is the two parts joined (softmax on CPUs), "blocks" one row under a mask, "reference" the plain
                way: the prefix copied before every continuation

    Continuations of unequal length are padded on the right: causal ones never see the padding of their row.
    Raises ValueError for shapes that don't fit, and for a backend that can't compute what is asked."""
    _check(q, k, v, prefix_k, prefix_v, backend)
    normaliser, scale = normaliser_of(normaliser), q.shape[-1] ** -0.5 if scale is None else scale
    if backend == "reference":
        return _copied(q, k, v, prefix_k, prefix_v, causal, normaliser, scale)
    reason = _refusal(q, k, v, prefix_k, normaliser)
    if backend == "merge" and reason is not None:
        raise ValueError(f"shared prefix: backend 'merge' can't compute this ({reason}); use 'auto' or 'blocks'")
    if backend != "blocks" and reason is None:
        return merged_attention(q, k, v, (prefix_k, prefix_v), causal, scale)
    return _one_row(q, k, v, prefix_k, prefix_v, causal, normaliser, scale)


def explain(
    q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, *, normaliser: str | Normaliser = "softmax"
) -> str:
    """The backend that "auto" picks for these tensors, and why."""
    _check(q, k, v, prefix_k, prefix_v, "auto")
    reason = _refusal(q, k, v, prefix_k, normaliser_of(normaliser))
    return "merge: softmax, joined by log-sum-exp" if reason is None else f"blocks: {reason}"


def _check(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"shared prefix: {backend!r} is no backend; there are {', '.join(BACKENDS)}")
    if any(x.ndim != 4 for x in (q, k, v, prefix_k, prefix_v)) or q.shape[:2] != k.shape[:2]:
        raise ValueError(
            "shared prefix: q (B, N, H, K), k and v (B, N, G, ...) share rows and tokens, prefix_k and prefix_v are "
            f"(A, P, G, ...), but they are {', '.join(str(tuple(x.shape)) for x in (q, k, v, prefix_k, prefix_v))}"
        )
    if prefix_k.shape[:3] != prefix_v.shape[:3] or (k.shape[2:], v.shape[2:]) != (
        prefix_k.shape[2:],
        prefix_v.shape[2:],
    ):
        raise ValueError(
            f"shared prefix: keys and values of the prefix, {tuple(prefix_k.shape)} and {tuple(prefix_v.shape)}, have "
            f"not the heads and widths of the continuations', {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if len(prefix_k) == 0 or len(q) % len(prefix_k):
        raise ValueError(f"shared prefix: {len(q)} continuations are no multiple of {len(prefix_k)} prefixes")


def _refusal(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, normaliser: Normaliser) -> str | None:
    """Why the two parts can't be computed apart and joined; None where they can."""
    if not isinstance(normaliser, Softmax):
        return f"only softmax is joined by log-sum-exp, not {type(normaliser).__name__.lower()}"
    if prefix_k.shape[1] == 0:
        return "the prefix is empty"
    return refusal(q, k, v)


def _copied(q, k, v, prefix_k, prefix_v, causal, normaliser, scale) -> Tensor:
    """The plain way: every continuation with a prefix of its own."""
    copies = len(q) // len(prefix_k)
    keys, values = (
        torch.cat([shared.repeat_interleave(copies, 0), own], 1) for shared, own in ((prefix_k, k), (prefix_v, v))
    )
    options = {"normaliser": normaliser, "scale": scale, "backend": "reference"}
    return attention(q, keys, values, mask=Causal() if causal else None, **options)


def _one_row(q, k, v, prefix_k, prefix_v, causal, normaliser, scale) -> Tensor:
    """All continuations of a prefix end to end behind it, under a mask."""
    prefixes, (size, n) = len(prefix_k), (prefix_k.shape[1], q.shape[1])
    if n == 0:
        return q.new_zeros(*q.shape[:3], v.shape[3])
    queries, keys, values = (x.unflatten(0, (prefixes, -1)).flatten(1, 2) for x in (q, k, v))
    keys, values = torch.cat([prefix_k, keys], 1), torch.cat([prefix_v, values], 1)
    mask = Branches(size, n, causal)
    o = attention(queries, keys, values, mask=mask, normaliser=normaliser, scale=scale, backend="blocks")
    return o.unflatten(1, (-1, n)).flatten(0, 1)
