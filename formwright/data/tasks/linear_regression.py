"""Linear regression in context:  y = <w, x> + noise e,  w ~ N(0, I), x ~ N(0, C), e ~ N(0, 1), a w for each row.

Garg et al., "What Can Transformers Learn In-Context? A Case Study of Simple Function Classes", arXiv 2208.01066, 2022
(d = 5 with 11 points, d = 20 with 41); with y in a channel of its own: Akyurek et al., "What learning algorithm is
in-context learning? Investigations with linear models", arXiv 2211.15661, 2022.

The tokens are x_1, (y_1, 0, ...), x_2, (y_2, 0, ...), ...; at every x its y is wanted. With `sparsity` s, w keeps s of
its numbers, others are 0. C is diagonal, its i-th standard deviation proportional to i^-skew, its trace d. The score
is the squared error over d, or over s: always saying 0 scores 1 (and noise^2 / d more). In the test part x may have
another skew, or be stretched by `scale_tested`, and prompts may have more points.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, draw_distinct, in_context, task
from formwright.data.tasks.in_context import Predictor

METRIC = "normalised_error"
STEPS = 5  # of gradient descent


@task
def linear_regression(
    *,
    dim: int = 5,
    points: int = 11,
    noise: float = 0.0,
    sparsity: int | None = None,
    skew: float = 0.0,
    skew_tested: float | None = None,
    scale_tested: float = 1.0,
    points_tested: int | None = None,
    apart: bool = False,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """The values of a linear function, after 0, 1, ... examples of it. inputs (rows, 2 points, dim), one channel more
    with y `apart`; targets (rows, 2 points, 1), NaN at each y."""
    name = "linear_regression"
    at_least(name, dim=(dim, 1), points=(points, 1), examples=(examples, 1), tests=(tests, 1))
    at_least(name, sparsity=(dim if sparsity is None else sparsity, 1))
    at_least(name, points_tested=(points if points_tested is None else points_tested, 1))
    if sparsity is not None and sparsity > dim:
        raise DataError(f"{name}: sparsity is {sparsity}, but w has only dim={dim} numbers")
    for option, value in (("noise", noise), ("skew", skew), ("skew_tested", skew_tested or 0.0)):
        if value < 0:
            raise DataError(f"{name}: {option} is {value!r}, but can't be below 0")
    if scale_tested <= 0:
        raise DataError(f"{name}: scale_tested is {scale_tested!r}, but x is stretched by something above 0")
    if not isinstance(apart, bool):
        raise DataError(f"{name}: apart is True or False, not {apart!r}")
    seen = deviations(dim, skew)
    tested = scale_tested * deviations(dim, skew if skew_tested is None else skew_tested)
    number = points if points_tested is None else points_tested
    shifts = ["its x are distributed otherwise"] if (tested != seen).any() else []
    shifts += ["its prompts have another number of points"] if number != points else []
    size = dim if sparsity is None else sparsity

    def maker(deviation: np.ndarray, count: int):
        def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
            w = rng.standard_normal((rows, dim))
            if sparsity is not None:
                kept = np.zeros((rows, dim), dtype=bool)
                np.put_along_axis(kept, draw_distinct(rng, rows, sparsity, dim), True, axis=1)
                w = np.where(kept, w, 0.0)
            x = rng.standard_normal((rows, count, dim)) * deviation
            y = (x * w[:, None]).sum(-1) + noise * rng.standard_normal((rows, count))
            targets = np.full((rows, 2 * count, 1), np.nan, dtype=np.float32)
            targets[:, 0::2, 0] = y
            return in_context.interleaved(x, y, apart), targets

        return make

    def judged(inputs, targets, inputs_tested, targets_tested) -> dict[str, float]:
        x, y = in_context.parted(inputs_tested, apart)
        found = predictors(noise=noise, largest=float(tested.max() ** 2), sparsity=sparsity)
        return {name: float(np.square(predict(x, y) - y).mean()) / size for name, predict in found.items()}

    return Task(
        maker(seen, points),
        {"variates": dim + apart, "outputs": 1, "length": 2 * max(points, number)},
        embed="vectors",
        head="values",
        metric=METRIC,
        lower_is_better=True,
        unit="squared error / dimension",
        examples=examples,
        tests=tests,
        make_test=maker(tested, number) if shifts else None,
        harder=" and ".join(shifts),
        baselines=judged,
        derive=lambda means: {METRIC: means["mse"] / size},
    )


def deviations(dim: int, skew: float) -> np.ndarray:
    """(dim,) standard deviations of x, falling as i^-skew, their squares adding up to dim."""
    fall = np.arange(1, dim + 1) ** -float(skew)
    return fall * np.sqrt(dim / np.square(fall).sum())


def predictors(*, noise: float = 0.0, largest: float = 1.0, sparsity: int | None = None) -> dict[str, Predictor]:
    """What regresses without a model, by name; `largest` is the largest variance that x has."""
    found: dict[str, Predictor] = {
        "always zero": in_context.zero,
        "averaging": in_context.averaging,
        "one gradient step": partial(in_context.gradient_step, largest=largest),
        f"{STEPS} steps of descent": partial(in_context.descent, steps=STEPS),
        "least squares": in_context.least_squares,
    }
    if noise > 0:
        found["ridge"] = partial(in_context.ridge, penalty=noise**2)
    if sparsity is not None:
        found["matching pursuit"] = partial(in_context.matching_pursuit, sparsity=sparsity)
    return found
