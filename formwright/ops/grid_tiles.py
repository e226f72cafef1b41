"""Attention in tiles of a grid: tokens that attend near themselves are gathered into tiles, and each tile is attended
to as a whole, so that work and memory grow with tokens times neighbours.

    s_tau,ab = scale q_tau,a . k_tau,b + bias_h,ab      for the slots b of tile tau that slot a may attend to
    o_tau,a  = sum_b softmax_b(s_tau,ab) v_tau,b

One axis is cut into tiles (`windows`, `neighbourhoods`, `lines`), and a grid's tiles are the products of its axes'
(`over_grid`): a query may attend to a key where it may along every axis. ops.masks_grid says the same token by token.

B batch, N tokens, H heads, K key width, V value width; T tiles of t queries and e keys.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
DENSE = 0.8  # the share of all pairs from which on one tile of everything is as fast as many
SCORES = 2**20  # scores held at once where a bias is added


@dataclass(frozen=True, eq=False)
class Tiles:
    """How `length` tokens are cut into tiles.

    queries  (T, t) tokens that stand in the slots of a tile; some may stand in two tiles
    keys     (T, e) tokens that they read
    allowed  (T, t, e) booleans, None where every slot reads every other
    tile     (length,) the tile in which a token's output is computed, and `slot` its place there
    steps    for each axis (t, e), how far key slots are from query slots
    whole    whether there is one tile of all tokens in their order, so that nothing need be gathered
    """

    length: int
    queries: Tensor
    keys: Tensor
    allowed: Tensor | None
    tile: Tensor
    slot: Tensor
    steps: tuple[Tensor, ...]
    whole: bool = False

    @property
    def pairs(self) -> int:
        """T t e, the number of scores of one head."""
        return self.queries.numel() * self.keys.shape[1]

    @property
    def place(self) -> Tensor:
        """(length,) where a token's output stands among the slots of all tiles."""
        return self.tile * self.queries.shape[1] + self.slot

    @property
    def reorders(self) -> bool:
        """Whether the slots of all tiles are the tokens in another order, each once."""
        return self.keys is self.queries and self.queries.numel() == self.length and not self.whole


def lines(length: int, device: torch.device | None = None) -> Tiles:
    """One tile: everybody reads everybody along the axis."""
    return windows(length, length, 0, device)


def windows(length: int, size: int, shift: int = 0, device: torch.device | None = None) -> Tiles:
    """Windows of `size` tokens side by side, the first border after `shift` of them: i and j read one another where
    floor((i - shift) / size) is the same. The two cut windows at the ends share one tile."""
    size = min(size, length)
    tiles = -(-length // size)
    slots = torch.arange(size, device=device)
    tokens = (torch.arange(tiles, device=device)[:, None] * size + slots + shift) % (tiles * size)
    allowed = None
    if shift or length % size:
        number = torch.div(tokens - shift, size, rounding_mode="floor")
        allowed = (number[:, :, None] == number[:, None, :]) & (tokens < length)[:, None, :]
        allowed = allowed | (tokens >= length)[:, :, None]
    turned = (torch.arange(length, device=device) - shift) % (tiles * size)
    kept = tokens.clamp_max(length - 1)
    steps = slots - slots[:, None]
    return Tiles(length, kept, kept, allowed, turned // size, turned % size, (steps,), tiles == 1 and shift == 0)


def neighbourhoods(
    length: int,
    kernel: int,
    dilation: int = 1,
    causal: bool = False,
    size: int | None = None,
    device: torch.device | None = None,
) -> Tiles:
    """Each token reads the `kernel` nearest of its own residue modulo `dilation`, fewer where there are no more. At the
    borders the neighbourhood moves inwards and keeps its size; a causal one holds the token and those before it.

    `size` queries stand in a tile, as many as the kernel holds without it; all that they read is size + kernel - 1.
    What border tokens read lies within that from half a kernel on, which is the least size. Where tiles would save
    next to nothing there is one of all."""
    if length <= kernel and dilation == 1 and not causal:
        return lines(length, device)
    groups = min(dilation, length)
    longest = -(-length // dilation)
    size = max(kernel if size is None else size, 1 if causal else kernel // 2 + 1)
    size = longest if -(-longest // size) * size * (size + kernel - 1) > DENSE * longest**2 else min(size, longest)
    before = kernel - 1 if causal else kernel // 2
    first, wide = (-before, size + kernel - 1) if size < longest else (0, size)
    count = -(-longest // size)
    group = torch.arange(groups, device=device)[:, None, None, None]
    members = torch.div(length - group + dilation - 1, dilation, rounding_mode="floor")
    # the last tile of a group ends with it, so that keys always stand in the same places beside queries
    start = torch.arange(count, device=device)[None, :, None, None] * size
    start = torch.minimum(start, members - size) if count > 1 else start
    slot, step = torch.arange(size, device=device)[:, None], torch.arange(wide, device=device) + first
    q, k = start + slot, start + step
    least = q - before if causal else (q - before).clamp_min(0).minimum((members - kernel).clamp_min(0))
    most = (q if causal else least + kernel - 1).minimum(members - 1)
    allowed = (k >= least.clamp_min(0)) & (k <= most) | (q < 0) | (q >= members)
    queries = q.maximum(torch.zeros_like(q)).minimum(members - 1) * dilation + group
    keys = k.maximum(torch.zeros_like(k)).minimum(members - 1) * dilation + group
    place = torch.arange(length, device=device)
    own, p = place % dilation, torch.div(place, dilation, rounding_mode="floor")
    tile = own * count + torch.div(p, size, rounding_mode="floor")
    return Tiles(
        length,
        queries.flatten(0, 1).squeeze(-1),
        keys.flatten(0, 1).squeeze(1),
        None
        if count == 1 and longest <= (1 if causal else kernel) and groups * longest == length
        else allowed.flatten(0, 1),
        tile,
        p - start.flatten(1).expand(groups, count).flatten()[tile],
        (step - slot,),
        count == 1 and groups == 1,
    )


def over_grid(axes: Sequence[Tiles]) -> Tiles:
    """The tiles of a grid from those of its axes, the last axis running fastest."""
    return functools.reduce(_product, axes)


def _product(a: Tiles, b: Tiles) -> Tiles:
    def joined(x: Tensor, y: Tensor, by: int) -> Tensor:
        return (x[:, None, :, None] * by + y[None, :, None, :]).flatten(2).flatten(0, 1)

    allowed = None
    if a.allowed is not None or b.allowed is not None:
        x, y = (_allowed(part) for part in (a, b))
        both = x[:, None, :, None, :, None] & y[None, :, None, :, None, :]
        allowed = both.flatten(4).flatten(2, 3).flatten(0, 1)
    steps = [step[:, None, :, None].expand(-1, b.queries.shape[1], -1, b.keys.shape[1]) for step in a.steps]
    steps += [step[None, :, None, :].expand(a.queries.shape[1], -1, a.keys.shape[1], -1) for step in b.steps]
    queries = joined(a.queries, b.queries, b.length)
    same = a.keys is a.queries and b.keys is b.queries
    return Tiles(
        a.length * b.length,
        queries,
        queries if same else joined(a.keys, b.keys, b.length),
        allowed,
        (a.tile[:, None] * len(b.queries) + b.tile).flatten(),
        (a.slot[:, None] * b.queries.shape[1] + b.slot).flatten(),
        tuple(step.flatten(2).flatten(0, 1) for step in steps),
        a.whole and b.whole,
    )


def _allowed(tiles: Tiles) -> Tensor:
    if tiles.allowed is not None:
        return tiles.allowed
    shape = *tiles.queries.shape, tiles.keys.shape[1]
    return torch.ones(shape, dtype=torch.bool, device=tiles.queries.device)


def relative_bias(table: Tensor, tiles: Tiles, centre: Sequence[int]) -> Tensor:
    """table (H, *extents), the bias of each relative place (key minus query, plus `centre`, along each axis) ->
    (H, t, e). Places off the table are those that no query may attend to."""
    index = torch.zeros_like(tiles.steps[0])
    for step, middle, extent in zip(tiles.steps, centre, table.shape[1:], strict=True):
        index = index * extent + (step + middle).clamp(0, extent - 1)
    return table.flatten(1)[:, index]


def in_slots(x: Tensor, tiles: Tiles) -> Tensor:
    """Tokens x (B, N, ...) in the slots of tiles, one tile after another: (B, T t, ...)."""
    return _Moved.apply(x, tiles.queries.flatten(), tiles.place)


def tiled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiles: Tiles,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    moved: bool = False,
) -> Tensor:
    """Softmax attention of q, k (B, N, H, K), v (B, N, H, V) within tiles, bias (H, t, e) -> (B, N, H, V).

    Memory is linear in N. A bias that learns makes the gradient keep the weights, N e H of them. `moved` says that q, k
    and v are those of `in_slots` already: where the tiles only reorder tokens (`reorders`), what they are made of is
    moved sooner than they are.

    Raises ValueError where the tiles were made for another number of tokens."""
    if q.shape[1] != (tiles.queries.numel() if moved else tiles.length):
        raise ValueError(f"tiled_attention: tiles of {tiles.length} tokens were given {q.shape[1]} tokens")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if tiles.whole:
        o = _attend(*(x.transpose(1, 2)[:, None] for x in (q, k, v)), tiles.allowed, bias, scale)
        return o[:, 0].transpose(1, 2)
    place, once = tiles.place, tiles.keys is tiles.queries
    if not moved:
        slots = tiles.queries.flatten()
        q = _Moved.apply(q, slots, place)
        k, v = (_Moved.apply(x, slots, place) if once else x.index_select(1, tiles.keys.flatten()) for x in (k, v))
    q = q.unflatten(1, tiles.queries.shape).transpose(2, 3)
    k, v = (x.unflatten(1, tiles.keys.shape).transpose(2, 3) for x in (k, v))  # (B, T, H, t | e, width)
    o = _attend(q, k, v, tiles.allowed, bias, scale).transpose(2, 3).flatten(1, 2)
    return o.index_select(1, place)


class _Moved(torch.autograd.Function):
    """Tokens in the slots of tiles. Only the slot at `place` has a gradient, for outputs are taken there alone, and no
    weight falls on a slot that stands twice: backward takes, instead of adding up."""

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return x.index_select(1, index)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(1, *ctx.saved_tensors), None, None


def _attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, bias: Tensor | None, scale: float) -> Tensor:
    """(B, T, H, t | e, width) -> (B, T, H, t, V)."""
    if bias is not None:
        return _biased(q, k, v, allowed, bias, scale)
    b, count = q.shape[:2]
    mask = None if allowed is None else allowed.expand(b, *allowed.shape).flatten(0, 1)[:, None]
    o = F.scaled_dot_product_attention(*(x.flatten(0, 1) for x in (q, k, v)), attn_mask=mask, scale=scale)
    return o.unflatten(0, (b, count))


def _biased(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, bias: Tensor, scale: float) -> Tensor:
    b, count, heads, queries, _ = q.shape
    step, out = max(1, SCORES // (b * heads * queries * k.shape[3])), []
    for start in range(0, count, step):
        here = slice(start, start + step)
        # Masked before the rows of a batch share it: they are many.
        seen = bias if allowed is None else bias.masked_fill(~allowed[here, None], -math.inf)
        left, right = q[:, here], k[:, here].transpose(3, 4)
        products = left.new_empty(1).expand(1, queries, k.shape[3])  # with beta=0 nothing but a shape
        scores = torch.baddbmm(products, left.flatten(0, 2), right.flatten(0, 2), beta=0, alpha=scale)
        scores = (scores.float() if scores.dtype in HALF else scores).unflatten(0, left.shape[:3]) + seen
        out.append(scores.softmax(-1).to(v.dtype) @ v[:, here])
    return out[0] if len(out) == 1 else torch.cat(out, 1)


def macs(tiles: Tiles, *, heads: int, key_dim: int, value_dim: int | None = None, batch: int = 1) -> int:
    """Multiply-adds of one forward of tiled_attention: all scores of all tiles."""
    return batch * heads * tiles.pairs * (key_dim + (value_dim or key_dim))
