"""T5's relative bias: every bucket of distances has a learned bias for each head, exact near, logarithmic far.

    bias_hij = E[bucket(p_j - p_i), h]
    bucket(d) = d                                                       for d < e
                min(e + floor((n - e) log(d / e) / log(D / e)), n - 1)  beyond, e = n / 2

Both ways: half of the buckets, n, for keys that come after, half for those before or at the query. One way: all n for
keys before; keys after the query share the bucket of distance 0. D is `distance`, at and beyond which one bucket is
left, so that the bias is defined at any length. With several axes each has buckets of its own and the biases add up.
Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, 1910.10683, 2019.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from formwright.contract import Card, Position, Unsupported
from formwright.parts import register


def bucket(difference: Tensor, buckets: int, distance: int, both_ways: bool) -> Tensor:
    """Whole numbers key - query -> the number of their bucket."""
    if both_ways:
        buckets = buckets // 2
        side, far = (difference > 0) * buckets, difference.abs()
    else:
        side, far = 0, (-difference).clamp(min=0)
    exact = buckets // 2
    grown = (far.clamp(min=exact).float() / exact).log() / math.log(distance / exact) * (buckets - exact)
    return side + torch.where(far < exact, far, (exact + grown.long()).clamp(max=buckets - 1))


@register
class T5Bias(Position):
    card = Card(
        name="t5_bias",
        kind="position",
        summary="adds a learned bias for each bucket of distances to the scores of each head",
        source="Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, 1910.10683, 2019",
        symmetries=("shift",),
        extrapolates=True,
    )
    role = "bias"
    relative = True

    def __init__(self, heads: int, *, buckets: int = 32, distance: int = 128, both_ways: bool = True, axes: int = 1):
        """Raises ValueError where the buckets are too few, or all of them reach `distance` one by one."""
        super().__init__()
        exact = buckets // (4 if both_ways else 2)
        if exact < 1 or (both_ways and buckets % 2):
            least = "an even number of at least 4" if both_ways else "at least 2"
            raise ValueError(f"t5_bias: buckets must be {least}, but are {buckets}")
        if distance <= exact:
            raise ValueError(f"t5_bias: distance must be above the {exact} exact buckets, but is {distance}")
        self.heads, self.buckets, self.distance, self.both_ways, self.axes = heads, buckets, distance, both_ways, axes
        self.table = nn.Parameter(torch.empty(axes, buckets, heads).normal_(std=0.02))

    def bias(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Positions (..., N, A) of queries, (..., M, A) of keys -> (..., H, N, M). Raises Unsupported for positions on
        other axes, and for those that are not whole numbers."""
        if queries.is_floating_point() or keys.is_floating_point():
            raise Unsupported("t5_bias", "coords", "its buckets count whole places; use alibi for real coordinates")
        if queries.shape[-1] != self.axes:
            found = queries.shape[-1]
            raise Unsupported("t5_bias", f"{found} axes", f"it was built for {self.axes}; write t5_bias(axes={found})")
        difference = keys[..., None, :, :] - queries[..., :, None, :]
        index = bucket(difference, self.buckets, self.distance, self.both_ways)
        return sum(self.table[a][index[..., a]] for a in range(self.axes)).movedim(-1, -3)
