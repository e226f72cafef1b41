"""Rows of ops: the matrix-state recurrence, beside fla's naive forms too, the scans, and their growth with N."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import peers
import torch
import torch.nn.functional as F
from comparing import BATCH, BOTH, DIM, FORWARD, HEADS, LENGTHS, SMALL, WIDTH, Calls, Row, disagreement, working
from torch import Tensor

from formwright.ops import recurrence, scan, selective_scan
from formwright.ops.gated_scan import gated_scan

CHANNELS, STATES = 1024, 16
FLOOR = "matrix product 2048^3"
SIDE = 2048
# op variants: (kind of decay, delta rule)
VARIANTS = {
    "no decay": (None, False), "scalar": ("scalar", False), "diagonal": ("diagonal", False),
    "scalar+delta": ("scalar", True), "diagonal+delta": ("diagonal", True),
}  # fmt: skip


def _op_inputs(tokens: int, width: int = WIDTH, heads: int = HEADS) -> dict[str, Tensor]:
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(tokens))
    shape = (BATCH, tokens, heads, width)
    inputs = {
        "q": draw(shape), "k": F.normalize(draw(shape), dim=-1), "v": draw(shape),
        "scalar": F.logsigmoid(draw(shape[:3]) + 4), "diagonal": F.logsigmoid(draw(shape) + 4),
        "beta": draw(shape[:3]).sigmoid(),
    }  # fmt: skip
    return {name: t.requires_grad_() for name, t in inputs.items()}


def _leaves(variant: str, inputs: dict[str, Tensor]) -> list[Tensor]:
    decay, delta = VARIANTS[variant]
    return [inputs[n] for n in ("q", "k", "v", *([decay] if decay else []), *(["beta"] if delta else []))]


def _op(variant: str, *leaves: Tensor, backend: str = "auto") -> Tensor:
    decay, delta = VARIANTS[variant]
    rest = list(leaves[3:])
    options = {"log_decay": rest.pop(0) if decay else None, "beta": rest.pop(0) if delta else None}
    scale = leaves[0].shape[-1] ** -0.5
    return recurrence.linear_recurrence(*leaves[:3], **options, scale=scale, backend=backend)[0]


def floor() -> Callable[[], object]:
    """The machine's rate: one large matrix product."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    out = torch.empty(SIDE, SIDE)
    return lambda: torch.mm(a, b, out=out)


# Hugging Face's chunked delta rules.
RULES = {
    "hf: gated delta rule": ("scalar+delta", peers.gated_delta_rule),
    "hf: kimi delta rule": ("diagonal+delta", peers.kimi_delta_rule),
}
# flash-linear-attention's naive forms: variant, folder of its ops, function.
NAIVE = {
    "fla: simple gla, chunks": ("scalar", "simple_gla", "naive_chunk_simple_gla"),
    "fla: simple gla, loop": ("scalar", "simple_gla", "naive_recurrent_simple_gla"),
    "fla: gla, loop": ("diagonal", "gla", "naive_recurrent_gla"),
    "fla: gated delta, chunks": ("scalar+delta", "gated_delta_rule", "naive_chunk_gated_delta_rule"),
    "fla: gated delta, loop": ("scalar+delta", "gated_delta_rule", "naive_recurrent_gated_delta_rule"),
    "fla: kda, chunks": ("diagonal+delta", "kda", "naive_chunk_kda"),
    "fla: kda, loop": ("diagonal+delta", "kda", "naive_recurrent_kda"),
}
# A loop's gradients copy its whole output for every token.
NAIVE_MOST = {
    **{(name, FORWARD): 8192 for name in NAIVE}, **{(name, BOTH): 512 for name in NAIVE if name.endswith("loop")},
    ("fla: kda, chunks", BOTH): 2048,
}  # fmt: skip
# Tokens of their gate: some take whole chunks of 64.
WHOLE = 192


def build_ops(tokens: int, work: str) -> Calls:
    inputs = _op_inputs(tokens)
    calls: Calls = {}
    for variant in VARIANTS:
        leaves = _leaves(variant, inputs)
        calls[variant] = working(partial(_op, variant, *leaves), leaves, work)
    heads_first = [inputs[n].detach().transpose(1, 2).contiguous().requires_grad_() for n in "qkv"]
    calls["SDPA causal"] = working(
        lambda: F.scaled_dot_product_attention(*heads_first, is_causal=True), heads_first, work
    )
    calls[FLOOR] = floor()
    return calls


def build_rules(tokens: int, work: str) -> Calls:
    """The delta rules that Hugging Face has too, and its chunked forms of them."""
    inputs, calls = _op_inputs(tokens), {}
    for name, (variant, rule) in RULES.items():
        leaves = _leaves(variant, inputs)
        calls[variant] = working(partial(_op, variant, *leaves), leaves, work)
        if peers.missing("transformers") is None:
            calls[name] = working(partial(rule, *leaves), leaves, work)
    return calls


def build_growth(lengths: tuple[int, ...], work: str) -> Calls:
    """The five ops at every length; the longest's inputs serve them all."""
    inputs, calls = _op_inputs(max(lengths)), {}
    for variant in VARIANTS:
        for tokens in lengths:
            leaves = [t.detach()[:, :tokens].contiguous().requires_grad_() for t in _leaves(variant, inputs)]
            calls[f"{variant} @{tokens}"] = working(partial(_op, variant, *leaves), leaves, work)
    return calls


def gate_ops(theirs: bool = False) -> dict[str, float]:
    inputs = _op_inputs(SMALL, width=32, heads=2)
    functions = {v: (v, partial(_op, v)) for v in VARIANTS}
    if theirs and peers.missing("transformers") is None:
        functions |= RULES
    return {
        name: disagreement(fn, partial(_op, variant, backend="reference"), _leaves(variant, inputs))
        for name, (variant, fn) in functions.items()
    }


def build_naive(tokens: int, work: str) -> Calls:
    """The variants that fla has too, and its naive forms of them."""
    inputs = _op_inputs(tokens)
    calls: Calls = {}
    for variant in dict.fromkeys(variant for variant, *_ in NAIVE.values()):
        leaves = _leaves(variant, inputs)
        calls[variant] = working(partial(_op, variant, *leaves), leaves, work)
    for name, (variant, *function) in NAIVE.items() if peers.missing("fla") is None else ():
        leaves = _leaves(variant, inputs)
        calls[name] = working(partial(peers.fla_naive, *function, *leaves), leaves, work)
    return calls


def gate_naive() -> dict[str, float]:
    inputs = _op_inputs(WHOLE, width=32, heads=2)
    functions = {v: (v, partial(_op, v)) for v in VARIANTS}
    if peers.missing("fla") is None:
        functions |= {name: (v, partial(peers.fla_naive, *function)) for name, (v, *function) in NAIVE.items()}
    return {
        name: disagreement(fn, partial(_op, variant, backend="reference"), _leaves(variant, inputs))
        for name, (variant, fn) in functions.items()
    }


def _scan_inputs(tokens: int, channels: int = CHANNELS) -> list[Tensor]:
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(tokens))
    u, delta = draw(BATCH, tokens, channels), F.softplus(draw(BATCH, tokens, channels) - 3)
    a = -torch.arange(1.0, STATES + 1).repeat(channels, 1)
    return [t.requires_grad_() for t in (u, delta, a, draw(BATCH, tokens, STATES), draw(BATCH, tokens, STATES))]


def _selective(*leaves: Tensor, backend: str = "auto") -> Tensor:
    return selective_scan.selective_scan(*leaves, backend=backend)[0]


def _selectives() -> dict[str, Callable[..., Tensor]]:
    functions = {"selective scan": _selective, "plain loop": partial(_selective, backend="reference")}
    rest = {"hf: mamba scan": ("transformers", peers.mamba_scan), "mambapy: scan": ("mambapy", peers.mambapy_scan)}
    return functions | {name: fn for name, (package, fn) in rest.items() if peers.missing(package) is None}


def _rg_lru(*leaves: Tensor, backend: str = "auto") -> Tensor:
    *inputs, param = leaves
    return gated_scan(*inputs, -8 * F.softplus(param), fresh=True, backend=backend)[0]


def _rg_lrus() -> dict[str, Callable[..., Tensor]]:
    functions = {"rg_lru": _rg_lru, "plain loop": partial(_rg_lru, backend="reference")}
    return functions | ({"hf: rg_lru": peers.rg_lru} if peers.missing("transformers") is None else {})


def _rg_lru_inputs(tokens: int, channels: int = DIM) -> list[Tensor]:
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(tokens))
    x, z = (draw(BATCH, tokens, channels) for _ in range(2))
    width = channels // HEADS
    gates = draw(HEADS, width, 2 * width) * width**-0.5, draw(HEADS, 1, 2 * width)
    return [t.requires_grad_() for t in (x, z, *gates, draw(channels) - 4)]


def _linears() -> dict[str, Callable[..., Tensor]]:
    def fast(a: Tensor, b: Tensor, backend: str = "auto") -> Tensor:
        return scan.linear_scan(a, b, backend=backend)[0]

    return {"linear scan": fast, "plain loop": partial(fast, backend="reference")}


def _linear_inputs(tokens: int, channels: int = DIM) -> list[Tensor]:
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(tokens))
    a, b = (draw(BATCH, tokens, channels) for _ in range(2))
    return [(a + 3).sigmoid().requires_grad_(), b.requires_grad_()]


def _build_scan(functions: Callable, inputs: Callable, tokens: int, work: str) -> Calls:
    leaves = inputs(tokens)
    return {name: working(partial(fn, *leaves), leaves, work) for name, fn in functions().items()}


def _gate_scan(functions: Callable, inputs: Callable) -> dict[str, float]:
    definition = functions()["plain loop"]
    leaves = inputs(SMALL, 24)
    return {name: disagreement(fn, definition, leaves) for name, fn in functions().items()}


def op_macs(variant: str, tokens: int) -> int:
    """Multiply-adds of an op's forward on the rows' inputs."""
    decay, delta = VARIANTS[variant]
    return recurrence.macs(BATCH, tokens, HEADS, WIDTH, WIDTH, log_decay=decay, beta=delta)


def rows() -> list[Row]:
    """In this order for what the C library does with freed memory: its own way, kept, measured."""
    return [
        Row(
            "rules", (FORWARD, BOTH), build_rules, partial(gate_ops, theirs=True),
            needs=dict.fromkeys(RULES, "transformers"),
            most={("hf: kimi delta rule", FORWARD): 2048, ("hf: kimi delta rule", BOTH): 2048,
                  ("hf: gated delta rule", FORWARD): 8192, ("hf: gated delta rule", BOTH): 8192},
        ),
        Row(
            "fla", (FORWARD, BOTH), build_naive, gate_naive, needs=dict.fromkeys(NAIVE, "fla"), most=NAIVE_MOST,
            slow=(("fla: kda, chunks", BOTH),),
        ),
        Row(
            "selective_scan", (FORWARD, BOTH), partial(_build_scan, _selectives, _scan_inputs),
            partial(_gate_scan, _selectives, _scan_inputs),
            most={("hf: mamba scan", FORWARD): 8192, ("hf: mamba scan", BOTH): 512, ("plain loop", FORWARD): 8192,
                  ("plain loop", BOTH): 2048, ("mambapy: scan", FORWARD): 8192, ("mambapy: scan", BOTH): 2048},
            needs={"hf: mamba scan": "transformers", "mambapy: scan": "mambapy"}, slow=(("hf: mamba scan", BOTH),),
        ),
        Row(
            "linear_scan", (FORWARD, BOTH), partial(_build_scan, _linears, _linear_inputs),
            partial(_gate_scan, _linears, _linear_inputs), most={("plain loop", BOTH): 2048},
        ),
        Row(
            "rg_lru", (FORWARD, BOTH), partial(_build_scan, _rg_lrus, _rg_lru_inputs),
            partial(_gate_scan, _rg_lrus, _rg_lru_inputs),
            most={("plain loop", BOTH): 2048, ("hf: rg_lru", BOTH): 2048}, needs={"hf: rg_lru": "transformers"},
        ),
        Row("ops", (FORWARD, BOTH), build_ops, gate_ops, longer=(32768,), floors=(FLOOR,), keep=True),
        Row("growth", (FORWARD, BOTH), build_growth, gate_ops, joint=LENGTHS, memory=True, keep=True),
    ]  # fmt: skip
