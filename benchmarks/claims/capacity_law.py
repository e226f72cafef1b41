"""Linear attention's memory holds a number of pairs that grows as the width of its keys; in the worst case as the root.

Nothing is trained: keys are random directions, and the state is made by the project's own recurrence
(formwright/bench/capacity.py). The delta rule, which corrects what it held, is beside it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from claims import Condition, Finding, Result, at_most, least

WIDTHS = [16, 32, 64, 128]


def measure(quick: bool) -> list[Result]:
    """The power of the key width that capacity grows by, of each memory and criterion, one of each seed."""
    from formwright.bench.capacity import law

    found = []
    widths = WIDTHS[:2] if quick else WIDTHS
    for memory, criterion in (("linear", "error"), ("linear", "worst"), ("delta", "error")):
        began, powers, most = time.process_time(), [], []
        for seed in (0, 1, 2):
            numbers, power = law(memory, widths, criterion, most=1024, seed=seed)
            powers.append(power)
            most.append(float(numbers[-1]))
        name = f"{memory}, {criterion}"
        more = {f"pairs_at_{widths[-1]}": tuple(most)}
        found.append(Result(name, tuple(powers), more, seconds=time.process_time() - began))
    return found


def judge(found: Mapping[str, Result]) -> list[Condition]:
    average, worst, delta = found["linear, error"], found["linear, worst"], found["delta, error"]
    held, more = (r.more[next(iter(r.more))] for r in (average, delta))
    return [
        least("average case, power of the key width, the least seed", average.worst, 0.9),
        at_most("average case, the greatest seed", average.best, 1.1),
        least("worst case, the least seed", worst.worst, 0.4),
        at_most("worst case, the greatest seed", worst.best, 0.6),
        least("pairs of the delta rule over those of the sum, the least seed", min(more) / max(held), 1.1),
    ]


FINDING = Finding(
    claim="A linear memory's capacity grows as its key width on average, and as the root of it in the worst case",
    source="Understanding Transformers through the Lens of Pavlovian Conditioning, arXiv 2508.08289, 2025",
    published="capacity of order d_k for independent values, of order sqrt(d_k) for values that disturb most",
    metric="power",
    measure=measure,
    judge=judge,
)
