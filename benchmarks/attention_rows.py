"""Rows of attention: normalisers, windows, packed lengths, query heads and layers, beside what does the same."""

from __future__ import annotations

from functools import partial
from itertools import accumulate

import attention_peers
import torch
import torch.nn.functional as F
from comparing import BATCH, BOTH, DIM, FORWARD, HEADS, SMALL, WIDTH, Calls, Row, difference, disagreement, working
from torch import Tensor, nn

from formwright import parts
from formwright.contract import Layout
from formwright.ops.attention import attention
from formwright.ops.masks import Causal, Window
from formwright.ops.normalisers import NORMALISERS
from formwright.ops.shared_prefix import shared_prefix_attention

LOOKBACK = 256
SKEWED = (1024, 512, 256, 128, 64, 32, 16, 16)  # lengths of one batch: 2,048 tokens in rows of 1,024
BRANCHES = 16
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
        layer = _layer("nprf_attention", 128, heads=2, reach=tokens)
        x = torch.randn(1, tokens, 128, generator=torch.Generator().manual_seed(tokens)).requires_grad_()
        run = lambda layer=layer, x=x, n=tokens: layer(x, Layout((n,)))  # noqa: E731
        calls[f"nprf_attention @{tokens}"] = working(run, [x, *layer.parameters()], work)
    return calls


def _prefixed(shared: bool, q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor) -> Tensor:
    if shared:
        return shared_prefix_attention(q, k, v, prefix_k, prefix_v)
    k, v = (torch.cat([p.expand(len(q), -1, -1, -1), t], 1) for p, t in ((prefix_k, k), (prefix_v, v)))
    return attention(q, k, v, mask=Causal())


def _continuations(prefix: int, tokens: int, heads: int) -> list[Tensor]:
    before = _heads(prefix, heads)
    return [*_heads(tokens, heads, BRANCHES), *before[1:]]


def build_prefix(tokens: int, work: str) -> Calls:
    """BRANCHES continuations of 64 tokens after a prefix: its keys once for all, or once for each."""
    leaves = _continuations(tokens, 64, HEADS)
    return {
        name: working(partial(_prefixed, shared, *leaves), leaves, work)
        for name, shared in (("a shared prefix", True), ("a prefix for each", False))
    }


def gate_prefix() -> dict[str, float]:
    leaves = _continuations(SMALL, 7, 2)
    plain = partial(_prefixed, False)
    return {"a shared prefix": disagreement(partial(_prefixed, True), plain, leaves)}


def _layer_row(name: str, peer: attention_peers.Peer) -> Row:
    def build(tokens: int, work: str) -> Calls:
        ours, theirs, weights = peer.make()
        x = torch.randn(BATCH, tokens, peer.dim, generator=torch.Generator().manual_seed(tokens)).requires_grad_()
        return {
            peer.ours: working(lambda: ours(x), [x, *weights[0]], work),
            name: working(lambda: theirs(x), [x, *weights[1]], work),
        }

    def gate() -> dict[str, float]:
        ours, theirs, _ = peer.make()
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(BATCH, peer.tokens or SMALL, peer.dim, generator=draw).requires_grad_()
        a, b = ours(x), theirs(x)
        cotangent = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
        slopes = [torch.autograd.grad(y, x, cotangent)[0] for y in (a, b)]
        return {peer.ours: max(difference(a, b), difference(*slopes))}

    return Row(
        f"layer:{name}", (FORWARD, BOTH), build, gate, lengths=() if peer.tokens is None else (peer.tokens,),
        # Without the peer's package there is nothing to stand beside.
        needs={peer.ours: peer.package, name: peer.package}, whole=True,
    )  # fmt: skip


def rows() -> list[Row]:
    """In this order for what the C library does with freed memory: its own way, kept, measured."""
    return [
        *(_layer_row(name, peer) for name, peer in attention_peers.PEERS.items()),
        Row("normalisers", (FORWARD, BOTH), build_normalisers, gate_normalisers, batch=1),
        Row("window", (FORWARD, BOTH), build_window, gate_window, batch=1),
        Row("packed", (FORWARD, BOTH), build_packed, gate_packed, batch=len(SKEWED), lengths=(sum(SKEWED),)),
        Row("query heads", (FORWARD,), build_query_heads, dict, batch=1, joint=(8192, LONG)),
        Row("prefix", (FORWARD, BOTH), build_prefix, gate_prefix, batch=BRANCHES),
        Row("relative", (FORWARD,), build_relative, dict, batch=1, joint=(1024, 4096, 16384), keep=True),
        Row("memory", (BOTH,), build_memory, gate_normalisers, batch=1, joint=(8192, LONG), memory=True),
    ]
