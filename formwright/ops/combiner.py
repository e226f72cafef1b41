"""Combiner: attention to all tokens, to some directly and to groups of others through an abstraction of each.

    A_ij = p(j | i) for j in Omega_0(i),    A_ij = p(Omega_r | i) p(j | Omega_r) for j in a group Omega_r read by i
    p(j | i) = exp(scale q_i . k_j) / Z_i        p(Omega_r | i) = exp(scale q_i . pool_r(k)) / Z_i
    p(j | Omega_r) = softmax over j in Omega_r of scale pool_r(q) . k_j          o_i = sum_j A_ij v_j

pool_r is the maximum or the mean over the group. Omega_0(i) and the groups that i reads split the tokens that i may
see, so that rows of A sum to 1 and no entry is zero; sum_j p(j | Omega_r) v_j is computed once for all readers.

    fixed      Omega_0: i's block; groups: the other blocks (causal: those before it)        N (block + N / block)
    logsparse  Omega_0: i; groups: for each level l the block of 2^l tokens beside i's own   N log N
               (causal: where i's own is the right one of the two)
    axial      tokens in rows of `block`. Omega_0: i's row and column; groups: the other columns without i's row
               (causal: the rows above)                                                      N (block + N / block)

Combiner: Full Attention Transformer with Sparse Computation Cost, arXiv 2107.05768, 2021. Tensors here have their
heads before their tokens: q, k (B, H, N, K), v (B, H, N, V).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[Tensor, Tensor]
HIDDEN = float("-inf")


def abstract(q: Tensor, k: Tensor, v: Tensor, pooling: str, valid: Tensor | None = None) -> Pair:
    """Groups of queries, keys and values (..., n, K), of which `valid` (..., n) count -> each group's key (..., K) and
    its local expectation of the values (..., V)."""
    query, key = _pool(q, pooling, valid), _pool(k, pooling, valid)
    scores = query[..., None, :] @ k.mT
    if valid is not None:
        scores = scores.masked_fill(~valid[..., None, :], HIDDEN)
    return key, (scores.softmax(-1) @ v).squeeze(-2)


def _pool(x: Tensor, pooling: str, valid: Tensor | None) -> Tensor:
    if pooling == "max":
        return (x if valid is None else x.masked_fill(~valid[..., None], HIDDEN)).amax(-2)
    if valid is None:
        return x.mean(-2)
    return x.masked_fill(~valid[..., None], 0).sum(-2) / valid.sum(-1)[..., None]


def fixed(
    q: Tensor, k: Tensor, v: Tensor, block: int, causal: bool, pooling: str, past: Pair | None = None, skip: int = 0
) -> tuple[Tensor, Pair]:
    """Scaled queries, keys and values from the start of a block on, after blocks whose abstractions are `past`
    (B, H, P, K), causal alone -> outputs (B, H, N - skip, V) of all but the first `skip` (fewer than a block) and the
    abstractions of further whole blocks."""
    n = q.shape[-2]
    width = min(n, block)
    blocks, whole = -(-n // width), n // block if causal else -(-n // width)
    qb, kb, vb = (_cut(x, width) for x in (q, k, v))
    place = torch.arange(blocks * width, device=q.device).view(blocks, width)
    valid = None if causal or n == blocks * width else place < n
    new = abstract(qb[:, :, :whole], kb[:, :, :whole], vb[:, :, :whole], pooling, valid)
    keys, values = new if past is None else (torch.cat(both, 2) for both in zip(past, new, strict=True))
    rows = skip if blocks == 1 else 0  # with several blocks those skipped are computed, and thrown away
    qb = qb[:, :, :, rows:]
    direct = qb @ kb.mT
    if causal:
        step = torch.arange(width, device=q.device)
        direct = direct.masked_fill(step > step[rows:, None], HIDDEN)
    elif valid is not None:
        direct = direct.masked_fill(~valid[:, None], HIDDEN)
    column, own = torch.arange(keys.shape[2], device=q.device), torch.arange(blocks, device=q.device)[:, None, None]
    unread = column >= own + keys.shape[2] - whole if causal else column == own
    through = (qb.flatten(2, 3) @ keys.mT).unflatten(2, (blocks, width - rows)).masked_fill(unread, HIDDEN)
    weights = torch.cat([direct, through], -1).softmax(-1)
    o = (weights[..., :width] @ vb).flatten(2, 3) + weights[..., width:].flatten(2, 3) @ values
    return o[:, :, skip - rows : n - rows], new


def logsparse(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, pooling: str, past: Pair | None = None, start: int = 0
) -> tuple[Tensor, Pair | None]:
    """Scaled queries, keys and values of all N tokens -> outputs (B, H, N - start, V) of those from `start` on.

    `past`, causal alone: by level the last whole block's abstraction before start's block of that level, keys and
    values (B, H, L, K), with L levels for blocks up to N. Given back as it is before token N."""
    n = q.shape[-2]
    new = q[:, :, start:]
    place = torch.arange(start, n, device=q.device)
    scores, read, last = [(new * k[:, :, start:]).sum(-1)], [v[:, :, start:]], []
    for level in range((n - 1).bit_length() if past is None else past[0].shape[2]):
        size, first = 1 << level, start >> level
        fresh = [x[:, :, first * size :] for x in (q, k, v)]
        tokens = n - first * size
        blocks, whole = -(-tokens // size), tokens // size if causal else -(-tokens // size)
        if level == 0:
            keys, values = fresh[1:]
        else:
            parts = [_cut(x, size)[:, :, :whole] for x in fresh]
            valid = None if whole * size <= tokens else torch.arange(whole * size, device=q.device) < tokens
            keys, values = abstract(*parts, pooling, None if valid is None else valid.view(whole, size))
        own = (place >> level) - first
        if causal:  # block c reads the one before it: one place on, behind the last of the past
            before = (
                (torch.zeros_like(x[:, :, :1]) for x in (k, v))
                if past is None
                else (x[:, :, level, None] for x in past)
            )
            keys, values = (torch.cat(both, 2) for both in zip(before, (keys, values), strict=True))
            other, readable = own, (own + first) % 2 == 1
            last.append((keys[:, :, -1], values[:, :, -1]))
        else:
            other, readable = (own ^ 1).clamp(max=blocks - 1), (own ^ 1) < blocks
        scores.append((new * keys[:, :, other]).sum(-1).masked_fill(~readable, HIDDEN))
        read.append(values[:, :, other])
    weights = torch.stack(scores, -1).softmax(-1)
    o = sum(w[..., None] * x for w, x in zip(weights.unbind(-1), read, strict=True))
    return o, None if past is None else tuple(torch.stack(each, 2) for each in zip(*last, strict=True))


def axial(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block: int,
    causal: bool,
    pooling: str,
    past: tuple[Tensor, Tensor, Tensor] | None = None,
    above: Pair | None = None,
    skip: int = 0,
) -> tuple[Tensor, Pair | None]:
    """Scaled queries, keys and values from the start of a row on, after `past` rows of them, whose columns have the
    abstractions `above` (B, H, block, K); both causal alone -> outputs (B, H, N - skip, V) of all but the first `skip`
    (fewer than a row), and the abstractions above the row that begins or goes on after these tokens."""
    n = q.shape[-2]
    rows, whole = -(-n // block), n // block
    before = 0 if past is None else past[0].shape[-2] // block
    qb, kb, vb = (_cut(x, block) for x in (q, k, v))
    fresh, several = (qb, kb, vb), before + rows
    if past is not None:
        fresh = tuple(torch.cat([_cut(old, block), new], 2) for old, new in zip(past, fresh, strict=True))
    qc, kc, vc = (x.transpose(2, 3) for x in fresh)  # (B, H, block, rows, K)
    row, column = torch.arange(several, device=q.device), torch.arange(block, device=q.device)
    own = row[before:, None]
    if causal:
        hidden, unseen = (row >= own).expand(block, -1, -1), column > column[:, None]
        keys, values = _grow_above(qc, kc, vc, before, whole, above, pooling)
        above = keys[:, :, -1], values[:, :, -1]
        keys, values, nothing = keys[:, :, :rows], values[:, :, :rows], (own == 0)[..., None]
    else:
        padding = torch.arange(rows * block, device=q.device).view(rows, block) >= n
        hidden, unseen = (row == own) | padding.T[:, None], padding[:, None].expand(-1, block, -1)
        query, key = (_pool_others(x, pooling, ~padding.T) for x in (qc, kc))
        empty = hidden.all(-1, keepdim=True)
        value = (query @ kc.mT).masked_fill(hidden & ~empty, HIDDEN).softmax(-1) @ vc
        keys, values, nothing = key.transpose(2, 3), value.transpose(2, 3), empty.transpose(0, 1).mT
    some = slice(skip, n) if rows == 1 else slice(0, block)  # of a row by itself no other queries
    qb = qb[:, :, :, some]
    down = (qb.transpose(2, 3) @ kc[:, :, some].mT).masked_fill(hidden[some], HIDDEN)
    along = (qb @ kb.mT).masked_fill(unseen[..., some, :], HIDDEN)
    through = (qb @ keys.mT).masked_fill((column == column[some, None]) | nothing, HIDDEN)
    weights = torch.cat([down.transpose(2, 3), along, through], -1).softmax(-1)
    down, along, through = weights.split([several, block, block], -1)
    o = (down.transpose(2, 3) @ vc[:, :, some]).transpose(2, 3) + along @ vb + through @ values
    o = o.flatten(2, 3)
    return (o if rows == 1 else o[:, :, skip:n]), above if causal else None


def _grow_above(q: Tensor, k: Tensor, v: Tensor, before: int, whole: int, above: Pair | None, pooling: str) -> Pair:
    """Columns (B, H, block, rows, K) -> the abstractions (B, H, 1 + whole, block, K) of what is above row `before`,
    which are given (none above the first row), and above each of `whole` rows after it."""
    if above is None:
        above = torch.zeros_like(k[:, :, :, 0]), torch.zeros_like(v[:, :, :, 0])
    keys, values = (x[:, :, None] for x in above)
    if not whole:
        return keys, values
    row, last = torch.arange(k.shape[3], device=k.device), slice(before, before + whole)
    query, key = (_pool_up(x, pooling)[..., last, :] for x in (q, k))
    value = (query @ k.mT).masked_fill(row > row[last, None], HIDDEN).softmax(-1) @ v
    return torch.cat([keys, key.transpose(2, 3)], 2), torch.cat([values, value.transpose(2, 3)], 2)


def _pool_up(x: Tensor, pooling: str) -> Tensor:
    """Of each place along the axis before the last and those before it."""
    if pooling == "max":
        return x.cummax(-2).values
    return x.cumsum(-2) / torch.arange(1, x.shape[-2] + 1, device=x.device)[:, None]


def _pool_others(x: Tensor, pooling: str, valid: Tensor) -> Tensor:
    """x (B, H, block, rows, K), valid (block, rows): of all valid places of a column but each itself; 0 of nothing."""
    if pooling == "mean":
        x = x.masked_fill(~valid[..., None], 0)
        count = valid.sum(-1, keepdim=True) - valid.int()
        return (x.sum(-2, keepdim=True) - x) / count.clamp(min=1)[..., None]
    x = x.masked_fill(~valid[..., None], HIDDEN)
    edge = torch.full_like(x[..., :1, :], HIDDEN)
    first = torch.cat([edge, x.cummax(-2).values[..., :-1, :]], -2)
    then = torch.cat([x.flip(-2).cummax(-2).values.flip(-2)[..., 1:, :], edge], -2)
    most = torch.maximum(first, then)
    return most.masked_fill(most == HIDDEN, 0)


def _cut(x: Tensor, size: int) -> Tensor:
    """(B, H, N, K) -> (B, H, C, size, K), the last block filled up with zeros."""
    n = x.shape[-2]
    return F.pad(x, (0, 0, 0, -n % size)).unflatten(-2, (-(-n // size), size))


def macs(pattern: str, n: int, block: int, causal: bool, width: int) -> int:
    """Multiply-adds of n tokens' matrix products, `width` being H K (= H V)."""
    if pattern == "logsparse":  # scores are products of single vectors, which aren't counted
        spans = [1 << level for level in range(1, (n - 1).bit_length())]
        return 2 * width * sum((n // size if causal else -(-n // size)) * size for size in spans)
    if pattern == "axial":
        rows, queries = -(-n // block), n if n <= block else -(-n // block) * block
        groups = n // block if causal else rows
        return 2 * width * (queries * (rows + 2 * block) + groups * block * rows)
    size = min(n, block)
    blocks = -(-n // size)
    whole = n // block if causal else blocks
    return 2 * width * (blocks * size * (size + whole) + whole * size)


def split(pattern: str, n: int, block: int, causal: bool) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The definition: Omega_0 as (n, n) booleans, row i for token i, and (members (n,), readers (n,)) of each group."""
    i = torch.arange(n)
    seen = i <= i[:, None] if causal else torch.ones(n, n, dtype=torch.bool)
    row = i // block
    if pattern == "fixed":
        pairs = [(row == r, row > r if causal else row != r) for r in range(-(-n // block))]
        return seen & (row == row[:, None]), pairs
    pairs = []
    if pattern == "axial":
        for r in range(-(-n // block)):
            for c in range(block):
                members = (i % block == c) & (row < r if causal else row != r)
                pairs.append((members, (row == r) & (i % block != c)))
        return seen & ((row == row[:, None]) | (i % block == (i % block)[:, None])), pairs
    for level in range((n - 1).bit_length()):
        own = i >> level
        for c in range(-(-n >> level)):
            pairs.append((own == c, (own == c + 1) & (c % 2 == 0) if causal else own == c ^ 1))
    return torch.eye(n, dtype=torch.bool), pairs


def dense_weights(q: Tensor, k: Tensor, pattern: str, block: int, causal: bool, pooling: str) -> Tensor:
    """The whole matrix A (B, H, N, N) of scaled queries and keys, group after group."""
    n = q.shape[-2]
    direct, groups = split(pattern, n, block, causal)
    logits, spread = [(q @ k.mT).masked_fill(~direct.to(q.device), HIDDEN)], []
    for members, readers in groups:
        if not (members.any() and readers.any()):
            continue
        query, key = (_pool(x[..., members, :], pooling, None)[..., None, :] for x in (q, k))
        logits.append((q @ key.mT).masked_fill(~readers[:, None].to(q.device), HIDDEN))
        outside = ~members.to(q.device)
        spread.append((query @ k.mT).masked_fill(outside, HIDDEN).softmax(-1))
    weights = torch.cat(logits, -1).softmax(-1)
    return weights[..., :n] + (weights[..., n:] @ torch.cat(spread, -2) if spread else 0)
