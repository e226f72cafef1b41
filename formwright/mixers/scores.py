"""What score-based mixers share around ops.attention: a layout's padding and packing, masks, and multiply-adds.

A mixer makes q, k and v, calls `attend`, and maps what comes back; decoding it calls ops.attention with what
cache.append_heads gives.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from formwright.contract import Layout
from formwright.ops.attention import attention, macs
from formwright.ops.masks import Causal, Mask, Window


def looks_back(causal: bool, window: int | None = None) -> Mask | None:
    """The mask of a causal mixer, of one with a window, of one with both; None where a token sees all."""
    if window is None:
        return Causal() if causal else None
    return Causal() & Window(window) if causal else Window(window)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    causal: bool,
    context_layout: Layout | None = None,
    mask: Mask | None = None,
    **options: Any,
) -> Tensor:
    """ops.attention of the tokens of a layout: q (B,N,H,K), k (B,M,G,K), v (B,M,G,V) -> (B,N,H,V).

    Packed sequences and padded rows don't meet. `mask` holds within one sequence; causal says that it lets nobody see
    what comes later, so that padding after a row's tokens needs no care. With a context_layout keys and values are
    those of a context, which is read whole. `options` are those of ops.attention.

    Raises ValueError where tokens are packed and their context is not."""
    across = layout if context_layout is None else context_layout
    if (layout.offsets is None) != (across.offsets is None):
        raise ValueError("attention: tokens and context must both be packed, or neither")
    offsets = None if layout.offsets is None else (layout.offsets, across.offsets)
    lengths = None if across.lengths is None else (layout.lengths if context_layout is None else None, across.lengths)
    if causal and context_layout is None:
        lengths = None  # padding comes after every token that counts
    return attention(q, k, v, mask=mask, offsets=offsets, lengths=lengths, **options)


def attend_macs(
    layout: Layout,
    batch: int,
    *,
    causal: bool,
    context_layout: Layout | None = None,
    mask: Mask | None = None,
    **options: Any,
) -> int:
    """Multiply-adds of `attend`; `options` are those of ops.attention.macs: heads, key_dim, ..."""
    n = layout.tokens
    m = n if context_layout is None else context_layout.tokens
    alone = context_layout is not None or layout.plain or (layout.lengths is not None and causal)
    sizes = [(n, m, batch)] if alone else [(part.tokens, part.tokens, 1) for _, _, part in layout.sequences()]
    return sum(macs(queries, keys, mask=mask, batch=rows, **options) for queries, keys, rows in sizes)
