"""What mixers with kernels for scores share: every query reads all keys, whose sums are taken first.

    o_i = sum_j (phi(q_i) . phi(k_j)) v_j / (sum_j phi(q_i) . phi(k_j) + eps)

The causal form is linear_attention.normalised.
"""

from __future__ import annotations

import torch
from torch import Tensor


def read_all(
    q: Tensor, k: Tensor, v: Tensor, *, eps: float = 0.0, valid: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Features q (B,N,H,F), k (B,M,H,F), values v (B,M,H,V), `valid` (B,M) keys -> (B,N,H,V). Backend "reference" makes
    all scores."""
    shape = q.shape[0], q.shape[2]
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
    if valid is not None:
        k = k * valid.repeat_interleave(shape[1], 0)[..., None]
    if backend == "reference":
        scores = q @ k.mT
        o = scores @ v / (scores.sum(-1, keepdim=True) + eps)
    else:
        o = torch.bmm(q, torch.bmm(k.mT, torch.cat([v, torch.ones_like(v[..., :1])], -1)))
        o = o[..., :-1] / (o[..., -1:] + eps)
    return o.unflatten(0, shape).transpose(1, 2)


def read_all_macs(n: int, m: int, *, heads: int, features: int, value_dim: int, batch: int = 1) -> int:
    """Multiply-adds of read_all."""
    return batch * (n + m) * heads * features * (value_dim + 1)
