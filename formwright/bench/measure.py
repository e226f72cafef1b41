"""What a model costs to run, measured: milliseconds, peak memory, state bytes, multiply-adds.

The rules: warm up first; synchronise the device; evaluation mode, no gradient graph; prefill and decode apart; the
state counted whole; medians with quartiles, never single runs; the machine's load written beside them. Things compared
are timed side by side in one process, in turn (`in_turn`): times of two processes compare two moods of a machine. The
C library keeps freed memory meanwhile, or large tensors would be timed by how long the kernel takes to clear pages.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from formwright.bench.memory import keep_freed_memory, peak_memory
from formwright.contract import Embed, state_bytes
from formwright.ops.attention import SDPA_FLOPS

WARM_UP = 2
LEAST = 3


def in_turn(
    calls: Mapping[str, Callable[[], object]],
    *,
    device: str | torch.device = "cpu",
    repeats: int = 7,
    seconds: float = 5.0,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call, timed round after round (a, b, c, a, b, c, ...) after two rounds of warm-up: `repeats`
    rounds, fewer (but three) once `seconds` have passed. What `before` holds for a call is done, untimed, before it."""
    keep_freed_memory()
    times: dict[str, list[float]] = {name: [] for name in calls}
    first = before or {}
    for _ in range(WARM_UP):
        for name, call in calls.items():
            first.get(name, _nothing)()
            call()
    began = time.perf_counter()
    for done in range(max(repeats, LEAST)):
        if done >= LEAST and time.perf_counter() - began > seconds:
            break
        for name, call in calls.items():
            first.get(name, _nothing)()
            times[name].append(_seconds(call, device))
    return times


def _nothing() -> None:
    """What is done before a call that needs nothing."""


def spread(times: list[float]) -> dict[str, float]:
    """The median and the quartiles of some seconds: {"milliseconds", "low", "high"}."""
    low, middle, high = statistics.quantiles([1e3 * t for t in times], n=4, method="inclusive")
    return {"milliseconds": middle, "low": low, "high": high}


def counted_macs(call: Callable[[], object]) -> int:
    """The multiply-adds that a call executes in matrix products and convolutions, counted while it runs."""
    with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter:
        call()
    return counter.get_total_flops() // 2


def example_inputs(
    model: nn.Module, shape: int | tuple[int, ...], batch: int = 1, seed: int = 0
) -> Tensor | tuple[Tensor, Tensor]:
    """Inputs of that shape behind the batch: random tokens where the model has a vocabulary, else normal numbers. For
    an encoder-decoder a pair of them, its source as long as its data's were, without data as the target."""
    reader = next((m for m in model.modules() if getattr(m, "reads_pairs", False)), None)
    target = _example(model, shape, batch, seed)
    if reader is None:
        return target
    rest = (shape,)[1:] if isinstance(shape, int) else shape[1:]
    length = reader.source_length or (shape if isinstance(shape, int) else shape[0])
    return _example(model, (length, *rest), batch, seed + 1), target


def _example(model: nn.Module, shape: int | tuple[int, ...], batch: int, seed: int) -> Tensor:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    size = (batch, shape) if isinstance(shape, int) else (batch, *shape)
    vocabularies = [m.vocab for m in model.modules() if isinstance(m, Embed) and hasattr(m, "vocab")]
    if vocabularies:  # of a pair, tokens that both know
        return torch.randint(min(vocabularies), size, generator=generator).to(device)
    return torch.randn(size, generator=generator).to(device)


def forward_cost(
    model: nn.Module,
    shape: int | tuple[int, ...],
    *,
    batch: int = 1,
    inputs: Tensor | tuple[Tensor, Tensor] | None = None,
    repeats: int = 7,
    seconds: float = 5.0,
) -> dict[str, Any]:
    """A row {kind, length, batch, milliseconds, low, high, peak_bytes, state_bytes, macs, load} of one forward over
    inputs of `shape` (without the batch; a number means so many tokens), or over real `inputs` and then of their shape.
    macs and state_bytes are the model's formulas."""
    if inputs is None:
        inputs = example_inputs(model, shape, batch)
    target = inputs[1] if isinstance(inputs, tuple) else inputs
    batch, shape, device = target.shape[0], tuple(target.shape[1:]), target.device
    with _inference(model):
        times = in_turn({"forward": lambda: model(inputs)}, device=device, repeats=repeats, seconds=seconds)
        peak = peak_memory(lambda: model(inputs), device, warm_up=False)
    cost = model.cost(shape, batch=batch)
    return _row("forward", _length(model, shape), batch, times["forward"], peak, cost.state_bytes, cost.macs)


def prefill_cost(
    model: nn.Module, length: int, *, batch: int = 1, repeats: int = 5, seconds: float = 5.0
) -> dict[str, Any]:
    """A row like forward_cost's of taking `length` tokens into an empty state at once, with the bytes of the state
    after them and the multiply-adds counted.

    Raises Unsupported where the model can't extend."""
    inputs = example_inputs(model, length, batch)
    with _inference(model):
        times: list[float] = []
        began = time.perf_counter()
        for done in range(1 + max(repeats, LEAST)):
            if done > LEAST and time.perf_counter() - began > seconds:
                break
            state = model.empty(batch, capacity=length)
            times.append(_seconds(lambda state=state: model.extend(inputs, state), inputs.device))
        state = model.empty(batch, capacity=length)
        peak = peak_memory(lambda: model.extend(inputs, state), inputs.device, warm_up=False)
        _, state = model.extend(inputs, model.empty(batch, capacity=length))
        fresh = model.empty(batch, capacity=length)
        macs = counted_macs(lambda: model.extend(inputs, fresh))
    return _row("prefill", length, batch, times[1:], peak, state_bytes(state), macs)


def decode_cost(
    model: nn.Module, length: int, *, batch: int = 1, tokens: int = 24, seconds: float = 5.0
) -> dict[str, Any]:
    """A row like forward_cost's of one further token after `length` of them: milliseconds per token over `tokens`
    tokens one after another, the bytes of the state and the multiply-adds counted.

    Raises Unsupported where the model can't extend."""
    warm, extra = 3, 3
    inputs = example_inputs(model, length + warm + tokens + extra, batch)
    with _inference(model):
        state = model.empty(batch, capacity=inputs.shape[1])
        _, state = model.extend(inputs[:, :length], state)
        here = length

        def one() -> None:
            nonlocal state, here
            _, state = model.extend(inputs[:, here : here + 1], state)
            here += 1

        for _ in range(warm):
            one()
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < max(tokens, LEAST) and (len(times) < LEAST or time.perf_counter() - began <= seconds):
            times.append(_seconds(one, inputs.device))
        held = state_bytes(state)
        peak = peak_memory(one, inputs.device, warm_up=False)
        macs = counted_macs(one)
    return _row("decode", length, batch, times, peak, held, macs)


def _row(
    kind: str, length: int, batch: int, times: list[float], peak: int | None, held: int, macs: int
) -> dict[str, Any]:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    sizes = {"peak_bytes": peak, "state_bytes": held, "macs": macs, "load": load}
    return {"kind": kind, "length": length, "batch": batch, **spread(times), **sizes}


def _length(model: nn.Module, shape: tuple[int, ...]) -> int:
    """How many tokens inputs of this shape become."""
    embed = getattr(model, "embed", None)
    return embed.layout(shape).tokens if isinstance(embed, Embed) else shape[0]


def _seconds(call: Callable[[], object], device: str | torch.device) -> float:
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


@contextlib.contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode comes back afterwards."""
    was_training = model.training
    model.eval()
    try:
        # Not inference_mode: tensors that a part caches in it could not be used by later training steps.
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
