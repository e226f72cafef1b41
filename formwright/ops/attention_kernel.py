"""PyTorch's attention kernel for CPUs, with its log-sum-exp: what makes parts of a softmax one softmax.

    l_i = log sum_j exp(s_ij)  over the keys of one part, o_i the part's output
    L_i = log sum_parts exp(l_i),  o = sum_parts exp(l_i - L_i) o_i
    ds_ij = exp(s_ij - L_i) (do_i . v_j - do_i . o_i)

The gradient asks for L and the whole output alone, so that the kernel's own backward, given them, gives each part's:
FlashAttention, 2205.14135, 2022; online normalizer calculation for softmax, 1805.02867, 2018. A sink is one more part
that has a score and no value.
"""

from __future__ import annotations

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def refusal(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the kernel can't take tensors like these; None where it can."""
    if q.device.type != "cpu":
        return f"this kernel is for CPUs, but the tensors are on {q.device.type}"
    if q.shape[3] != v.shape[3]:
        return f"the kernel wants one width, but keys have {q.shape[3]} and values {v.shape[3]}"
    return "there are no queries or keys" if 0 in q.shape or 0 in k.shape else None


def sink_attention(q: Tensor, k: Tensor, v: Tensor, sink: Tensor, causal: bool, scale: float) -> Tensor:
    """Softmax with a sink (H,): q (B, N, H, K), k (B, M, G, K), v (B, M, G, K) -> (B, N, H, K)."""
    q, k, v = q.transpose(1, 2), _to_heads(k, q.shape[2]), _to_heads(v, q.shape[2])
    return _Sink.apply(q, k, v, sink, causal, scale).transpose(1, 2)


def merged_attention(q: Tensor, k: Tensor, v: Tensor, shared: tuple[Tensor, Tensor], causal: bool, scale: float):
    """Softmax over the keys of a row and others that C rows have in common: q (A C, N, H, K), k, v (A C, M, G, K),
    shared keys and values (A, P, G, K) -> (A C, N, H, K); causal holds within the row's own keys."""
    h = q.shape[2]
    q, k, v = q.transpose(1, 2), _to_heads(k, h), _to_heads(v, h)
    return _Merged.apply(q, k, v, *(_to_heads(x, h) for x in shared), causal, scale).transpose(1, 2)


def _to_heads(x: Tensor, heads: int) -> Tensor:
    """(B, M, G, K) -> (B, H, M, K)."""
    return x.transpose(1, 2) if x.shape[2] == heads else x.transpose(1, 2).repeat_interleave(heads // x.shape[2], 1)


class _Sink(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, sink, causal, scale):
        o, part = _forward(q, k, v, 0.0, causal, scale=scale)
        part = part.view(o.shape[:3])
        whole = torch.logaddexp(part, sink.to(part.dtype)[:, None])
        o = (o * (part - whole).exp().unsqueeze(-1)).to(q.dtype)
        ctx.save_for_backward(q, k, v, sink, o, whole)
        ctx.causal, ctx.scale = causal, scale
        return o

    @staticmethod
    def backward(ctx, do):
        q, k, v, sink, o, whole = ctx.saved_tensors
        dq, dk, dv = _backward(do, q, k, v, o, whole, 0.0, ctx.causal, scale=ctx.scale)
        dsink = None
        if ctx.needs_input_grad[3]:
            lost = (sink.to(whole.dtype)[:, None] - whole).exp()
            dsink = -(lost * (do * o).sum(-1)).sum((0, 2)).to(sink.dtype)
        return dq, dk, dv, dsink, None, None


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, shared_k, shared_v, causal, scale):
        o, own = _forward(q, k, v, 0.0, causal, scale=scale)
        common, other = _forward(_side_by_side(q, len(shared_k)), shared_k, shared_v, 0.0, False, scale=scale)
        own = own.view(o.shape[:3])
        other = _apart(other.view(*common.shape[:3], 1), len(q)).squeeze(-1)
        whole = torch.logaddexp(own, other)
        o = o * (own - whole).exp().unsqueeze(-1) + _apart(common, len(q)) * (other - whole).exp().unsqueeze(-1)
        o = o.to(q.dtype)
        ctx.save_for_backward(q, k, v, shared_k, shared_v, o, whole)
        ctx.causal, ctx.scale = causal, scale
        return o

    @staticmethod
    def backward(ctx, do):
        q, k, v, shared_k, shared_v, o, whole = ctx.saved_tensors
        dq, dk, dv = _backward(do, q, k, v, o, whole, 0.0, ctx.causal, scale=ctx.scale)
        wide = [_side_by_side(x, len(shared_k)) for x in (do, q, o, whole.unsqueeze(-1))]
        more, dshared_k, dshared_v = _backward(
            wide[0], wide[1], shared_k, shared_v, wide[2], wide[3].squeeze(-1), 0.0, False, scale=ctx.scale
        )
        return dq + _apart(more, len(q)), dk, dv, dshared_k, dshared_v, None, None


def _side_by_side(x: Tensor, prefixes: int) -> Tensor:
    """(A C, H, N, K) -> (A, H, C N, K): the queries of all rows that share keys, in one row."""
    return x.unflatten(0, (prefixes, -1)).transpose(1, 2).flatten(2, 3)


def _apart(x: Tensor, rows: int) -> Tensor:
    """(A, H, C N, K) -> (A C, H, N, K)."""
    return x.unflatten(2, (rows // x.shape[0], -1)).transpose(1, 2).flatten(0, 1)
