"""A row of the recurrence benchmark, how its calls are compared and in what form they are timed.

A row's `build(tokens, work)` makes its calls by name; `gate()` compares each with the definition in float64, or with
our own form where that has been compared, on a small size: outputs and, where the row has a backward, gradients.
Names of calls begin with their library where it is not ours ("hf: ...").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

BATCH, HEADS, WIDTH, DIM = 2, 8, 64, 512
FORWARD, BOTH, PREFILL, STEP = "forward", "forward+backward", "prefill", "step"
SMALL = 150
LENGTHS = (2048, 8192, 32768)  # of steps and of growth
TOLERANCE = 1e-4
Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Row:
    """build(tokens, work) -> calls by name; gate() -> the largest difference found for each name.

    most    the most tokens at which a slow or memory-hungry call is timed, by (call, work)
    slow    (call, work) that take minutes: left out by --quick
    needs   the package that a call needs, by call
    joint   lengths whose calls build(lengths, work) makes at once, named "call @tokens", to be timed together
    lengths those of this row, whatever lengths are asked for
    whole   whether the row is left out where one of its `needs` is missing
    longer  lengths that --long adds, of works without a backward
    floors  calls whose time doesn't depend on the length
    memory  measure the calls' peak memory as well
    keep    time with freed memory kept: where shares of the machine's rate or exponents are the matter"""

    name: str
    works: tuple[str, ...]
    build: Callable[..., Calls]
    gate: Callable[[], dict[str, float]]
    batch: int = BATCH
    most: dict[tuple[str, str], int] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)
    slow: tuple[tuple[str, str], ...] = ()
    joint: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    whole: bool = False
    longer: tuple[int, ...] = ()
    floors: tuple[str, ...] = ()
    memory: bool = False
    keep: bool = False


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, beside the largest number of b; inf where a has none that count."""
    value = ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-3)).item()
    return value if value == value else float("inf")


def disagreement(fn: Callable, expected: Callable, leaves: list[Tensor], backward: bool = True) -> float:
    """The largest difference of two functions' outputs and of their gradients under one random cotangent. The second
    runs in float64."""
    exact = [t.detach().double().requires_grad_() for t in leaves]
    found, wanted = fn(*leaves), expected(*exact)
    worst = difference(found, wanted)
    if backward:
        cotangent = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
        got = torch.autograd.grad(found, leaves, cotangent)
        right = torch.autograd.grad(wanted, exact, cotangent.double())
        worst = max(worst, *(difference(a, b) for a, b in zip(got, right, strict=True)))
    return worst


def working(fn: Callable[[], Tensor], leaves: list[Tensor], work: str) -> Callable[[], object]:
    """The timed call of a function: without a graph, or with the gradients of all leaves."""
    held: list[Tensor] = []

    def forward() -> Tensor:
        with torch.no_grad():
            return fn()

    def both() -> object:
        out = fn()
        if not held:
            held.append(torch.randn_like(out))
        return torch.autograd.grad(out, leaves, held[0])

    return both if work == BOTH else forward
