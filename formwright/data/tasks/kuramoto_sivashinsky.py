"""The Kuramoto-Sivashinsky equation, set up and split as Vlachas et al., arXiv 1910.05266, 2019: a circle of length
100, 512 points, ETDRK4 steps of 0.25 from small noise, 10,000 of them thrown away, 200,000 kept, the first half for
training (its last tenth for validation), the second half for testing. See formwright/data/dynamics.py.

All 512 points are integrated, but by default every eighth is seen, which is finer than the waves of the solution, and
makes a window eight times as small. points=512 gives them all.
"""

from __future__ import annotations

import numpy as np

from formwright.data.dynamics import Opener, halves, run_kuramoto_sivashinsky, trajectory
from formwright.data.source import DataError
from formwright.data.tasks import at_least, task

EXPONENT = 0.088  # the largest Lyapunov exponent at length 100


@task
def kuramoto_sivashinsky(
    *,
    length: float = 100.0,
    grid: int = 512,
    points: int = 64,
    step: float = 0.25,
    every: int = 1,
    samples: int = 200_000,
    transient: int = 10_000,
    input_length: int = 64,
    horizon: int = 32,
) -> Opener:
    """Forecast chaos in space and time, the Kuramoto-Sivashinsky equation at `points` places. Every `every`-th step is
    a row; a window reads `input_length` rows and forecasts `horizon`."""
    name = "kuramoto_sivashinsky"
    at_least(name, grid=(grid, 16), points=(points, 1), every=(every, 1), transient=(transient, 0))
    at_least(name, samples=(samples, 100), input_length=(input_length, 1), horizon=(horizon, 1))
    if grid % points:
        raise DataError(f"{name}: points={points} must divide grid={grid}")
    if not 0 < step <= 0.5:
        raise DataError(f"{name}: step is {step!r}, but must lie above 0 and be at most 0.5")
    if not 0 < length <= 0.75 * grid:
        raise DataError(
            f"{name}: a length of {length!r} needs a grid of more than {int(length / 0.75)} points, but grid={grid}"
        )
    made_of = {
        "system": name,
        "length": float(length), "grid": grid, "points": points, "step": float(step), "every": every,
        "samples": samples, "transient": transient,
    }  # fmt: skip

    def run(rng: np.random.Generator) -> np.ndarray:
        start = 0.01 * (rng.random(grid) - 0.5)
        return run_kuramoto_sivashinsky(
            start - start.mean(), float(length), step, samples, every=every, transient=transient, points=points
        )

    notes = []
    if length == 100:
        rows = 1 / (EXPONENT * step * every)
        notes.append(f"A Lyapunov time, in which small errors grow by a factor of e, is {rows:.0f} rows.")
    names = [f"u{i + 1}" for i in range(points)]
    return trajectory(
        made_of, run, bounds=halves(samples), input_length=input_length, horizon=horizon, names=names, notes=notes
    )
