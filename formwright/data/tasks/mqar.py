"""Multi-query associative recall (Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models",
arXiv 2312.04927, 2023).

A context k1 v1 ... kn vn of n = `pairs` keys and values, then each key once more, at 2n + 2g: the model says the key's
value there. Keys are drawn from 1..V/2-1, values from V/2..V-1, both without replacement. The gaps g are drawn without
replacement from 0..(L-2n)/2-1 with p(g) proportional to (g+1)^(power-1): mostly near. The value is never shown after a
query. Every other place holds 0, or (filler="random") a uniform token.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, draw_distinct, task


@task
def mqar(
    *,
    pairs: int = 16,
    length: int = 128,
    vocab: int = 8192,
    power: float = 0.01,
    filler: str = "zeros",
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """The value of each of `pairs` keys. inputs, targets (rows, length); -100 where nothing is asked."""
    at_least("mqar", examples=(examples, 1), tests=(tests, 1))
    make = recall_maker("mqar", pairs, length, vocab, power, filler)
    facts = {"vocab": vocab, "length": length}
    return Task(make, facts, examples=examples, tests=tests, chance=1 / pairs)


def recall_maker(
    name: str, pairs: int, length: int, vocab: int, power: float, filler: str
) -> Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]:
    """What makes rows of `pairs` pairs. Raises DataError, in the name of the task `name`, where they don't fit."""
    at_least(name, pairs=(pairs, 1), length=(length, 4), vocab=(vocab, 4))
    if filler not in ("zeros", "random"):
        raise DataError(f"{name}: filler is 'zeros' or 'random', not {filler!r}")
    if length % 2 or 4 * pairs > length:
        raise DataError(
            f"{name}: {pairs} pairs and their queries need an even length of at least {4 * pairs}, but length={length}"
        )
    if vocab % 2 or vocab // 2 - 1 < pairs:
        raise DataError(f"{name}: {pairs} pairs need an even vocab of at least {2 * pairs + 2}, but vocab={vocab}")
    half, context, space = vocab // 2, 2 * pairs, (length - 2 * pairs) // 2
    weight = np.arange(1, space + 1, dtype=np.float64) ** (power - 1)

    def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        keys = 1 + draw_distinct(rng, rows, pairs, half - 1)
        values = half + draw_distinct(rng, rows, pairs, half)
        # weighted draws without replacement: the first `pairs` arrivals of exponential clocks with these rates
        arrival = -np.log1p(-rng.random((rows, space))) / weight
        gaps = np.argsort(arrival, axis=1, kind="stable")[:, :pairs]
        inputs = np.zeros((rows, length), dtype=np.int64)
        inputs[:, 0:context:2], inputs[:, 1:context:2] = keys, values
        np.put_along_axis(inputs, context + 2 * gaps, keys, axis=1)
        targets = np.full((rows, length), -100, dtype=np.int64)
        np.put_along_axis(targets, context + 2 * gaps, values, axis=1)
        if filler == "random":
            inputs = np.where(inputs == 0, rng.integers(0, vocab, size=inputs.shape), inputs)
        return inputs, targets

    return make
