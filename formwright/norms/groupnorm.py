"""Group norm over all tokens:  y = (x - mean x) / sqrt(var x + eps) * g + b,  statistics over the tokens and
channels of each group of each row.

One group is PoolFormer's norm. Statistics go over tokens, so that it stands in two-directional models of full rows
alone: causal stacks, padding and packing are refused by the model.
Group Normalization, 1803.08494, 2018; MetaFormer Is Actually What You Need for Vision, 2111.11418, 2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Norm
from formwright.parts import register


@register
class GroupNorm(Norm):
    """(B, N, D) -> (B, N, D), D channels in `groups` of equal size. Raises ValueError where they don't divide D."""

    card = Card(
        name="groupnorm",
        kind="norm",
        summary="centres and scales each row over all tokens and the channels of a group",
        source="Group Normalization, 1803.08494, 2018",
    )
    across_tokens = True

    def __init__(self, dim: int, *, groups: int = 1, eps: float = 1e-5):
        super().__init__(dim)
        if groups < 1 or dim % groups:
            raise ValueError(f"groupnorm: the width {dim} is no multiple of groups={groups}")
        self.groups, self.eps = groups, eps
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = F.group_norm(x.transpose(1, 2), self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        return y.transpose(1, 2)
