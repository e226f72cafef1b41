"""Rows of attention: normalisers, windows, packed lengths, query heads and layers, beside what does the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate

import attention_peers
import torch
import torch.nn.functional as F
from comparing import BOTH, DIM, FORWARD, HEADS, SMALL, WIDTH, Calls, Row, difference, disagreement, working
from torch import Tensor, nn

from formwright import parts
from formwright.contract import Layout
from formwright.ops.attention import attention
from formwright.ops.masks import Causal, Window
from formwright.ops.normalisers import NORMALISERS

LOOKBACK = 256
SKEWED = (1024, 512, 256, 128, 64, 32, 16, 16)  # lengths of one batch: 2,048 tokens in rows of 1,024
LONG = 32768
SDPA = "SDPA causal"


def _heads(tokens: int, heads: int = HEADS, batch: int = 1) -> list[Tensor]:
    draw = torch.Generator().manual_seed(tokens)
    return [torch.randn(batch, tokens, heads, WIDTH, generator=draw).requires_grad_() for _ in range(3)]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None).transpose(1, 2)


def _normalised(name: str, q: Tensor, k: Tensor, v: Tensor, backend: str = "auto") -> Tensor:
    return attention(q, k, v, mask=Causal(), normaliser=name, backend=backend)


def _names() -> list[str]:
    """Normalisers that need no further package."""
    return [name for name in NORMALISERS if _computes(name)]


def _computes(name: str) -> bool:
    one = torch.zeros(1, 1, 1, 1)
    try:
        attention(one, one, one, normaliser=name)
    except ImportError:
        return False
    return True


def build_normalisers(tokens: int, work: str) -> Calls:
    leaves = _heads(tokens)
    calls = {name: working(partial(_normalised, name, *leaves), leaves, work) for name in _names()}
    return calls | {SDPA: working(partial(_sdpa, *leaves), leaves, work)}


def gate_normalisers() -> dict[str, float]:
    leaves = _heads(SMALL, 2)
    found = {
        name: disagreement(partial(_normalised, name), partial(_normalised, name, backend="reference"), leaves)
        for name in _names()
    }
    return found | {SDPA: disagreement(_sdpa, partial(_normalised, "softmax", backend="reference"), leaves)}


def build_memory(lengths: tuple[int, ...], work: str) -> Calls:
    """One head, each normaliser at every length: the longest's inputs serve them all."""
    whole = _heads(max(lengths), 1)
    calls: Calls = {}
    for name in _names():
        for tokens in lengths:
            leaves = [t.detach()[:, :tokens].contiguous().requires_grad_() for t in whole]
            calls[f"{name} @{tokens}"] = working(partial(_normalised, name, *leaves), leaves, work)
    return calls


def _windowed(q: Tensor, k: Tensor, v: Tensor, backend: str = "auto") -> Tensor:
    return attention(q, k, v, mask=Causal() & Window(LOOKBACK), backend=backend)


def build_window(tokens: int, work: str) -> Calls:
    leaves = _heads(tokens)
    mask = (Causal() & Window(LOOKBACK)).materialize(tokens)
    calls = {f"window {LOOKBACK}": working(partial(_windowed, *leaves), leaves, work)}
    calls["masked SDPA"] = working(partial(_sdpa, *leaves, mask), leaves, work)
    return calls | {SDPA: working(partial(_sdpa, *leaves), leaves, work)}


def gate_window() -> dict[str, float]:
    leaves, tokens = _heads(3 * LOOKBACK, 2), 3 * LOOKBACK
    mask = (Causal() & Window(LOOKBACK)).materialize(tokens)
    definition = partial(_windowed, backend="reference")
    return {
        f"window {LOOKBACK}": disagreement(_windowed, definition, leaves),
        "masked SDPA": disagreement(lambda q, k, v: _sdpa(q, k, v, mask), definition, leaves),
    }


def _packed() -> Layout:
    return Layout((sum(SKEWED),), offsets=torch.tensor([0, *accumulate(SKEWED)]))


def build_packed(tokens: int, work: str) -> Calls:
    """The layer over skewed lengths, packed; padded; and over as many rows that are all full."""
    layer = _layer("attention", heads=HEADS)
    rows, most = len(SKEWED), max(SKEWED)
    full = torch.randn(rows, most, DIM, generator=torch.Generator().manual_seed(0)).requires_grad_()
    packed = full.detach().flatten(0, 1)[None, : sum(SKEWED)].contiguous().requires_grad_()
    weights = list(layer.parameters())
    return {
        "packed": working(lambda: layer(packed, _packed()), [packed, *weights], work),
        "padded": working(lambda: layer(full, Layout((most,), lengths=torch.tensor(SKEWED))), [full, *weights], work),
        "all rows full": working(lambda: layer(full, Layout((most,))), [full, *weights], work),
    }


def gate_packed() -> dict[str, float]:
    layer = _layer("attention", heads=HEADS)
    x = torch.randn(1, sum(SKEWED), DIM, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = torch.cat([layer(part, Layout((part.shape[1],))) for part in x.split(SKEWED, 1)], 1)
        return {"packed": difference(layer(x, _packed()), alone)}


def build_query_heads(lengths: tuple[int, ...], work: str) -> Calls:
    calls: Calls = {}
    for tokens in lengths:
        x = torch.randn(1, tokens, DIM, generator=torch.Generator().manual_seed(tokens)).requires_grad_()
        for name, heads in (("multi-head", 2 * HEADS), ("a quarter of the query heads", HEADS // 2)):
            layer = _layer("attention", heads=2 * HEADS, q_heads=heads, kv_heads=min(heads, HEADS // 2))
            if name == "multi-head":
                layer = _layer("attention", heads=2 * HEADS)
            run = lambda layer=layer, x=x, n=tokens: layer(x, Layout((n,)))  # noqa: E731
            calls[f"{name} @{tokens}"] = working(run, [x, *layer.parameters()], work)
    return calls


def _layer(name: str, dim: int = DIM, **options) -> nn.Module:
    torch.manual_seed(0)
    causal = options.pop("causal", True)
    return parts.get(name, "mixer")(dim, causal=causal, **options).eval()


def build_relative(lengths: tuple[int, ...], work: str) -> Calls:
    """Kernelised attention with relative positions by FFT, small enough for its longest."""
    calls: Calls = {}
    for tokens in lengths:
        layer = _layer("nprf_attention", 128, heads=2, length=tokens)
        x = torch.randn(1, tokens, 128, generator=torch.Generator().manual_seed(tokens)).requires_grad_()
        run = lambda layer=layer, x=x, n=tokens: layer(x, Layout((n,)))  # noqa: E731
        calls[f"nprf_attention @{tokens}"] = working(run, [x, *layer.parameters()], work)
    return calls


def _layer_row(peer: str, package: str, make: Callable[[], attention_peers.Pair]) -> Row:
    def build(tokens: int, work: str) -> Calls:
        ours, theirs, weights = make()
        x = torch.randn(2, tokens, DIM, generator=torch.Generator().manual_seed(tokens)).requires_grad_()
        return {
            "attention": working(lambda: ours(x), [x, *weights[0]], work),
            peer: working(lambda: theirs(x), [x, *weights[1]], work),
        }

    def gate() -> dict[str, float]:
        ours, theirs, _ = make()
        x = torch.randn(2, SMALL, DIM, generator=torch.Generator().manual_seed(0)).requires_grad_()
        a, b = ours(x), theirs(x)
        cotangent = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
        slopes = [torch.autograd.grad(y, x, cotangent)[0] for y in (a, b)]
        return {"attention": max(difference(a, b), difference(*slopes))}

    # Without the peer's package there is nothing to stand beside.
    return Row(f"layer:{peer}", (FORWARD, BOTH), build, gate, needs={"attention": package, peer: package}, whole=True)


def rows() -> list[Row]:
    """Ops first, then layers, then what measures memory."""
    return [
        Row("normalisers", (FORWARD, BOTH), build_normalisers, gate_normalisers, batch=1),
        Row("window", (FORWARD, BOTH), build_window, gate_window, batch=1),
        Row("packed", (FORWARD, BOTH), build_packed, gate_packed, batch=len(SKEWED), lengths=(sum(SKEWED),)),
        Row("query heads", (FORWARD,), build_query_heads, dict, batch=1, joint=(8192, LONG)),
        Row("relative", (FORWARD,), build_relative, dict, batch=1, joint=(1024, 4096, 16384)),
        *(_layer_row(peer, package, make) for peer, (package, make) in attention_peers.PEERS.items()),
        Row("memory", (BOTH,), build_memory, gate_normalisers, batch=1, joint=(8192, LONG), memory=True),
    ]
