"""Multi-query associative recall of several sizes at once, as in Arora et al., "Simple linear attention language models
balance the recall-throughput tradeoff" (Based), arXiv 2402.18668, 2024: trained on few pairs, tested on more.

Rows are those of mqar, of sizes (length, pairs) mixed by their shares, padded by 0 at the right; accuracy is the mean
over rows of each row's share of right answers, told for each number of pairs as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task
from formwright.data.tasks.mqar import recall_maker
from formwright.data.tasks.scoring import both, grouped, mean_of_rows

SEEN = ((64, 4, 5), (128, 8, 1), (256, 16, 1), (256, 32, 1), (256, 64, 1))
TESTED = ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256))
RUN = 100


@task
def mqar_mix(
    *,
    seen: tuple = SEEN,
    tested: tuple = TESTED,
    vocab: int = 8192,
    power: float = 0.01,
    filler: str = "random",
    examples: int = 180_000,
    tests: int = 7_000,
) -> Task:
    """mqar of sizes `seen`, each (length, pairs, share); tested on sizes (length, pairs). inputs, targets (rows, N)."""
    at_least("mqar_mix", examples=(examples, 1), tests=(tests, 1))
    seen, tested = _sizes("seen", seen, 3), _sizes("tested", tested, 2)

    def maker(sizes: list[tuple[int, ...]]):
        makers = [recall_maker("mqar_mix", n, length, vocab, power, filler) for length, n, _ in sizes]
        upto = np.cumsum([share for *_, share in sizes])
        longest = sizes[-1][0]

        def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
            # every run of RUN rows has all sizes in their shares, the short ones first: few batches are of many sizes
            which = np.searchsorted(upto, (np.arange(rows) % RUN + 0.5) * (upto[-1] / RUN))
            inputs = np.zeros((rows, longest), dtype=np.int64)
            targets = np.full((rows, longest), -100)
            for size, (length, *_) in enumerate(sizes):
                chosen = np.flatnonzero(which == size)
                inputs[chosen, :length], targets[chosen, :length] = makers[size](rng, len(chosen))
            return inputs, targets

        return make

    return Task(
        maker(seen),
        {"vocab": vocab, "length": max(seen[-1][0], tested[-1][0])},
        examples=examples,
        tests=tests,
        make_test=maker(tested),
        ragged=True,
        chance=float(np.mean([1 / pairs for _, pairs, _ in tested])),
        score=both(mean_of_rows, grouped("accuracy at {} pairs", _pairs)),
    )


def _sizes(option: str, value: Any, numbers: int) -> list[tuple[int, int, int]]:
    """(length, pairs, share) of an option's sizes, the shortest first; without shares all have the same."""
    what = "(length, pairs, share)" if numbers == 3 else "(length, pairs)"
    if not isinstance(value, tuple) or not value or any(not isinstance(s, tuple) or len(s) != numbers for s in value):
        example = "((64, 4, 5), (128, 8, 1))" if numbers == 3 else "((64, 4), (128, 8))"
        raise DataError(f"mqar_mix: {option} is sizes {what}, such as {option}={example}, not {value!r}")
    for size in value:
        at_least("mqar_mix", **{f"each number of {option}": (min(size, key=_order), 1)})
    return sorted((*size, 1)[:3] for size in value)


def _order(number: Any) -> float:
    """What is no whole number comes first."""
    return number if isinstance(number, int) and not isinstance(number, bool) else float("-inf")


def _pairs(inputs: Any, targets: Any) -> Any:
    return (targets >= 0).sum(1, keepdim=True)
