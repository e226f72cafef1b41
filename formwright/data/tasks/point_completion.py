"""Point completion, a pattern of noncausal cross attention: from points of one part of an outline, the rest of it.

    log r(t) = sum_{k=1..harmonics} (a_k cos k t + b_k sin k t),   a_k, b_k ~ N(0, (size / k)^2)

The source is a set of points (r cos t, r sin t), in no order, from an arc of the outline; the target's tokens are
directions (cos t, sin t) in the arc not seen, and the value asked for at each is log r. CAB judges noncausal cross
attention by completing point clouds (arXiv 2210.07661, 2022), after PCN: Point Completion Network, arXiv 1808.00671,
2018.
"""

from __future__ import annotations

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task


@task
def point_completion(
    *,
    points: int = 32,
    queries: int = 16,
    harmonics: int = 2,
    hidden: float = 0.3,
    size: float = 0.25,
    noise: float = 0.0,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """The hidden part of an outline, from points of the rest. `points` points of an outline's seen part, and `queries`
    directions in the arc that is hidden, a share `hidden` of the whole round, anywhere. Tokens are (x, y, 0) and (cos
    t, sin t, 1), and the score is the mean squared error of log r. `noise` is the deviation of what is added to the
    points' log r.

    The baselines: the outline that is a circle, the point seen nearest by, and least squares (ridge, knowing all these
    laws), which no model can better."""
    at_least("point_completion", points=(points, 1), queries=(queries, 1), harmonics=(harmonics, 1))
    at_least("point_completion", examples=(examples, 1), tests=(tests, 1))
    for name, value, low, high in (("hidden", hidden, 0, 1), ("size", size, 0, 0.5), ("noise", noise, -1, 0.5)):
        if not low < value < high:
            raise DataError(f"point_completion: {name} is {value}, but must lie between {max(low, 0)} and {high}")
    scale = size / np.arange(1, harmonics + 1)

    def make(rng: np.random.Generator, rows: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        weights = rng.standard_normal((rows, 2 * harmonics)) * np.tile(scale, 2)
        start = rng.uniform(0, 2 * np.pi, (rows, 1))
        width = 2 * np.pi * hidden
        there = start + width * rng.random((rows, queries))
        seen = start + width + (2 * np.pi - width) * rng.random((rows, points))
        r = np.exp((waves(seen, harmonics) @ weights[..., None])[..., 0] + noise * rng.standard_normal((rows, points)))
        source = np.stack([r * np.cos(seen), r * np.sin(seen), np.zeros_like(seen)], -1)
        asked = np.stack([np.cos(there), np.sin(there), np.ones_like(there)], -1)
        return (source, asked), waves(there, harmonics) @ weights[..., None]

    def baselines(_x: tuple, _y: np.ndarray, inputs: tuple, targets: np.ndarray) -> dict[str, float]:
        source, asked = inputs[0].astype(np.float64), inputs[1].astype(np.float64)
        seen, there = (np.arctan2(x[..., 1], x[..., 0]) for x in (source, asked))
        r = np.log(np.hypot(source[..., 0], source[..., 1]))
        far = np.abs(np.angle(np.exp(1j * (there[:, :, None] - seen[:, None, :]))))
        nearest = np.take_along_axis(r, far.argmin(-1), 1)
        a = waves(seen, harmonics)
        prior = np.diag(max(noise, 1e-4) ** 2 / np.tile(scale, 2) ** 2)
        at = np.swapaxes(a, 1, 2)
        weights = np.linalg.solve(at @ a + prior, at @ r[..., None])
        fitted = (waves(there, harmonics) @ weights)[..., 0]
        truth = targets[..., 0]
        answers = {"a circle": np.zeros_like(truth), "the nearest point seen": nearest, "least squares": fitted}
        return {name: float(((answer - truth) ** 2).mean()) for name, answer in answers.items()}

    return Task(
        make,
        {"variates": 3, "outputs": 1, "length": queries},
        embed="vectors",
        head="completion",
        metric="mse",
        lower_is_better=True,
        baselines=baselines,
        examples=examples,
        tests=tests,
    )


def waves(angles: np.ndarray, harmonics: int) -> np.ndarray:
    """(..., n) angles -> (..., n, 2 harmonics): cos t, cos 2t, ..., sin t, sin 2t, ..."""
    turns = angles[..., None] * np.arange(1, harmonics + 1)
    return np.concatenate([np.cos(turns), np.sin(turns)], -1)
