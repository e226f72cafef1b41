"""The law of cost: counted multiply-adds, parameters and state bytes equal cost() exactly.

Multiply-adds are counted by torch's FlopCounterMode (half its FLOPs). Torch has no formula for its fused attention on
CPUs; it is counted here as the two products over all N x M scores, like the fused attentions of other devices.
"""

from __future__ import annotations

import inspect

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from formwright.check.subject import Broken, Skipped, Subject, fresh, seeded
from formwright.contract import Layout, Unsupported, parameter_count, state_bytes
from formwright.ops.attention import SDPA_FLOPS

PLACES = ((1, 1), (2, 3), (7, 1), (64, 2), (65, 1), (130, 3), (257, 1))


def counted_macs(subject: Subject, module: nn.Module, pattern: str, n: int, batch: int) -> int:
    """Multiply-adds of one forward."""
    inputs = subject.inputs(pattern, n, batch, torch.float32)
    if pattern.endswith("cross"):
        inputs = (inputs[0], inputs[1][:, : context_tokens(module, n)])
    with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter:
        subject.run(module, *inputs)
    return counter.get_total_flops() // 2


def takes_context(module: nn.Module) -> bool:
    """Whether cost() can be told how long the context is; otherwise it is as long as x."""
    return "context_layout" in inspect.signature(module.cost).parameters


def context_tokens(module: nn.Module, n: int) -> int:
    return n + 3 if takes_context(module) else n


def counted_state(subject: Subject, module: nn.Module, n: int, batch: int) -> int:
    """Bytes of extend's state after n tokens."""
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    (x,) = subject.inputs("causal", n, batch, dtype)
    with torch.no_grad(), seeded(subject.seed):
        module = fresh(module)
        _, state = module.extend(x, module.empty(batch, n))
    return state_bytes(state)


def cost(subject: Subject) -> str:
    """At several N, batches and widths; state bytes in float32 and bfloat16."""
    if not hasattr(subject.cls, "cost"):
        raise Skipped(f"a {subject.kind} part states no cost")
    notes: list[str] = []
    for pattern in subject.patterns:
        for dim in (subject.dim, 128):
            try:
                module = subject.module(pattern, torch.float32, dim=dim)
            except ValueError:
                continue
            _check_at(_resized(subject, dim), module, pattern)
    if subject.kind == "mixer":
        notes = claims(subject)
    return "; ".join(["multiply-adds, parameters and state bytes are those counted", *notes])


def _resized(subject: Subject, dim: int) -> Subject:
    return Subject(subject.target, subject.cls, subject.options, subject.seed, dim, subject.compiler)


def _check_at(subject: Subject, module: nn.Module, pattern: str) -> None:
    for n, batch in PLACES:
        if n > subject.limit:
            continue
        where = f"N={n}, batch {batch}, width {subject.dim}{', ' + pattern if pattern else ''}"
        across = {"context_layout": Layout((n + 3,))} if takes_context(module) and pattern.endswith("cross") else {}
        stated = module.cost(Layout((n,)), batch, **across)
        _equal(stated.params, parameter_count(module), "parameters", where)
        _equal(stated.macs, counted_macs(subject, module, pattern, n, batch), "multiply-adds", where)
    if pattern != "causal":
        return
    for dtype in (torch.float32, torch.bfloat16):
        module = fresh(module).to(dtype)
        for n, batch in (*PLACES, (600, 2)):
            if n > subject.limit:
                continue
            where = f"N={n}, batch {batch}, width {subject.dim}, {str(dtype).removeprefix('torch.')}"
            try:
                counted = counted_state(subject, module, n, batch)
            except Unsupported:
                counted = 0
            _equal(module.cost(Layout((n,)), batch).state_bytes, counted, "state bytes", where)


def _equal(stated: int, counted: int, what: str, where: str) -> None:
    if stated != counted:
        ratio = f", {stated / counted:.3g} times as many" if counted else ""
        raise Broken(f"cost() states {stated} {what} at {where}, but {counted} are counted{ratio}")


def claims(subject: Subject) -> list[str]:
    """What the card claims of growth in N and cost() contradicts, in sentences."""
    found = []
    module = subject.module(subject.patterns[0])
    n = min(1 << 14, subject.limit // 2)
    small, large = module.cost(Layout((n,))), module.cost(Layout((2 * n,)))
    macs = large.macs / small.macs if small.macs else 0.0
    bounds = {"1": (0.0, 1.01), "N": (0.0, 2.1), "N log N": (0.0, 2.5), "N^2": (0.0, 4.1)}
    low, high = bounds.get(subject.card.time, (0.0, float("inf")))
    if not low <= macs <= high:
        found.append(f"but the card says time grows as {subject.card.time}, and twice the N costs {macs:.2f} times")
    if "causal" in subject.patterns:
        module = subject.module("causal")
        small, large = (module.cost(Layout((m,))).state_bytes for m in (n, 2 * n))
        growth = "0" if large == 0 else "1" if large < 1.5 * small else "N"
        if growth != subject.card.state and not (subject.card.state == "N" and subject.limit < 1 << 20):
            found.append(f"but the card says the state grows as {subject.card.state}, and it grows as {growth}")
    return found
