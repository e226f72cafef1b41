"""The costs of one contender, measured while nothing else of the race runs: forward at growing lengths, decoding after
them where it decodes, until the time for it is used up."""

from __future__ import annotations

import time
from typing import Any

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
BATCHES = (1, 32)  # for inputs of one size
CALLS = 6  # of a forward at one length, about: warm-up, repeats, memory


def measure_costs(model: Any, source: Any, *, seconds: float) -> dict[str, Any]:
    """{"rows": [...], "notes": [...]}: rows as `bench.measure` makes them, in at most about `seconds`.

    Texts are measured at batch 1 and lengths 128, 256, ...; other data at their own size, at batches 1 and 32."""
    from formwright.bench.measure import decode_cost, forward_cost
    from formwright.train.device import move

    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    if len(source.shape) != 1 or not source.facts.get("vocab") or source.source_shape is not None:
        for batch in BATCHES:
            inputs = move(source.batch("train", 0, batch), _device(model)).inputs
            rows.append(forward_cost(model, source.shape, inputs=inputs, seconds=seconds / 4))
        return {"rows": rows, "notes": notes}
    decodes = model.causal
    for number, length in enumerate(LENGTHS):
        left = seconds - (time.perf_counter() - began)
        # A length twice as long takes two to four times as long.
        if number and left < 3e-3 * rows[-1]["milliseconds"] * CALLS:
            break
        try:
            row = forward_cost(model, length, repeats=5, seconds=left / 8)
        except ValueError as reason:
            notes.append(
                f"its forward was measured up to {LENGTHS[number - 1] if number else 0} tokens: {_line(reason)}"
            )
            break
        rows.append(row)
        if decodes:
            try:
                rows.insert(len(rows) - 1, decode_cost(model, length, tokens=16, seconds=left / 8))
            except ValueError as reason:
                notes.append(f"its decoding was measured after fewer than {length} tokens: {_line(reason)}")
                decodes = False
    return {"rows": rows, "notes": notes}


def _line(reason: ValueError) -> str:
    return str(reason).strip().split("\n")[0]


def _device(model: Any) -> Any:
    return next(model.parameters()).device
