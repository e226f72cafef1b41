"""Features of queries and keys whose products stand for a score: x (..., H, K) -> phi(x) (..., H, F), none negative.

    elu        elu(x) + 1                                 F = K
    relu       relu(x)                                    F = K
    hedgehog   [softmax(W x + b), softmax(-(W x + b))]    F = 2 R
    t2r        relu(W x + b)                              F = R

W (R, K) and b are learned, a pair for each head; softmax is over the R channels. Hedgehog's W begins as the identity,
so that the map begins as the two softmaxes of x itself.
elu: Transformers are RNNs, arXiv 2006.16236, 2020; hedgehog: The Hedgehog & the Porcupine: Expressive Linear Attentions
with Softmax Mimicry, arXiv 2402.04347, 2024; t2r: Finetuning Pretrained Transformers into RNNs, arXiv 2103.13076, 2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = ("elu", "relu", "hedgehog", "t2r")
LEARNED = ("hedgehog", "t2r")


class FeatureMap(nn.Module):
    """One of the maps above for all heads; the learned ones are W x + b with `rank` = R channels, `bias` says whether
    there is a b. `width` is F. Raises ValueError for an unknown map, and for a rank of a map that learns nothing."""

    def __init__(self, features: str, heads: int, head_dim: int, *, rank: int | None = None, bias: bool = True):
        super().__init__()
        if features not in FEATURES:
            raise ValueError(f"features is one of {', '.join(FEATURES)}, not {features!r}")
        if features not in LEARNED and rank is not None:
            raise ValueError(f"feature_dim={rank} is the width of a learned map, and {features!r} learns nothing")
        rank = head_dim if rank is None else rank
        if rank < 1:
            raise ValueError(f"feature_dim is {rank}, but must be at least 1")
        self.features, self.width = features, 2 * rank if features == "hedgehog" else rank
        # Multiply-adds of one token.
        self.macs = heads * head_dim * rank if features in LEARNED else 0
        if features in LEARNED:
            self.weight = nn.Parameter(torch.eye(head_dim, rank).repeat(heads, 1, 1))
            self.bias = nn.Parameter(torch.zeros(heads, rank)) if bias else None
            if features == "t2r":
                nn.init.uniform_(self.weight, -(head_dim**-0.5), head_dim**-0.5)

    def forward(self, x: Tensor, heads: int = 2) -> Tensor:
        """x (B, N, H, K) -> (B, N, H, F); with heads=1 (B, H, N, K) -> (B, H, N, F)."""
        if self.features == "elu":
            return F.elu(x) + 1
        if self.features in LEARNED:
            x = torch.einsum("bnhk,hkr->bnhr" if heads == 2 else "bhnk,hkr->bhnr", x, self.weight)
            if self.bias is not None:
                x = x + (self.bias if heads == 2 else self.bias[:, None])
        if self.features == "hedgehog":
            return torch.cat([x.softmax(-1), (-x).softmax(-1)], -1)
        return torch.relu(x)
