"""In-context recall and noisy in-context recall of MAD (Poli et al., "Mechanistic Design and Scaling of Hybrid
Architectures", arXiv 2403.17844, 2024).

L/2 pairs k1 v1 k2 v2 ...: keys uniform over the first half of the tokens, each key's value drawn once for the whole row
from the second half; the last pair has a key that stood there before, all of those alike. The model is trained to say
every next token, and scored on the values of keys that it has seen already, as the mean over values of the share that
is right. In the noisy form each pair but the last becomes two noise tokens with probability `noise` (one is spared).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task
from formwright.data.tasks.occurrences import first_seen
from formwright.data.tasks.scoring import macro, macro_share, per_class


@task
def mad_recall(*, length: int = 128, vocab: int = 16, examples: int = 12_800, tests: int = 1_280) -> Task:
    """The value of a key seen before. inputs, targets (rows, length - 1)."""
    return _recall("mad_recall", length, vocab, 0, 0.0, examples, tests)


@task
def mad_noisy_recall(
    *,
    length: int = 128,
    vocab: int = 32,
    noise_tokens: int = 16,
    noise: float = 0.2,
    examples: int = 12_800,
    tests: int = 1_280,
) -> Task:
    """mad_recall among noise tokens, the last `noise_tokens` of `vocab`. inputs, targets (rows, length - 1)."""
    at_least("mad_noisy_recall", noise_tokens=(noise_tokens, 1))
    if isinstance(noise, bool) or not isinstance(noise, (int, float)) or not 0 <= noise < 1:
        raise DataError(f"mad_noisy_recall: noise is {noise!r}, but is a probability of at least 0 and below 1")
    return _recall("mad_noisy_recall", length, vocab, noise_tokens, noise, examples, tests)


def _recall(name: str, length: int, vocab: int, noise_tokens: int, noise: float, examples: int, tests: int) -> Task:
    at_least(name, length=(length, 4), vocab=(vocab, 4 + noise_tokens), examples=(examples, 1), tests=(tests, 1))
    if length % 2 or (vocab - noise_tokens) % 2:
        raise DataError(
            f"{name}: length and the tokens of keys and values are even numbers, but length={length} and "
            f"{vocab - noise_tokens} tokens are no noise"
        )
    pairs, half = length // 2, (vocab - noise_tokens) // 2

    def make(rng: np.random.Generator, rows: int, seen_alone: bool) -> tuple[np.ndarray, np.ndarray]:
        row = np.arange(rows)[:, None]
        keys = rng.integers(0, half, size=(rows, pairs))
        value_of = rng.integers(half, 2 * half, size=(rows, half))
        noisy = rng.random((rows, pairs)) < noise
        noisy[row, rng.integers(0, pairs - 1, size=(rows, 1))] = noisy[:, -1:] = False
        shown = np.zeros((rows, half), dtype=bool)
        shown[np.nonzero(~noisy[:, :-1])[0], keys[:, :-1][~noisy[:, :-1]]] = True
        keys[:, -1] = np.where(shown, rng.random((rows, half)), -1).argmax(1)
        known = first_seen(np.where(noisy, half + np.arange(pairs), keys)) < np.arange(pairs)
        tokens = np.stack([keys, value_of[row, keys]], axis=2)
        if noise_tokens:
            tokens = np.where(noisy[..., None], rng.integers(2 * half, vocab, size=tokens.shape), tokens)
        targets = tokens.copy()
        if seen_alone:
            targets[..., 0] = -100
            targets[..., 1][~known] = -100
        return tokens.reshape(rows, length)[:, :-1], targets.reshape(rows, length)[:, 1:]

    return Task(
        partial(make, seen_alone=False),
        {"vocab": vocab, "length": length - 1},
        metric="macro_accuracy",
        examples=examples,
        tests=tests,
        make_validation=partial(make, seen_alone=True),
        chance=1 / half,
        baselines=partial(commonest_so_far, half, 2 * half),
        score=per_class,
        derive=macro,
    )


def commonest_so_far(
    low: int,
    high: int,
    inputs: np.ndarray,
    targets: np.ndarray,
    inputs_tested: np.ndarray,
    targets_tested: np.ndarray,
) -> dict[str, float]:
    """The score of the token of low..high-1 that stood most often in the row so far, whatever the key."""
    number = np.cumsum(inputs_tested[..., None] == np.arange(low, high), axis=1, dtype=np.int32)
    return {"the row's commonest value so far": macro_share(low + number.argmax(-1), targets_tested)}
