"""Functions learnt in context: prompts x_1, y_1, x_2, y_2, ... of a function drawn anew for each row, whose value is
wanted at every x; and what learns a function from the examples before, without a model.

A predictor takes x (rows, points, dim) and y (rows, points), reals, and gives (rows, points): what it says of each x
from the examples before it alone, 0 where there are none. Sums over j run over the i examples before x:

    averaging        w = sum_j y_j x_j / i
    least squares    w = X^+ y, the smallest w of those that fit best
    ridge            w = (X^T X + penalty I)^-1 X^T y, the Bayes estimate where penalty = noise^2 / variance of w
    gradient step    w = rate_i X^T y / i,  rate_i = i / (i + dim + 1) / largest variance of x: the best rate there is
                     for isotropic Gaussian x (arXiv 2306.09927, 2023)
    matching pursuit s times, at most i/2, one more number of w is free, that whose column of X goes best with what is
                     left of y, and all that are free are fitted by least squares
    descent          w <- w - rate g,  g = X^T (X w - y), from 0; each rate |g|^2 / |X g|^2, the best for this prompt
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Predictor = Callable[[np.ndarray, np.ndarray], np.ndarray]


def interleaved(x: np.ndarray, y: np.ndarray, apart: bool) -> np.ndarray:
    """x (rows, points, dim), y (rows, points) -> tokens (rows, 2 points, dim): x_1, (y_1, 0, ...), x_2, ...

    With `apart` y has a channel of its own, before those of x: (0, x_1), (y_1, 0, ...), ..., one channel wider."""
    rows, points, dim = x.shape
    tokens = np.zeros((rows, 2 * points, dim + apart), dtype=np.float32)
    tokens[:, 0::2, int(apart) :] = x
    tokens[:, 1::2, 0] = y
    return tokens


def parted(tokens: np.ndarray, apart: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tokens -> x (rows, points, dim) and y (rows, points) of them, in float64."""
    return tokens[:, 0::2, int(apart) :].astype(np.float64), tokens[:, 1::2, 0].astype(np.float64)


def zero(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.zeros_like(y)


def averaging(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    products = x * y[..., None]
    before = np.cumsum(products, axis=1) - products
    return (x * before).sum(-1) / np.maximum(np.arange(x.shape[1]), 1)


def least_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _recursive(x, y, None)


def ridge(x: np.ndarray, y: np.ndarray, *, penalty: float) -> np.ndarray:
    return _recursive(x, y, penalty)


def _recursive(x: np.ndarray, y: np.ndarray, penalty: float | None) -> np.ndarray:
    """Ridge, least squares where penalty is None, one example after another.

    `inverse` is that of X^T X + penalty I, the pseudo-inverse without penalty; `unseen` projects on what is orthogonal
    to all examples. An example in a direction yet unseen updates them as Greville has it, any other as
    Sherman-Morrison."""
    rows, points, dim = x.shape
    out, w = np.zeros((rows, points)), np.zeros((rows, dim))
    inverse = np.zeros((rows, dim, dim)) + (0 if penalty is None else np.eye(dim) / penalty)
    unseen = np.zeros((rows, dim, dim)) + (np.eye(dim) if penalty is None else 0)
    for i in range(points):
        a = x[:, i]
        out[:, i] = (a * w).sum(-1)
        seen = (inverse @ a[..., None])[..., 0]
        new = (unseen @ a[..., None])[..., 0]
        size = np.square(new).sum(-1)
        fresh = (size > 1e-10 * np.square(a).sum(-1))[:, None]
        rest = 1 + (a * seen).sum(-1, keepdims=True)
        gain = np.where(fresh, new / np.where(fresh, size[:, None], 1), seen / rest)
        w = w + gain * (y[:, i] - out[:, i])[:, None]
        across = seen[:, :, None] * gain[:, None, :]
        added = rest[..., None] * gain[:, :, None] * gain[:, None, :] - across.transpose(0, 2, 1)
        inverse = inverse - across + np.where(fresh[..., None], added, 0)
        unseen = unseen - np.where(fresh[..., None], new[:, :, None] * gain[:, None, :], 0)
    return out


def gradient_step(x: np.ndarray, y: np.ndarray, *, largest: float = 1.0) -> np.ndarray:
    """`largest`: the largest variance that x has in any direction."""
    number = np.arange(x.shape[1])
    return averaging(x, y) * number / (number + x.shape[2] + 1) / largest


def descent(x: np.ndarray, y: np.ndarray, *, steps: int) -> np.ndarray:
    rows, points, dim = x.shape
    out = np.zeros((rows, points))
    gram, moment = np.zeros((rows, dim, dim)), np.zeros((rows, dim))
    for i in range(1, points):
        a = x[:, i - 1]
        gram += a[:, :, None] * a[:, None, :]
        moment += a * y[:, i - 1, None]
        w = np.zeros((rows, dim))
        for _ in range(steps):
            g = moment - (gram @ w[..., None])[..., 0]
            curved = (g * (gram @ g[..., None])[..., 0]).sum(-1, keepdims=True)
            w = w + g * np.square(g).sum(-1, keepdims=True) / np.maximum(curved, 1e-30)
        out[:, i] = (x[:, i] * w).sum(-1)
    return out


def matching_pursuit(x: np.ndarray, y: np.ndarray, *, sparsity: int) -> np.ndarray:
    rows, points, dim = x.shape
    out, row = np.zeros((rows, points)), np.arange(rows)
    gram, moment = np.zeros((rows, dim, dim)), np.zeros((rows, dim))
    for i in range(1, points):
        a = x[:, i - 1]
        gram += a[:, :, None] * a[:, None, :]
        moment += a * y[:, i - 1, None]
        scale = np.sqrt(np.maximum(np.einsum("rdd->rd", gram), 1e-30))
        free, w = np.zeros((rows, 0), dtype=np.int64), np.zeros((rows, dim))
        for count in range(1, min(sparsity, i // 2) + 1):
            fit = np.abs(moment - (gram @ w[..., None])[..., 0]) / scale
            np.put_along_axis(fit, free, -1.0, axis=1)
            free = np.concatenate([free, fit.argmax(1)[:, None]], axis=1)
            inner = gram[row[:, None, None], free[:, :, None], free[:, None, :]]
            inner = inner + 1e-10 * np.einsum("rkk->r", inner)[:, None, None] * np.eye(count)
            found = np.linalg.solve(inner, np.take_along_axis(moment, free, axis=1)[..., None])[..., 0]
            np.put_along_axis(w, free, found, axis=1)
        out[:, i] = (x[:, i] * w).sum(-1)
    return out


def nearest_neighbour(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The value at the example nearest to x, the first of those equally near."""
    squares = (x * x).sum(-1)
    away = squares[:, None, :] - 2 * x @ x.transpose(0, 2, 1)
    away[:, ~np.tri(x.shape[1], k=-1, dtype=bool)] = np.inf
    found = np.take_along_axis(y, away.argmin(-1), axis=1)
    found[:, 0] = 0
    return found
