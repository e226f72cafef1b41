"""Parity: is the number of ones odd? ("Unlocking State-Tracking in Linear RNNs Through Negative
Eigenvalues", arXiv 2411.12537, 2024; Delétang et al., "Neural Networks and the Chomsky Hierarchy", arXiv 2207.02098.)

Bits are the tokens 1 and 2 (a one); the answer slot 0 that follows wants 1 for even, 2 for odd. With running=True the
parity so far is wanted at every bit instead, without a slot. Validation has the training lengths, the test longer ones.
"""

from __future__ import annotations

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task
from formwright.data.tasks.slots import Lengths, lengths, placed, span


@task
def parity(
    *,
    lengths_seen: Lengths = (3, 40),
    lengths_tested: Lengths = (40, 256),
    running: bool = False,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """Whether the ones of a string are even or odd in number. inputs, targets (rows, longest + 1), or (rows, longest)
    with running=True."""
    seen, tested = span("parity", "lengths_seen", lengths_seen), span("parity", "lengths_tested", lengths_tested)
    at_least("parity", examples=(examples, 1), tests=(tests, 1))
    if not isinstance(running, bool):
        raise DataError(f"parity: running is True or False, not {running!r}")

    def maker(bounds: Lengths):
        def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
            sizes = lengths(rng, rows, bounds)
            bits = rng.integers(0, 2, size=(rows, bounds[1]))
            odd = np.cumsum(bits, axis=1) % 2
            if running:
                inside = np.arange(bounds[1]) < sizes[:, None]
                return np.where(inside, bits + 1, 0), np.where(inside, odd + 1, -100)
            last = odd[np.arange(rows), sizes - 1][:, None]
            return placed(bits + 1, sizes, last + 1, np.ones(rows, dtype=np.int64), bounds[1] + 1)

        return make

    facts = {"vocab": 3, "length": max(seen[1], tested[1]) + 1}
    return Task(maker(seen), facts, make_test=maker(tested), examples=examples, tests=tests, chance=0.5)
