"""The four kinds of work that a model's cost is measured by, as calls to be timed in turn with other models'.

forward    one forward, without a gradient graph
training   one forward and the backward of the mean square of its outputs, every gradient made afresh
prefill    N tokens taken into an empty state at once
decode     one further token, behind N tokens
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from formwright.bench.measure import example_inputs

KINDS = ("forward", "training", "prefill", "decode")
ROOM = 48  # tokens that decoding may go beyond its length while it is measured


@dataclass
class Work:
    """`call` is what is timed, `before` what is done before each, untimed; `state` gives the state as it then is."""

    call: Callable[[], object]
    before: Callable[[], object] | None = None
    state: Callable[[], Any] | None = None


def work(model: nn.Module, kind: str, length: int, batch: int = 1) -> Work:
    """One kind of work of a model in evaluation mode. Raises Unsupported for prefill and decode of a model that can't
    extend a state."""
    if kind not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}, not {kind!r}")
    if kind in ("forward", "training"):
        inputs = example_inputs(model, length, batch)
        return Work((lambda: model(inputs)) if kind == "forward" else (lambda: _train(model, inputs)))
    rows = example_inputs(model, length + (ROOM if kind == "decode" else 0), batch)
    given, rows = rows if isinstance(rows, tuple) else (None, rows)
    source = {} if given is None else {"source": given}
    held: dict[str, Any] = {}

    def begin() -> None:
        held["state"] = model.empty(batch, capacity=rows.shape[1], **source)

    def take(first: int, last: int) -> Any:
        out, held["state"] = model.extend(rows[:, first:last], held["state"])
        return out

    if kind == "prefill":
        begin()
        return Work(lambda: take(0, length), begin, lambda: held["state"])
    begin()
    take(0, length)
    held["here"] = length

    def one() -> Any:
        held["here"] += 1
        return take(held["here"] - 1, held["here"])

    return Work(one, None, lambda: held["state"])


def _train(model: nn.Module, inputs: Any) -> None:
    model.zero_grad(set_to_none=True)
    model(inputs).float().square().mean().backward()


@contextlib.contextmanager
def ready(models: list[nn.Module], kind: str) -> Iterator[None]:
    """Evaluation mode for all, gradients for training alone; everything is afterwards as it was."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()  # no dropout
    try:
        # Not inference_mode: tensors that a part caches in it could not be used by later training steps.
        with torch.set_grad_enabled(kind == "training"):
            yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)
            model.zero_grad(set_to_none=True)
