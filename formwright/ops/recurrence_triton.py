"""The chunked form of ops.linear_recurrence on CUDA: launches recurrence_triton_kernels.py and
recurrence_triton_backward.py.

Same equations and chunks as recurrence_chunked.py. Sums are float32; float32 inputs are multiplied as three TF32
products (close to float32), half precisions as one (their values are exact in TF32, scores and states are rounded to 11
bits). Kept for backward: inputs, one state a chunk, and with the delta rule u, w and the inverse of each chunk, so
memory is linear in N. With TRITON_INTERPRET=1 Triton runs the kernels on the CPU, slowly: that is for tests.
"""

from __future__ import annotations

import importlib.util
import itertools
import os

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK, LARGEST = 64, 256
NONE, SCALAR, DIAGONAL = 0, 1, 2
# KiB of shared memory that the largest kernel takes, K and V up to 128 and up to LARGEST, as compiled for sm_89.
SHARED, SHARED_WIDE = 99, 160
INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def missing(device: torch.device) -> str | None:
    """Why no kernel runs on a device, as the end of a sentence; None where they do."""
    if not INSTALLED:
        return "the package triton is not installed (pip install triton)"
    if device.type != "cuda" and not (device.type == "cpu" and INTERPRETED):
        return f"the tensors are on {device.type!r}, and the kernels need CUDA"
    return None


def refusal(device: torch.device, dtype: torch.dtype, key: int, value: int, form: str = "auto") -> str | None:
    """Why the kernels can't compute this, as the end of a sentence; None where they can."""
    if reason := missing(device):
        return reason
    if device.type == "cuda" and torch.cuda.is_available():
        room = torch.cuda.get_device_properties(device).shared_memory_per_block_optin >> 10
        need = SHARED if max(key, value) <= 128 else SHARED_WIDE
        if room < need:
            return f"the kernels need {need} KiB of shared memory for K={key}, V={value}, and this GPU has {room}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the kernels compute float32, bfloat16 and float16, not {dtype}"
    if max(key, value) > LARGEST:
        return f"the kernels hold K and V up to {LARGEST}, not K={key}, V={value}"
    if form not in ("auto", "chunked"):
        return f"the kernels are the chunked form, not form={form!r}"
    return None


def triton_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor | None,
    state: Tensor,
    scale: float,
    bounds: list[tuple[int, int]] | None,
) -> tuple[Tensor, Tensor]:
    """(o, last state) as linear_recurrence; bounds are those of packed sequences (B = 1), None for plain rows."""
    table = _table(q.shape[0], q.shape[1], bounds, q.device)
    with torch.cuda.device_of(q):
        return _TritonRecurrence.apply(q, k, v, log_decay, beta, state, scale, table)


def _table(
    rows: int, tokens: int, bounds: list[tuple[int, int]] | None, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """bounds (S+1,), the number of each sequence's first chunk (S+1,), and each chunk's sequence."""
    if bounds is None:
        count = _tiles(tokens, CHUNK)
        steps = torch.arange(rows + 1, device=device)
        return steps * tokens, steps * count, torch.arange(rows * count, device=device) // count
    counts = [_tiles(stop - start, CHUNK) for start, stop in bounds]
    lists = (
        [0, *(stop for _, stop in bounds)],
        [0, *itertools.accumulate(counts)],
        [sequence for sequence, count in enumerate(counts) for _ in range(count)],
    )
    return tuple(torch.tensor(numbers, device=device) for numbers in lists)


def _plan(q: Tensor, v: Tensor, log_decay: Tensor | None, delta: bool) -> tuple[dict, dict, int, str]:
    """Options of the tile kernels, those of the walks, the kind of decay, the precision of products near float32."""
    key, value = q.shape[3], v.shape[3]
    decay = NONE if log_decay is None else SCALAR if log_decay.ndim == 3 else DIAGONAL
    exact = "tf32x3"
    precision = exact if q.dtype == torch.float32 else "tf32"
    fixed = {"K": key, "V": value, "C": CHUNK, "DECAY": decay, "P": precision}
    # What a program holds must fit registers and shared memory: more warps share it, a walk loads one chunk at a time.
    tile = fixed | {
        "BK": _tile(key, 32 if delta or decay == DIAGONAL else 64),
        "BV": _tile(value, 32 if delta else 64),
        "num_warps": 8,
        "num_stages": 2,
    }
    whole = _tile(key, LARGEST)
    walk = fixed | {"KK": whole, "BV": _tile(value, min(64, 4096 // whole)), "num_warps": 8, "num_stages": 1}
    return tile, walk, decay, exact


def power_of_two(width: int, least: int, largest: int) -> int:
    """The least power of two that covers width, kept between least and largest."""
    return min(max(least, 1 << (width - 1).bit_length()), largest)


def _tile(width: int, largest: int) -> int:
    # A product takes 16 rows and columns at least.
    return power_of_two(width, 16, largest)


def _tiles(width: int, tile: int) -> int:
    return -(-width // tile)


class _TritonRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, log_decay, beta, state, scale, table):
        inputs = [None if t is None else t.contiguous() for t in (q, k, v, log_decay, beta, state)]
        o, final, kept = _forward(*inputs, scale, table)
        ctx.save_for_backward(*inputs, *table, *kept)
        ctx.scale = scale
        return o, final

    @staticmethod
    @once_differentiable
    def backward(ctx, d_o, d_final):
        inputs, table, kept = ctx.saved_tensors[:6], ctx.saved_tensors[6:9], ctx.saved_tensors[9:]
        return *_backward(*inputs, ctx.scale, table, kept, d_o.contiguous(), d_final.contiguous()), None, None


def _stored_scores(x: Tensor, k: Tensor, log_decay: Tensor | None, table: tuple, tile: dict) -> Tensor | None:
    """Scores of each chunk under a diagonal decay (chunks * H, C, C); the kernels make the others as they go."""
    if tile["DECAY"] != DIAGONAL:
        return None
    from formwright.ops import recurrence_triton_kernels as kernels

    heads = x.shape[2]
    programs, chunk = table[2].shape[0] * heads, tile["C"]
    out = torch.empty(programs, chunk, chunk, dtype=torch.float32, device=x.device)
    names = ("K", "BK", "C", "P", "num_warps", "num_stages")
    kernels.diagonal_scores[(programs,)](x, k, log_decay, out, *table, heads, **{n: tile[n] for n in names})
    return out


def _forward(q, k, v, log_decay, beta, state, scale, table):
    from formwright.ops import recurrence_triton_kernels as kernels  # here, for triton is optional

    tile, walk, _, exact = _plan(q, v, log_decay, beta is not None)
    heads, key, value = *q.shape[2:], v.shape[3]
    programs, float32 = table[2].shape[0] * heads, {"dtype": torch.float32, "device": q.device}
    o, final = torch.empty_like(v), torch.empty_like(state)
    states = torch.empty(programs, key, value, **float32)
    u, w, inverse = v, None, None
    if beta is not None:
        u, w = torch.empty_like(v, dtype=torch.float32), torch.empty_like(k, dtype=torch.float32)
        inverse = torch.empty(programs, tile["C"], tile["C"], **float32)
        stored = _stored_scores(k, k, log_decay, table, tile)
        kernels.solve[(programs,)](k, v, log_decay, beta, stored, inverse, u, w, *table, heads, EXACT=exact, **tile)
    grid = (state.shape[0] * heads, _tiles(value, walk["BV"]))
    delta = beta is not None
    kernels.walk[grid](k, u, w, log_decay, state, states, final, *table[:2], heads, DELTA=delta, **walk)
    stored = _stored_scores(q, k, log_decay, table, tile)
    grid = (programs, _tiles(value, tile["BV"]))
    kernels.read[grid](q, k, u, log_decay, stored, states, o, *table, heads, scale, **tile)
    return o, final, (states, u, w, inverse)


def _backward(q, k, v, log_decay, beta, state, scale, table, kept, d_o, d_final):
    from formwright.ops import recurrence_triton_backward as kernels

    states, u, w, inverse = kept
    tile, walk, decay, _ = _plan(q, v, log_decay, beta is not None)
    heads, key, value = *q.shape[2:], v.shape[3]
    tokens, chunk, delta = q.shape[0] * q.shape[1], tile["C"], beta is not None
    programs, float32 = table[2].shape[0] * heads, {"dtype": torch.float32, "device": q.device}
    d_q, d_k, d_state = torch.empty_like(q), torch.empty_like(k), torch.empty_like(state)
    d_v = torch.empty_like(v, dtype=torch.float32) if delta else torch.empty_like(v)
    d_u = torch.empty_like(d_v) if delta else d_v
    d_states = torch.empty_like(states)
    across = (programs, _tiles(value, tile["BV"]))
    stored = _stored_scores(q, k, log_decay, table, tile)
    writes = (q, k, log_decay, stored, d_o, d_states, d_u, *table, heads, scale)
    if delta:
        kernels.write_backward[across](*writes, DELTA=True, **tile)
    grid = (state.shape[0] * heads, _tiles(value, walk["BV"]))
    walked = (q, k, w, log_decay, d_o, d_u, d_final, d_states, d_state, *table[:2], heads, scale)
    kernels.walk_backward[grid](*walked, DELTA=delta, **walk)
    if not delta:
        kernels.write_backward[across](*writes, DELTA=False, **tile)
    d_queried = torch.empty(programs, chunk, chunk, **float32)
    d_keyed = torch.empty_like(d_queried) if delta else None
    d_beta = torch.empty_like(beta) if delta else None
    stored = _stored_scores(k, k, log_decay, table, tile) if delta else None
    products = (k, v, u, log_decay, beta, stored, inverse, states, d_o, d_u, d_v, d_beta, d_queried, d_keyed)
    kernels.scores_backward[(programs,)](*products, *table, heads, scale, DELTA=delta, **tile)
    grid = (programs, _tiles(key, tile["BK"]))
    d_decay = None
    if decay == SCALAR:
        d_decay = torch.empty(grid[1], tokens, heads, **float32)
    elif decay == DIAGONAL:
        d_decay = torch.empty_like(log_decay)
    reads = (q, k, u, log_decay, states, d_states, d_o, d_v, d_queried, d_keyed, d_q, d_k, d_decay)
    kernels.read_backward[grid](*reads, *table, heads, tokens, scale, DELTA=delta, **tile)
    if decay == SCALAR:
        d_decay = d_decay.sum(0).view_as(log_decay).to(log_decay.dtype)
    return d_q, d_k, d_v.to(v.dtype), d_decay, d_beta, d_state
