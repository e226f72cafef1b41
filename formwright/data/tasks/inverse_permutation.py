"""Inverse permutation: given a permutation and a string permuted by it, give the string back (Alur et al., "The
Impossibility of Inverse Permutation Learning in Transformer Models", arXiv 2509.24125, 2025).

    p a permutation of 1..n,   y_i = x_{p_i}:   of p_1 .. p_n y_1 .. y_n the model says x_1 .. x_n, all in one pass

    form "decoder"          inputs p y,       answers at y's places: x_j at that of y_j, which a causal model can't know
                            where x_j = y_i stands later, i > j
    form "scratch"          inputs p y s..s,  n empty tokens more, at which the answers stand
    form "encoder_decoder"  source p y, target's inputs s..s

Letters are uniform, so that what a causal model doesn't see it can only guess.
"""

from __future__ import annotations

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, draw_distinct, task
from formwright.data.tasks.scoring import whole_rows

FORMS = ("decoder", "scratch", "encoder_decoder")
SCRATCH = 0


@task
def inverse_permutation(
    *, size: int = 8, letters: int = 16, form: str = "decoder", examples: int = 100_000, tests: int = 3_000
) -> Task:
    """A permuted string put back in order, given the permutation. Strings of `size` letters. Token 0 is empty, 1..size
    are the permutation's numbers, then come the letters. The score that ranks is string_accuracy, the share of strings
    without a mistake."""
    at_least("inverse_permutation", size=(size, 2), letters=(letters, 2), examples=(examples, 1), tests=(tests, 1))
    if form not in FORMS:
        raise DataError(f"inverse_permutation: form is one of {', '.join(FORMS)}, not {form!r}")

    def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray | tuple[np.ndarray, np.ndarray], np.ndarray]:
        order = draw_distinct(rng, rows, size, size)
        string = 1 + size + rng.integers(0, letters, size=(rows, size))
        given = np.concatenate([1 + order, np.take_along_axis(string, order, axis=1)], axis=1)
        empty = np.full((rows, size), SCRATCH, dtype=np.int64)
        if form == "encoder_decoder":
            return (given, empty), string
        inputs = given if form == "decoder" else np.concatenate([given, empty], axis=1)
        unasked = np.full((rows, inputs.shape[1] - size), -100, dtype=np.int64)
        return inputs, np.concatenate([unasked, string], axis=1)

    def baselines(_: np.ndarray, __: np.ndarray, inputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        if form != "decoder":
            return {}
        order = inputs[:, :size] - 1
        later = (np.argsort(order, axis=1) > np.arange(size)).sum(1)
        return {"all that a causal model can see, the rest guessed": float((letters ** -later.astype(float)).mean())}

    length = {"decoder": 2 * size, "scratch": 3 * size, "encoder_decoder": size}[form]
    facts = {"vocab": 1 + size + letters, "length": length}
    if form == "encoder_decoder":
        facts["source_length"] = 2 * size
    return Task(
        make,
        facts,
        embed=f"tokens(position=learned(length={max(length, 2 * size)}))",
        metric="string_accuracy",
        score=whole_rows,
        chance=float(letters) ** -size,
        examples=examples,
        tests=tests,
        baselines=baselines,
    )
