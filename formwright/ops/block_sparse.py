"""Block-sparse attention: blocks of queries read a window of blocks around them, a few global blocks, and a few drawn
at random for each head (ops.masks_grid.BlockSparse says which, token by token).

    o_i = sum_j softmax_j(scale q_i . k_j) v_j      for the keys j of the blocks that i's block reads

Queries of global blocks read every key. The blocks of keys are gathered for several blocks of queries at a time; work
and memory grow with N. B batch, N queries (the last N of M tokens), H heads, K key width, V value width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from formwright.ops.attention import attention
from formwright.ops.attention import macs as dense_macs
from formwright.ops.masks_grid import BlockSparse, random_blocks

GATHERED = 2**19  # numbers of keys gathered at once


def block_sparse_attention(q: Tensor, k: Tensor, v: Tensor, how: BlockSparse) -> Tensor:
    """q (B, N, H, K), k (B, M, H, K), v (B, M, H, V) -> (B, N, H, V); `how` holds for all heads, each draws its own.

    Raises ValueError for a mask that isn't causal and fewer queries than keys."""
    n, m, block = q.shape[1], k.shape[1], how.size
    if not how.causal and n != m:
        raise ValueError(f"block_sparse_attention: {n} queries of {m} tokens need a causal mask")
    whole = 0 if how.causal else min(n, how.globals * block)
    first = [attention(q[:, :whole], k, v)] if whole else []
    if whole < n:
        first.append(_sparse(q[:, whole:], k, v, how))
    return torch.cat(first, 1) if len(first) > 1 else first[0]


def _sparse(q: Tensor, k: Tensor, v: Tensor, how: BlockSparse) -> Tensor:
    b, n, heads, _ = q.shape
    m, block = k.shape[1], how.size
    own, rows, front = _query_blocks(n, m, block, q.device)
    q = F.pad(q, (0, 0, 0, 0, front, len(own) * rows - front - n)).unflatten(1, (len(own), rows))
    k, v = (_blocks(x, block) for x in (k, v))
    head = torch.arange(heads, device=q.device)[:, None, None]
    blocks, real = _read_blocks(own, heads, how, k.shape[2])
    places = torch.arange(block, device=q.device)
    at = own[:, None] * block + (torch.arange(rows, device=q.device) if rows > 1 else m - 1 - own[:, None] * block)
    step = max(1, GATHERED // (b * heads * blocks.shape[2] * block * k.shape[4]))
    out = []
    for start in range(0, len(own), step):
        here = slice(start, start + step)
        index = blocks[:, here]
        keys, values = (x[:, head, index].flatten(3, 4) for x in (k, v))  # (B, H, blocks, S C, width)
        token = (index[..., None] * block + places).flatten(2)
        allowed = (real[:, here, :, None] & (places >= 0)).flatten(2) & (token < m)
        allowed = allowed[:, :, None]
        if how.causal:
            allowed = allowed & (token[:, :, None] <= at[here, :, None])
        mask = allowed.expand(b, -1, -1, rows, -1).flatten(0, 1)
        queries = q[:, here].permute(0, 3, 1, 2, 4).flatten(0, 1)
        o = F.scaled_dot_product_attention(queries, keys.flatten(0, 1), values.flatten(0, 1), attn_mask=mask)
        out.append(o.unflatten(0, (b, heads)))
    o = torch.cat(out, 2).permute(0, 2, 3, 1, 4).flatten(1, 2)
    return o[:, front : front + n]


def _query_blocks(n: int, m: int, block: int, device: torch.device) -> tuple[Tensor, int, int]:
    """The numbers of the blocks that the last n of m tokens stand in, queries computed in each, and how many of the
    first block's come before. A single token is computed without the rest of its block."""
    own = torch.arange((m - n) // block, -(-m // block), device=device)
    return (own, 1, 0) if n == 1 else (own, block, (m - n) % block)


def _blocks(x: Tensor, block: int) -> Tensor:
    """(B, M, H, K) -> (B, H, blocks, C, K)."""
    return F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % block)).unflatten(1, (-1, block)).permute(0, 3, 1, 2, 4)


def _read_blocks(own: Tensor, heads: int, how: BlockSparse, count: int) -> tuple[Tensor, Tensor]:
    """(H, blocks of queries, S) blocks of keys that each reads, and which of them are there and not named twice."""
    side = how.window - 1 if how.causal else how.window // 2
    near = own[:, None] + torch.arange(-side, 1 if how.causal else side + 1, device=own.device)
    everywhere = torch.arange(min(how.globals, count), device=own.device).expand(len(own), -1)
    shared = torch.cat([near, everywhere], 1)
    real = torch.cat([(near >= how.globals) & (near < count), everywhere >= 0], 1)
    drawn, there = random_blocks(own, torch.arange(heads, device=own.device)[:, None], how)
    blocks = torch.cat([shared.expand(heads, -1, -1), drawn.expand(heads, len(own), -1)], 2)
    return blocks.clamp(0, count - 1), torch.cat([real.expand(heads, -1, -1), there.expand_as(drawn)], 2)


def macs(n: int, how: BlockSparse, *, heads: int, key_dim: int, batch: int = 1) -> int:
    """Multiply-adds of one forward over n tokens."""
    whole = 0 if how.causal else min(n, how.globals * how.size)
    total = dense_macs(whole, n, heads=heads, key_dim=key_dim, batch=batch) if whole else 0
    if whole < n:
        blocks = -(-n // how.size) - whole // how.size
        rows = 1 if n - whole == 1 else how.size
        near = how.window if how.causal else how.window // 2 * 2 + 1
        read = near + min(how.globals, -(-n // how.size)) + how.random
        total += batch * heads * blocks * rows * read * how.size * 2 * key_dim
    return total
