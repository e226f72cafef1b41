"""The roofline: whether each layer of a model is held by arithmetic or by memory, and how near it comes to what the
machine can do.

    roof(intensity) = min(FLOP/s of a matrix product, intensity * bytes/s of a copy),   intensity = FLOP / bytes

A layer whose intensity lies below the ridge, where both are equal, is held by memory. Both rates are measured here, on
this machine, in the layers' dtype. Roofline: An Insightful Visual Performance Model for Multicore Architectures,
Williams, Waterman, Patterson, 2009.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from formwright.bench.measure import example_inputs, in_turn, spread
from formwright.bench.traffic import counts
from formwright.build import build, default_stack, is_bare_mixer
from formwright.contract import ChannelMixer, Embed, Head, Norm, TokenMixer

PARTS = (TokenMixer, ChannelMixer, Norm, Embed, Head)
PRODUCTS = {"cpu": (512, 1024), "cuda": (4096, 8192)}  # sides of the square matrices multiplied
COPIED = {"cpu": 64 << 20, "cuda": 1 << 30}  # bytes, more than any cache holds


@dataclass(frozen=True)
class Roof:
    """What the machine can do: FLOP a second (of matrix products), bytes a second (read and written by a copy)."""

    flops: float
    bytes: float

    @property
    def ridge(self) -> float:
        """The intensity from which arithmetic holds a layer."""
        return self.flops / self.bytes

    def seconds(self, flops: float, moved: float) -> float:
        """The least time that so many FLOP and bytes take."""
        return max(flops / self.flops, moved / self.bytes)


def measure_roof(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, *, seconds: float = 3.0
) -> Roof:
    """The machine's two rates, each the best of several runs, since what disturbs a run only slows it."""
    kind = torch.device(device).type
    kind = kind if kind in PRODUCTS else "cuda"
    pairs = {n: [torch.randn(n, n, device=device).to(dtype) for _ in range(2)] for n in PRODUCTS[kind]}
    numbers = COPIED[kind] // torch.empty(0, dtype=dtype).element_size()
    one, other = (torch.zeros(numbers, device=device, dtype=dtype) for _ in range(2))
    calls = {n: (lambda a=a, b=b: a @ b) for n, (a, b) in pairs.items()}
    times = in_turn({**calls, "copy": lambda: other.copy_(one)}, device=device, repeats=9, seconds=seconds)
    flops = max(2 * n**3 / min(times[n]) for n in calls)
    return Roof(flops, 2 * COPIED[kind] / min(times["copy"]))


def expression_layers(
    expression: str, length: int = 1024, *, batch: int = 1, dim: int = 256, seconds: float = 8.0
) -> tuple[list[dict[str, Any]], Roof]:
    """`layers` of an expression's model over tokens (a bare mixer stands for its default stack), and the roof.

    Raises what `build` raises, ValueError for an expression that reads no tokens."""
    tree = default_stack(expression) if is_bare_mixer(expression) else expression
    model = build(tree, facts={"length": length}, dim=dim)
    if not hasattr(model.embed, "vocab"):
        raise ValueError(f"layers are measured over tokens; {model.embed.card.name} reads none")
    roof = measure_roof(seconds=seconds / 4)
    return layers(model, length, batch=batch, roof=roof, seconds=seconds / 2), roof


def layers(
    model: nn.Module, shape: int | tuple[int, ...], *, batch: int = 1, roof: Roof | None = None, seconds: float = 5.0
) -> list[dict[str, Any]]:
    """A row for each part of the model in a forward over inputs of that shape, equal parts as one with their number in
    `times`: part, times, length, batch, milliseconds, low, high (of one), macs, bytes, intensity, held_by
    ("arithmetic" or "memory"), roof_milliseconds and roof (the share of the roof that is reached; more than 1 where a
    cache spares the memory).

    All parts are timed in turn on the tokens that they get in the model."""
    inputs = example_inputs(model, shape, batch)
    device = next(model.parameters()).device
    roof = roof or measure_roof(device, next(model.parameters()).dtype)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            met = _calls(model, inputs)
            calls = {key: (lambda m=m, a=a, k=k: m(*a, **k)) for key, (m, a, k, _) in met.items()}
            times = in_turn(calls, device=device, seconds=seconds)
            rows = []
            for key, (_, args, _, number) in met.items():
                done = counts(calls[key])
                least = 1e3 * roof.seconds(2 * done.macs, done.bytes)
                row = {"part": key[0], "times": number, "length": _tokens(args), "batch": batch, **spread(times[key])}
                row |= {"macs": done.macs, "bytes": done.bytes, "intensity": done.intensity}
                row["held_by"] = "arithmetic" if done.intensity >= roof.ridge else "memory"
                rows.append({**row, "roof_milliseconds": least, "roof": least / row["milliseconds"]})
    finally:
        model.train(was_training)
    return rows


def _calls(model: nn.Module, inputs: Any) -> dict[tuple, tuple[nn.Module, tuple, dict, int]]:
    """(label, shapes) -> a part, the arguments that it gets in a forward, and how many such calls there are."""
    met: dict[tuple, tuple[nn.Module, tuple, dict, int]] = {}

    def see(part: nn.Module, args: tuple, kwargs: dict) -> None:
        label = getattr(part, "written", None) or part.card.name
        shapes = tuple(tuple(t.shape) for t in _pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        first = met.get((label, shapes), (part, args, kwargs, 0))
        met[label, shapes] = (*first[:3], first[3] + 1)

    hooks = [part.register_forward_pre_hook(see, with_kwargs=True) for part in _outermost(model)]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return met


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    """The parts that stand inside no other part, each once."""
    seen: set[int] = set()

    def walk(module: nn.Module) -> Iterator[nn.Module]:
        if isinstance(module, PARTS):
            if id(module) not in seen:
                seen.add(id(module))
                yield module
            return
        for child in module.children():
            yield from walk(child)

    yield from walk(module)


def _tokens(args: tuple) -> int:
    first = next(t for t in _pytree.tree_leaves(args) if isinstance(t, Tensor))
    return first.shape[1]
