"""Lorenz-96 (Lorenz, "Predictability: a problem partly solved", ECMWF seminar, 1996), set up and split as Vlachas et
al., arXiv 1910.05266, 2019: 40 variables, forcing 8 (or 10), Runge-Kutta steps of 0.01 from a state near x = forcing,
100,000 of them thrown away, 200,000 kept, the first half for training (its last tenth for validation), the second half
for testing. See formwright/data/dynamics.py.
"""

from __future__ import annotations

import numpy as np

from formwright.data.dynamics import Opener, halves, run_lorenz96, trajectory
from formwright.data.source import DataError
from formwright.data.tasks import at_least, task

EXPONENTS = {8.0: 1.68, 10.0: 2.27}  # the largest Lyapunov exponent of 40 variables


@task
def lorenz96(
    *,
    variables: int = 40,
    forcing: float = 8.0,
    step: float = 0.01,
    every: int = 1,
    samples: int = 200_000,
    transient: int = 100_000,
    input_length: int = 64,
    horizon: int = 32,
) -> Opener:
    """Forecast a chaotic ring of variables, the Lorenz-96 system. Every `every`-th step is a row; a window reads
    `input_length` rows and forecasts `horizon`."""
    at_least("lorenz96", variables=(variables, 4), every=(every, 1), transient=(transient, 0))
    at_least("lorenz96", samples=(samples, 100), input_length=(input_length, 1), horizon=(horizon, 1))
    if not 0 < step <= 0.05:
        raise DataError(f"lorenz96: step is {step!r}, but must lie above 0 and be at most 0.05, or the system blows up")
    if not 0 < abs(forcing) <= 100:
        raise DataError(f"lorenz96: forcing is {forcing!r}; 8 and 10 are chaotic and usual, up to 100 is possible")
    made_of = {
        "system": "lorenz96",
        "variables": variables, "forcing": float(forcing), "step": float(step), "every": every, "samples": samples,
        "transient": transient,
    }  # fmt: skip

    def run(rng: np.random.Generator) -> np.ndarray:
        start = forcing + 0.01 * (2 * rng.random(variables) - 1)
        return run_lorenz96(start, float(forcing), step, samples, every=every, transient=transient)

    notes = []
    if variables == 40 and forcing in EXPONENTS:
        rows = 1 / (EXPONENTS[forcing] * step * every)
        notes.append(f"A Lyapunov time, in which small errors grow by a factor of e, is {rows:.0f} rows.")
    names = [f"x{i + 1}" for i in range(variables)]
    return trajectory(
        made_of, run, bounds=halves(samples), input_length=input_length, horizon=horizon, names=names, notes=notes
    )
