"""FlexAttention on GPUs: softmax under a mask, in a kernel that PyTorch compiles for that mask.

    o_i = sum_j softmax_j(scale q_i . k_j) v_j  over the keys j that the mask allows query i

FlexAttention: A Programming Model for Generating Optimized Attention Kernels, 2412.05496, 2024. It skips blocks of
128 x 128 scores that a mask forbids and asks nothing in those that it allows. Which ones is read off the mask's own
`touches` and `covers`, so that no table of N x M is made for it. On CPUs PyTorch has its forward alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from formwright.ops.masks import Mask, Ranges
from formwright.ops.normalisers import Normaliser, Softmax

SIZE = 128  # queries and keys of a block
LEAST = 1024  # queries from which its compilation and its blocks pay
LEAST_WIDTH = 16
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def refusal(like: Tensor, m: int, plain: Mask, bias: bool, normaliser: Normaliser, learning: bool) -> str | None:
    """Why FlexAttention can't compute attention of queries `like` these to m keys, with gradients where learning; None
    where it can."""
    on_cpu = like.device.type == "cpu"
    if not isinstance(normaliser, Softmax):
        return f"FlexAttention has no {type(normaliser).__name__.lower()}"
    if bias:
        return "a bias goes through blocks"
    if plain.batched:
        return f"the rows of {plain} differ"
    if on_cpu and learning:
        return "FlexAttention has no backward on CPUs"
    if 0 in like.shape or m == 0:
        return "there are no queries or keys"
    if not on_cpu and (like.dtype not in DTYPES or like.shape[3] < LEAST_WIDTH):
        return f"FlexAttention's kernels take half or single precision and a width of at least {LEAST_WIDTH}"
    return None


def flex(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float) -> Tensor:
    """q (B, N, H, K), k (B, M, G, K), v (B, M, G, V) -> (B, N, H, V). On a CPU uncompiled, for comparisons."""
    n, m = q.shape[1], k.shape[1]
    on_cpu = q.device.type == "cpu"
    kernel = flex_attention if on_cpu else _compiled()
    blocks = block_mask(mask, n, m, q.device)
    q, k, v = ((x.detach() if on_cpu else x).transpose(1, 2) for x in (q, k, v))
    return kernel(q, k, v, block_mask=blocks, scale=scale, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


@functools.cache
def _compiled() -> Callable:
    return torch.compile(flex_attention)


@functools.lru_cache(maxsize=64)
def block_mask(mask: Mask, n: int, m: int, device: torch.device) -> BlockMask:
    """The blocks that the mask touches and those that it covers, for n queries and m keys."""
    columns = -(-m // SIZE)
    partial, full = [], []
    for start in range(0, n, SIZE):
        stop = min(start + SIZE, n)
        touched = mask.touches(start + m - n, stop + m - n, m)
        covered = mask.covers(start + m - n, stop + m - n, m)
        inside = {c for c in range(columns) if _holds(covered, c * SIZE, min((c + 1) * SIZE, m))}
        full.append(sorted(inside))
        partial.append([c for c in _columns(touched) if c not in inside])

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return mask.mask_mod(b, h, i + (m - n), j)

    tables = [each for rows in (partial, full) for each in _table(rows, columns, device)]
    return BlockMask.from_kv_blocks(*tables, BLOCK_SIZE=SIZE, mask_mod=allowed, seq_lengths=(n, m))


def _columns(ranges: Ranges) -> list[int]:
    """The blocks of keys that the ranges reach into."""
    return sorted({c for a, b in ranges if a < b for c in range(a // SIZE, -(-b // SIZE))})


def _holds(ranges: Ranges, start: int, stop: int) -> bool:
    return any(a <= start and stop <= b for a, b in ranges)


def _table(rows: list[list[int]], columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, (1, 1, rows), and which, (1, 1, rows, columns), the rest of a row behind them."""
    counts = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    indices = [row + sorted(set(range(columns)) - set(row)) for row in rows]
    return counts[None, None].to(device), torch.tensor(indices, dtype=torch.int32)[None, None].to(device)
