"""MNIST-1D: curves of ten kinds, padded, stretched, scaled, shifted, sheared and made noisy; which kind is it?

A template of 12 points gets 36 to 60 zeros behind it and is stretched to 72 points; it is multiplied by 1 + 0.4 (u -
1/2), u uniform in [0, 1), and turned around its ends by 0 to 47 points; where nothing was drawn comes noise of
deviation `noise`, smoothed by a Gaussian of deviation 2, and everywhere noise of deviation 0.02; a slope of up to
0.75 / 2 either way is taken off, and 40 of the points are kept, by interpolation. 4000 signals are for training and
1000 for the test, as published, 1000 more for validation, all classes in equal number. `shuffled` puts the 40 points
into one fixed random order: nearness means nothing any more. Greydanus and Kobak, "Scaling Down Deep Learning with
MNIST-1D", arXiv 2011.14439, 2020; templates and settings are those of the authors' package mnist1d.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task

# The curves of the digits 0 to 9, by hand, as in the package: numbers that define the task.
TEMPLATES = np.array([
    [5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5],
    [5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5],
    [5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5],
    [5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5],
    [5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5],
    [5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5],
    [5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5],
    [5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5],
    [5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5],
    [5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5],
])  # fmt: skip
DRAWN, PADDING, WIDE, KEPT = 12, (36, 60), 72, 40
SCALE, SHIFTS, SHEAR, GRAIN = 0.4, 48, 0.75, 0.02
MEAN, DEVIATION = -0.006, 0.1546  # of all signals, by which they are z-scored


def templates() -> np.ndarray:
    """(10, 12): each curve with deviation 1/6, beginning and ending at 0."""
    curves = TEMPLATES / TEMPLATES.std(1, keepdims=True)
    return (curves - curves[:, :1]) / 6


@task
def mnist1d(*, shuffled: bool = False, noise: float = 0.25, examples: int = 4000, tests: int = 1000) -> Task:
    """Ten kinds of noisy curves of 40 points. inputs (rows, 40, 1), targets (rows,)."""
    at_least("mnist1d", examples=(examples, 10), tests=(tests, 10))
    if not isinstance(shuffled, bool):
        raise DataError("mnist1d: shuffled is True or False")
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise <= 10:
        raise DataError(f"mnist1d: noise is {noise!r}, but must be a deviation between 0 and 10")
    order = np.random.Generator(np.random.PCG64(1)).permutation(KEPT) if shuffled else np.arange(KEPT)

    def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.permutation(np.arange(rows) % 10)
        signals = (draw(rng, labels, noise) - MEAN) / DEVIATION
        return signals[:, order, None].astype(np.float32), labels

    return Task(
        make,
        {"variates": 1, "length": KEPT, "classes": 10},
        embed="vectors",
        head="classify",
        examples=examples,
        tests=tests,
        chance=0.1,
        baselines=lambda seen, answers, tested, targets: baselines(make, examples, tested, targets),
    )


def draw(rng: np.random.Generator, labels: np.ndarray, noise: float) -> np.ndarray:
    """(rows, 40) signals of these digits."""
    rows = len(labels)
    padded = np.zeros((rows, DRAWN + PADDING[1]))
    padded[:, :DRAWN] = templates()[labels]
    length = DRAWN + rng.integers(PADDING[0], PADDING[1] + 1, size=rows)
    place = np.linspace(0, 1, WIDE) * (length - 1)[:, None]
    wide = between(padded, place) * (1 + SCALE * (rng.random((rows, 1)) - 0.5))
    drawn = place < DRAWN  # up to the first zero of the padding
    shift = (np.arange(WIDE) - rng.integers(0, SHIFTS, size=(rows, 1))) % WIDE
    wide, drawn = np.take_along_axis(wide, shift, 1), np.take_along_axis(drawn, shift, 1)
    wide = np.where(drawn, wide, smooth(noise * rng.standard_normal((rows, WIDE))))
    wide += GRAIN * rng.standard_normal((rows, WIDE))
    wide -= SHEAR * (rng.random((rows, 1)) - 0.5) * np.linspace(-0.5, 0.5, WIDE)
    return between(wide, np.broadcast_to(np.linspace(0, WIDE - 1, KEPT), (rows, KEPT)))


def between(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Rows of values at real places, by linear interpolation."""
    left = np.clip(np.floor(place).astype(np.int64), 0, values.shape[1] - 2)
    share = place - left
    here, there = np.take_along_axis(values, left, 1), np.take_along_axis(values, left + 1, 1)
    return here * (1 - share) + there * share


def smooth(values: np.ndarray, deviation: float = 2.0) -> np.ndarray:
    """Rows of values under a Gaussian cut at four deviations, mirrored at the ends."""
    reach = int(4 * deviation + 0.5)
    weight = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weight /= weight.sum()
    padded = np.pad(values, ((0, 0), (reach, reach)), mode="symmetric")
    return sum(w * padded[:, k : k + values.shape[1]] for k, w in enumerate(weight))


def baselines(make: Callable, number: int, tested: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """What needs no sequence model, from as many signals as are trained on (others of the same law)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    seen, answers = make(np.random.Generator(np.random.PCG64(0)), min(number, 4000))
    models = {"logistic regression": LogisticRegression(max_iter=300), "the nearest neighbour": KNeighborsClassifier(1)}
    return {
        name: float(model.fit(seen[..., 0], answers).score(tested[..., 0], targets)) for name, model in models.items()
    }
