"""The core of Griffin's recurrent block: gates, the real-gated linear recurrent unit and the gated output in one op.

    i_t = sigmoid(W_i x_t + b_i),    r_t = sigmoid(W_r x_t + b_r)       W_i, W_r block-diagonal, a block a head
    log a_t = rate r_t,    s_t = sqrt(1 - a_t^2)                         s_t = 1 where a fresh sequence begins
    h_t = a_t h_{t-1} + s_t i_t x_t,    y_t = gelu(z_t) h_t

Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models, arXiv 2402.19427, 2024.

Twenty element-wise operations a token cost a CPU more than the matrix products around them when each reads and writes
all tokens. Here they run over tiles of some tokens that stay in its caches, in buffers used again for every tile; only
h and y are written to memory. Backward, written by hand, computes the gates of a tile again. With g_t the gradient of
h_t, dh_t what comes from y_t, and q_t = i_t x_t:

    g_t = dh_t + a_{t+1} g_{t+1},    dq_t = g_t s_t,    d log a_t = a_t (g_t h_{t-1} - g_t q_t a_t / s_t)
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from formwright.ops.scan import fill, linear_scan
from formwright.ops.tiles import Tile, Workspace, tile_plan

BACKENDS = ("auto", "reference", "torch")
# Elements of one operand of a tile: some ten of them fit the last-level cache.
CACHED_ELEMENTS = 256 * 1024
# The least s^2: it keeps the root's derivative finite where the gate r is shut and a is 1.
LEAST = 1e-30


def gated_scan(
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    rate: Tensor,
    *,
    state: Tensor | None = None,
    fresh: bool = False,
    offsets: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The equations above: x, z (B,N,D); weight (H,D/H,2D/H) and bias (H,1,2D/H) of i and r in turn; rate (D,) <= 0
    -> y (B,N,D) and the last h (B,D), in the state's dtype.

    state    (B,D) is h before the first token; zeros where None
    fresh    the first token of each sequence has nothing before it: s_1 = 1
    offsets  (R+1,) bounds of R sequences packed in one row (B = 1): h starts anew at each, states are (R,D)
    backend  "reference" computes the definition by plain autograd; "torch" or "auto" tiles on a CPU

    Everything is differentiable, states included. Raises ValueError for shapes or backends that do not fit.
    """
    _check(x, z, weight, bias, rate, state, offsets, backend)
    if state is None:
        state = rate.new_zeros(len(x) if offsets is None else len(offsets) - 1, x.shape[2])
    dtype = state.dtype
    if _tiled(x, weight, backend):
        bounds = [(0, x.shape[1])] if offsets is None else list(itertools.pairwise(offsets.tolist()))
        chunk = min(x.shape[1], max(16, CACHED_ELEMENTS // x.shape[2]))
        # Whole sequences or one row: a tile of both has no gaps in memory.
        group = 1 if chunk < x.shape[1] or offsets is not None else max(1, CACHED_ELEMENTS // (chunk * x.shape[2]))
        tiles = tile_plan(len(x), bounds, chunk, group, packed=offsets is not None)
        with torch.autocast("cpu", enabled=False):
            y, last = _GatedScan.apply(x, z, weight, bias, rate, state.to(x.dtype), fresh, tiles)
    elif x.shape[1] == 1 and offsets is None and backend != "reference":
        y, last = _one_token(x, z, weight, bias, rate, state, fresh)
    else:
        y, last = _plain(x, z, weight, bias, rate, state, fresh, offsets, backend)
    return y, last.to(dtype)


def _tiled(x: Tensor, weight: Tensor, backend: str) -> bool:
    exact = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
    usual = backend != "reference" and x.device.type == "cpu" and not torch.compiler.is_compiling()
    return exact and usual and x.shape[1] > 1


def explain(tokens: int, *, dtype: torch.dtype = torch.float32, device: str = "cpu", backend: str = "auto") -> str:
    """What gated_scan computes for N = tokens and why."""
    if backend == "reference":
        return "definition: backend='reference' asks for one operation after another and the recurrent scan"
    if tokens == 1:
        return "one step in PyTorch: a single token needs no scan"
    if device != "cpu" or dtype not in (torch.float32, torch.float64) or torch.compiler.is_compiling():
        return "definition in PyTorch with a fast scan: tiles are for CPUs, float32 and float64, and no graph"
    return "tiles in PyTorch: all operations of some tokens at a time stay in cache"


def macs(batch: int, tokens: int, heads: int, width: int) -> int:
    """Multiply-adds of one forward's matrix products, as FlopCounterMode counts them: the gates."""
    return 2 * batch * tokens * heads * width * width


def _plain(x, z, weight, bias, rate, state, fresh, offsets, backend):
    """The definition by autograd, its scan by ops.linear_scan."""
    wide = torch.promote_types(x.dtype, torch.float32)
    heads = x.unflatten(-1, (len(weight), -1)).permute(2, 0, 1, 3).flatten(1, 2)
    gates = torch.sigmoid((torch.bmm(heads, weight) + bias).to(wide))
    i, r = (t.unflatten(1, x.shape[:2]).permute(1, 2, 0, 3).flatten(2) for t in gates.chunk(2, -1))
    log_a = rate.to(wide) * r
    size = torch.sqrt(-torch.expm1(2 * log_a).clamp(max=-LEAST))
    a, b, state = log_a.exp(), i * x, state.to(wide)
    if offsets is not None:
        ids = torch.bucketize(torch.arange(x.shape[1], device=x.device), offsets.to(x.device)[1:], right=True)
        first = F.pad(ids.diff() != 0, (1, 0), value=True)[:, None]
        # Each first token meets its own sequence's state in b, and nothing of the token before it.
        b = torch.where(first & fresh, b, size * b) + torch.where(first, a * state[ids], 0)
        h, _ = linear_scan(torch.where(first, 0, a), b, backend=backend)
        ends = h[0, offsets.to(x.device)[1:] - 1]
        last = torch.where((offsets.diff() > 0).to(x.device)[:, None], ends, state)
    else:
        if fresh:
            size = torch.cat([torch.ones_like(size[:, :1]), size[:, 1:]], 1)
        h, last = linear_scan(a, size * b, state=state, backend=backend)
    return F.gelu(z, approximate="tanh") * h.to(x.dtype), last


def _one_token(x, z, weight, bias, rate, state, fresh):
    """The definition for one token in few operations: the length of a decoding step is their number."""
    wide = torch.promote_types(x.dtype, torch.float32)
    heads, width = weight.shape[:2]
    x = x.reshape(-1, heads, width)
    gates = torch.sigmoid(torch.baddbmm(bias.to(x.dtype), x.transpose(0, 1), weight.to(x.dtype)).to(wide))
    i, r = gates.transpose(0, 1).chunk(2, -1)
    less = torch.expm1(r * rate.to(wide).view(heads, width))
    h = i * x
    if not fresh:
        h = h * torch.addcmul(-2 * less, less, less, value=-1).clamp(min=LEAST).sqrt()
    h = torch.addcmul(h, less + 1, state.to(wide).reshape(-1, heads, width)).flatten(1)
    return F.gelu(z, approximate="tanh") * h.to(x.dtype).unsqueeze(1), h


class _GatedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, z, weight, bias, rate, state, fresh, tiles):
        x, z = x.contiguous(), z.contiguous()
        y, h, final, work = torch.empty_like(x), torch.empty_like(x), state.clone(), Workspace(x)
        for tile in tiles:
            at = slice(tile.row, tile.row_end), slice(tile.start, tile.stop)
            if tile.first:
                carry = state[tile.state : tile.state_end]
            i, _, a, s, _ = _gates(x[at], weight, bias, rate, tile, fresh, work)
            fill(h[at], a, torch.mul(i, x[at], out=i).mul_(s), carry)
            carry = h[at][:, -1]
            torch.mul(_gelu(z[at], work)[0], h[at], out=y[at])
            if tile.last:
                final[tile.state : tile.state_end] = carry
        ctx.save_for_backward(x, z, weight, bias, rate, state, h)
        ctx.fresh, ctx.tiles = fresh, tiles
        return y, final

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_y, d_final):
        return *_backward(*ctx.saved_tensors, ctx.fresh, ctx.tiles, d_y.contiguous(), d_final), None, None


def _backward(x, z, weight, bias, rate, state, h, fresh, tiles, d_y, d_final):
    """Gradients of (x, z, weight, bias, rate, state), all tiles from the last to the first."""
    d_x, d_z = torch.empty_like(x), torch.empty_like(z)
    d_weight, d_bias, d_rate = torch.zeros_like(weight), torch.zeros_like(bias), torch.zeros_like(rate)
    d_state, work = d_final.clone(), Workspace(x)
    heads, width = weight.shape[:2]
    for tile in reversed(tiles):
        at = slice(tile.row, tile.row_end), slice(tile.start, tile.stop)
        if tile.last:
            flow = d_final[tile.state : tile.state_end]
        i, r, a, s, slope = _gates(x[at], weight, bias, rate, tile, fresh, work)
        shape = i.shape
        gelu, d_gelu = _gelu(z[at], work, slope=True)
        g = torch.mul(d_y[at], gelu, out=work("g", *shape))
        torch.mul(d_gelu.mul_(h[at]), d_y[at], out=d_z[at])
        g[:, -1] += flow
        fill(g[:, :-1], a[:, 1:], g[:, :-1], g[:, -1], backwards=True)
        flow = a[:, 0] * g[:, 0]
        if tile.first:
            d_state[tile.state : tile.state_end] = flow
        before = state[tile.state : tile.state_end] if tile.first else h[at[0], tile.start - 1]
        d_log = work("d_log", *shape)
        torch.mul(g[:, 1:], h[at][:, :-1], out=d_log[:, 1:])
        torch.mul(g[:, 0], before, out=d_log[:, 0])
        q = torch.mul(i, x[at], out=work("q", *shape))
        d_size = torch.mul(g, q, out=gelu)
        d_q = g.mul_(s)
        d_log.addcmul_(d_size, slope, value=-1).mul_(a)
        # Before the sigmoids: d_i i (1 - i) with d_i = d_q x, and d_r r (1 - r) with d_r = d_log rate.
        d_i, d_r = q.mul_(d_q), d_log.mul_(r)
        d_rate += d_r.sum((0, 1))
        d_r.mul_(rate)
        d_gates = work("gates", heads, shape[0] * shape[1], 2 * width)
        by_head = [t.view(-1, heads, width).transpose(0, 1) for t in (d_i, i, d_r, r, d_q, x[at])]
        torch.addcmul(by_head[0], by_head[0], by_head[1], value=-1, out=d_gates[..., :width])
        torch.addcmul(by_head[2], by_head[2], by_head[3], value=-1, out=d_gates[..., width:])
        d_weight.baddbmm_(by_head[5].mT, d_gates)
        d_bias += d_gates.sum(1, keepdim=True)
        through = torch.bmm(d_gates, weight.mT, out=work("through", heads, shape[0] * shape[1], width))
        out = d_x[at].view(-1, heads, width).transpose(0, 1)
        torch.addcmul(through, by_head[4], by_head[1], out=out)
    return d_x, d_z, d_weight, d_bias, d_rate, d_state


def _gates(x: Tensor, weight: Tensor, bias: Tensor, rate: Tensor, tile: Tile, fresh: bool, work: Workspace):
    """i, r, a, s and a / s of one tile of x, (G,T,D) each."""
    heads, width = weight.shape[:2]
    rows = x.view(-1, heads, width).transpose(0, 1)
    gates = torch.baddbmm(bias, rows, weight, out=work("gates", heads, rows.shape[1], 2 * width))
    i, r = (work(name, *x.shape) for name in ("i", "r"))
    for out, gate in zip((i, r), gates.transpose(0, 1).chunk(2, -1), strict=True):
        torch.sigmoid(gate, out=out.view(-1, heads, width))
    # a - 1 without the cancellation, and 1 - a^2 = s^2 as a product of it: one exponential serves both.
    less = torch.mul(r, rate, out=work("less", *x.shape)).expm1_()
    a = torch.add(less, 1, out=work("a", *x.shape))
    square = torch.add(a, 1, out=work("s", *x.shape)).mul_(less).neg_().clamp_(min=LEAST)
    # Roots by their reciprocals, which cost half on CPUs.
    reciprocal = torch.rsqrt(square, out=less)
    s, slope = square.mul_(reciprocal), reciprocal.mul_(a)
    if tile.first and fresh:
        s[:, 0], slope[:, 0] = 1, 0
    return i, r, a, s, slope


def _gelu(z: Tensor, work: Workspace, slope: bool = False) -> tuple[Tensor, Tensor | None]:
    """gelu(z) = z sigmoid(u), u = z (c + d z^2), the form by tanh at less than its price; and where asked its
    derivative, sigmoid(u) + gelu(z) (1 - sigmoid(u)) (c + 3 d z^2)."""
    c = math.sqrt(8 / math.pi)
    d = 0.044715 * c
    square = torch.mul(z, z, out=work("z^2", *z.shape))
    gelu, gate = work("gelu", *z.shape), work("gate", *z.shape)
    torch.sigmoid(torch.mul(square, d, out=gelu).add_(c).mul_(z), out=gate)
    torch.mul(z, gate, out=gelu)
    if not slope:
        return gelu, None
    rest = square.mul_(3 * d).add_(c).mul_(gelu)
    return gelu, torch.addcmul(rest, rest, gate, value=-1, out=rest).add_(gate)


def _check(x, z, weight, bias, rate, state, offsets, backend) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"gated_scan: backend is one of {', '.join(BACKENDS)}, not {backend!r}")
    if x.ndim != 3 or z.shape != x.shape or x.shape[1] < 1:
        raise ValueError(f"gated_scan takes x and z (B,N,D) with N >= 1, but got {tuple(x.shape)} and {tuple(z.shape)}")
    heads, dim = weight.shape[0], x.shape[2]
    width = dim // heads
    if weight.shape != (heads, width, 2 * width) or heads * width != dim:
        raise ValueError(f"gated_scan: weight must be (H,D/H,2D/H) with D={dim}, but is {tuple(weight.shape)}")
    if bias.shape != (heads, 1, 2 * width) or rate.shape != (dim,):
        want = f"{(heads, 1, 2 * width)} and {(dim,)}"
        raise ValueError(f"gated_scan: bias and rate must be {want}, but are {tuple(bias.shape)}, {tuple(rate.shape)}")
    if offsets is not None and len(x) != 1:
        raise ValueError(f"gated_scan: packed sequences lie in one row, but x has {len(x)} rows")
    rows = len(x) if offsets is None else len(offsets) - 1
    if state is not None and state.shape != (rows, dim):
        raise ValueError(f"gated_scan: state must be {(rows, dim)}, but is {tuple(state.shape)}")
