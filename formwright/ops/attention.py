"""Attention: rows of normalised scores times values, exactly, in memory linear in the number of tokens.

    s_ij = scale q_i . k_j + bias_ij        for the keys j that the mask allows query i
    o_i  = sum_j p_ij v_j,  p_i = normaliser(s_i)

Attention Is All You Need, 1706.03762, 2017; grouped heads: GQA, 2305.13245, 2023.

Backends: "reference" is the dense definition; "sdpa" is PyTorch's own kernel, for what it computes (softmax, on CPUs
with a sink too); "blocks" goes through blocks of queries, takes the keys that the mask touches (a window costs what the
window costs), and works for every normaliser, bias and mask; "flex" is FlexAttention, for softmax under masks on GPUs
(on a CPU uncompiled and without gradients, for comparisons). Queries that may attend to no key give zeros.

B batch, N queries, M keys, H heads, G key/value heads (H = G R, head h reads group h // R), K key width, V value width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from formwright.ops import attention_flex, attention_kernel
from formwright.ops.attention_bias import Bias, Distance, dense_bias
from formwright.ops.attention_blocks import HALF, blockwise, pairs
from formwright.ops.attention_packed import packed, padded
from formwright.ops.masks import Causal, Full, Mask, simplify
from formwright.ops.normalisers import Normaliser, Sink, Softmax, normaliser_of

__all__ = ["BACKENDS", "SDPA_FLOPS", "Bias", "Distance", "attention", "explain", "macs", "reference"]

BACKENDS = ("auto", "reference", "sdpa", "flex", "blocks")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask | None = None,
    bias: Bias | None = None,
    normaliser: str | Normaliser = "softmax",
    scale: float | None = None,
    offsets: Tensor | tuple[Tensor, Tensor] | None = None,
    lengths: Tensor | tuple[Tensor | None, Tensor | None] | None = None,
    backend: str = "auto",
) -> Tensor:
    """q (B, N, H, K), k (B, M, G, K), v (B, M, G, V) -> (B, N, H, V).

    mask        a mask object (ops.masks); None allows all
    bias        added to scores: a tensor broadcastable to (B, H, N, M); a Distance; or a function of the indices (n,)
                of queries and (m,) of keys that gives a block of it and needs no gradient
    normaliser  a name among ops.normalisers.NORMALISERS, or an object with options
    scale       1 / sqrt(K) without it
    offsets     (S+1,) bounds of sequences packed in one row, or a pair of them for queries and keys
    lengths     (B,) valid tokens of padded rows, or a pair for queries and keys (None: all); outputs at padding are 0

    Raises ValueError for shapes that don't fit, and for a backend that can't compute what is asked."""
    _check(q, k, v, backend)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    normaliser = normaliser_of(normaliser)
    if offsets is not None and lengths is not None:
        raise ValueError("attention: a batch is packed (offsets) or padded (lengths), not both")

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None) -> Tensor:
        return _attend(q, k, v, mask, bias, normaliser, scale, backend)

    if offsets is not None:
        return packed(q, k, v, mask, bias, offsets, attend)
    if lengths is not None:
        return padded(q, k, v, mask, bias, lengths, attend)
    return attend(q, k, v, bias)


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask | None = None,
    bias: Bias | None = None,
    normaliser: str | Normaliser = "softmax",
) -> str:
    """The backend that "auto" picks for these tensors, and why: "sdpa: ..." or "blocks: ..."."""
    _check(q, k, v, "auto")
    backend, reason = _choose(q.shape, k.shape, v.shape, mask, bias is not None, normaliser_of(normaliser), q)
    return f"{backend}: {reason}"


def macs(
    n: int,
    m: int,
    *,
    heads: int,
    kv_heads: int | None = None,
    key_dim: int,
    value_dim: int | None = None,
    mask: Mask | None = None,
    bias: bool = False,
    normaliser: str | Normaliser = "softmax",
    batch: int = 1,
    backend: str = "auto",
) -> int:
    """Multiply-adds of one forward on a CPU, without gradients of anything: all n m products for "sdpa" and "reference"
    (as FlopCounterMode counts them, causal or not), those of the keys really taken for "blocks" and
    "flex"."""
    kv_heads = kv_heads or heads
    value_dim = value_dim or key_dim
    shapes = (batch, n, heads, key_dim), (batch, m, kv_heads, key_dim), (batch, m, kv_heads, value_dim)
    if backend == "auto":
        backend = _choose(*shapes, mask, bias, normaliser_of(normaliser))[0]
    scores = pairs(simplify(mask, n, m), n, m) if backend in ("blocks", "flex") else n * m
    return batch * heads * scores * (key_dim + value_dim)


def count_cpu_sdpa(q, k, v, *args, out_shape=None, **kwargs) -> int:
    """FLOPs of PyTorch's CPU attention kernel from its shapes, for FlopCounterMode(custom_mapping=SDPA_FLOPS): PyTorch
    counts its CUDA kernels this way (all n m products, causal or not) and the CPU one not at all."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


SDPA_FLOPS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count_cpu_sdpa}


def _check(q: Tensor, k: Tensor, v: Tensor, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"attention: {backend!r} is no backend; there are {', '.join(BACKENDS)}")
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise ValueError(
            "attention: q, k and v are (B, N, heads, width), but are "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"attention: q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} don't fit: "
            "q and k share batch and width, k and v share batch, tokens and heads"
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: {q.shape[2]} query heads are no multiple of {k.shape[2]} key/value heads")


def _refusal(q, k, v, plain: Mask, bias: bool, normaliser: Normaliser, device: str = "cpu") -> str | None:
    """Why SDPA can't compute attention of these shapes exactly, in memory linear in N; None where it can."""
    if isinstance(normaliser, Sink) and device != "cpu":
        return "SDPA's kernel gives the log-sum-exp that a sink needs on CPUs alone"
    if not isinstance(normaliser, Softmax | Sink):
        return f"SDPA has no {type(normaliser).__name__.lower()}"
    if bias:
        return "SDPA would hold the whole bias"
    if q[3] != v[3]:
        return f"SDPA wants one width, but keys have {q[3]} and values {v[3]}"
    if not isinstance(plain, Full) and not (isinstance(plain, Causal) and q[1] == k[1]):
        return f"SDPA would compute all that {plain} forbids"
    if isinstance(normaliser, Sink) and 0 in q:
        return "there are no queries"
    return "there are no keys" if k[1] == 0 else None


def _beside_sdpa(reason: str, m: int, plain: Mask, bias: bool, normaliser: Normaliser, like: Tensor) -> tuple[str, str]:
    """The backend and its reason where SDPA can't serve: FlexAttention where it can and pays, or blocks."""
    if isinstance(plain, Full) or bias or not isinstance(normaliser, Softmax):
        return "blocks", reason
    if (other := attention_flex.refusal(like, m, plain, bias, normaliser, learning=True)) is not None:
        return "blocks", f"{reason}; {other}"
    if like.shape[1] < attention_flex.LEAST:
        return "blocks", f"{reason}; FlexAttention pays from {attention_flex.LEAST} queries"
    return "flex", f"{reason}, and FlexAttention skips it"


def _choose(q, k, v, mask, bias: bool, normaliser: Normaliser, like: Tensor | None = None) -> tuple[str, str]:
    """The backend for shapes q, k, v (and tensors like that one) and its reason. On a CPU it depends on more than
    shapes only where both do the same products, so that `macs` needs no more than them."""
    plain = simplify(mask, q[1], k[1])
    device = "cpu" if like is None else like.device.type
    if (reason := _refusal(q, k, v, plain, bias, normaliser, device)) is not None:
        return ("blocks", reason) if like is None else _beside_sdpa(reason, k[1], plain, bias, normaliser, like)
    if q[1] == 1 and like is not None and device == "cpu" and like.dtype in HALF:
        return "blocks", "for one query in half precision matrix products beat SDPA's CPU kernel"
    if q[1] == 1 and k[2] < q[2] and k[1] >= 1024:
        return "blocks", "one query in grouped heads: keys are read once a group, not once a head"
    if isinstance(normaliser, Sink):
        return "sdpa", f"softmax whose log-sum-exp takes the sink in, {plain}"
    return "sdpa", f"softmax, {plain}"


def _attend(q, k, v, mask, bias, normaliser, scale, backend) -> Tensor:
    n, m = q.shape[1], k.shape[1]
    plain = simplify(mask, n, m)
    if plain.batched and plain.rows() != q.shape[0]:
        raise ValueError(f"attention: the mask {plain} was made for {plain.rows()} rows, but there are {q.shape[0]}")
    if backend == "reference":
        return reference(q, k, v, mask, bias, normaliser, scale)
    shapes = q.shape, k.shape, v.shape, plain, bias is not None, normaliser
    if backend == "auto":
        backend = _choose(*shapes, q)[0]
    elif backend == "sdpa" and (reason := _refusal(*shapes, q.device.type)) is not None:
        raise ValueError(f"attention: backend 'sdpa' can't compute this ({reason}); use 'auto' or 'blocks'")
    if backend == "flex":
        learning = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        if (reason := attention_flex.refusal(q, m, plain, bias is not None, normaliser, learning)) is not None:
            raise ValueError(f"attention: backend 'flex' can't compute this ({reason}); use 'auto' or 'blocks'")
        return attention_flex.flex(q, k, v, plain, scale)
    if backend == "sdpa":
        return _sdpa(q, k, v, isinstance(plain, Causal), normaliser, scale)
    return blockwise(q, k, v, plain, bias, normaliser, scale)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool, normaliser: Normaliser, scale: float) -> Tensor:
    if isinstance(normaliser, Sink):
        sink = normaliser.learned(q.shape[2])
        sink = q.new_full((q.shape[2],), normaliser.sink, dtype=torch.float64) if sink is None else sink
        return attention_kernel.sink_attention(q, k, v, sink, causal, scale)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=grouped).transpose(1, 2)


def reference(q, k, v, mask, bias, normaliser, scale) -> Tensor:
    """The definition, densely: all scores of all heads at once."""
    n, m, groups = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
    scores = torch.einsum("bnhk,bmhk->bhnm", q, k) * scale
    if bias is not None:
        scores = scores + dense_bias(bias, n, m, q.device)
    allowed = (Full() if mask is None else mask).materialize(n, m, q.device)
    allowed = allowed[:, None] if allowed.ndim == 3 else allowed
    count = allowed.sum(-1, keepdim=True).clamp_min(1).to(scores.dtype)
    scores = scores.masked_fill(~allowed, normaliser.hidden)
    blind = (scores == -math.inf).all(-1, keepdim=True)
    learned = normaliser.learned(q.shape[2])
    normaliser = normaliser if learned is None else normaliser.with_learned(learned[:, None, None])
    weights = normaliser.weights(scores.masked_fill(blind, 0), count).masked_fill(blind, 0)
    return torch.einsum("bhnm,bmhv->bnhv", weights, v)
