"""What answers without a model score: forecasts by rule of thumb, commonest answers, linear models, compressors.

A forecast of the `horizon` rows y after a window x (T, V), each variate by itself:

    the last value              y_h = x_T
    a season ago                y_h = the newest value known when the forecast is made that lies whole seasons before it
    the mean of the window      y_h = mean of x
    a ridge regression          y = W^T x + b, or y - x_T = W^T (x_{1..T-1} - x_T) + b, W the same for all variates: the
                                Linear and NLinear of "Are Transformers Effective for Time Series Forecasting?",
                                arXiv 2205.13504, 2022, in closed form; the better on validation

Linear models are fitted to part of the training items (see the constants), their penalty chosen on validation. All are
scored on the test part in the source's metric, by the rules that hold for models: what is missing is not scored. Items
beyond a bound are thinned out evenly.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable

import numpy as np

from formwright.data import cache as caching

VERSION = 2  # of what is worked out here
SLOW = 0.05  # seconds from which on the scores are kept on disk
WINDOWS = 1000  # of the test part that forecasts are scored on, fewer where they are wide
NUMBERS = 5_000_000  # in these windows, at most
ROWS = 20_000  # pairs of a window and a variate, or rows of a table, that a ridge regression sees
FEW_ROWS = 2000  # rows that a logistic regression sees
WIDE = 1024  # inputs from which on no linear model is fitted to items
PENALTIES = 10.0 ** np.arange(-6, 3)  # of a ridge regression, times the number of rows
TRAIN_BYTES, TEST_BYTES = 32 << 20, 4 << 20

Fit = Callable[[np.ndarray], np.ndarray]


def kept(cache: str | None, fingerprint: str, scores: Callable[[], dict[str, float]]) -> dict[str, float]:
    """scores(), those that are numbers, worked out once for a source where that takes time."""
    name = "baselines-" + caching.digest(VERSION, fingerprint)
    place = caching.root(cache) / name / "scores.json"
    if place.is_file():
        return caching.load_json(place)
    began = time.perf_counter()
    found = {name: score for name, score in scores().items() if math.isfinite(score)}
    if time.perf_counter() - began >= SLOW:
        caching.entry(cache, name, lambda folder: caching.save_json(folder / "scores.json", found))
    return found


def thinned(count: int, limit: int) -> np.ndarray:
    """At most `limit` of 0..count-1, evenly spread: the items that Source.evaluation gives with that limit."""
    chosen = max(1, min(limit, count))
    return np.arange(chosen, dtype=np.int64) * count // chosen


def mse(forecast: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared error where the truth is known; NaN where it is nowhere."""
    known = ~np.isnan(truth)
    return float(np.square(forecast[known] - truth[known], dtype=np.float64).mean()) if known.any() else float("nan")


def forecasts(
    inputs: np.ndarray,
    targets: np.ndarray,
    starts: dict[str, tuple[int, int]],
    input_length: int,
    horizon: int,
    season: int | None,
) -> dict[str, float]:
    """Scores (mse) of the rules of thumb on a series' test windows. inputs, targets (rows, V) z-scored, without and
    with NaN; starts: split -> first window's first row, number of windows."""
    first, count = starts["test"]
    wide = (input_length + horizon) * inputs.shape[1]
    begin = first + thinned(count, max(32, min(WINDOWS, NUMBERS // wide)))
    now = begin + input_length - 1
    truth = targets[begin[:, None] + input_length + np.arange(horizon)]
    scores = {"the last value": mse(np.broadcast_to(inputs[now][:, None], truth.shape), truth)}
    if season is not None:
        ahead = 1 + np.arange(horizon)
        back = ahead - season * -(-ahead // season)
        scores["a season ago"] = mse(inputs[now[:, None] + back], truth)
    if input_length > 1:
        mean = inputs[begin[:, None] + np.arange(input_length)].mean(1, keepdims=True)
        scores["the mean of the window"] = mse(np.broadcast_to(mean, truth.shape), truth)
    fit = _window_ridge(inputs, targets, starts, input_length, horizon)
    if fit is not None:
        windows = inputs[begin[:, None] + np.arange(input_length)].transpose(0, 2, 1)
        scores["a ridge regression"] = mse(fit(windows).transpose(0, 2, 1), truth)
    return scores


def _window_ridge(
    inputs: np.ndarray, targets: np.ndarray, starts: dict[str, tuple[int, int]], length: int, horizon: int
) -> Fit | None:
    """The ridge regression (..., T) -> (..., horizon) that is best on validation; None where hardly any training window
    has all its targets."""
    rng = np.random.Generator(np.random.PCG64(0))

    def draw(split: str, limit: int) -> tuple[np.ndarray, np.ndarray]:
        first, count = starts[split]
        pairs = count * inputs.shape[1]
        drawn = rng.choice(pairs, limit, replace=False) if pairs > limit else np.arange(pairs)
        start, variate = first + drawn[:, None] // inputs.shape[1], drawn[:, None] % inputs.shape[1]
        seen = inputs[start + np.arange(length), variate]
        return seen.astype(np.float64), targets[start + length + np.arange(horizon), variate].astype(np.float64)

    window, future = draw("train", ROWS)
    whole = ~np.isnan(future).any(1)
    if whole.sum() < 2:
        return None
    window, future = window[whole], future[whole]
    fits = ridges(window, future)
    if length > 1:
        fits += map(_from_the_last, ridges(window[:, :-1] - window[:, -1:], future - window[:, -1:]))
    return _best(fits, *draw("validation", FEW_ROWS))


def _from_the_last(fit: Fit) -> Fit:
    return lambda x: fit(x[..., :-1] - x[..., -1:]) + x[..., -1:]


def _best(fits: list[Fit], x: np.ndarray, y: np.ndarray) -> Fit:
    """The one of least error; the most penalised of the first kind where no y is known."""
    errors = [mse(fit(x), y) for fit in fits]
    return fits[int(np.nanargmin(errors))] if not np.isnan(errors).all() else fits[len(PENALTIES) - 1]


def ridges(x: np.ndarray, y: np.ndarray) -> list[Fit]:
    """Ridge regressions of y (n, outputs) on x (n, F), one for each penalty: (..., F) -> (..., outputs)."""
    centre, middle = x.mean(0), y.mean(0)
    x, y = x - centre, y - middle
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    turned = vectors.T @ (x.T @ y / len(x))

    def fit(penalty: float) -> Fit:
        weights = vectors @ (turned / (np.maximum(values, 0)[:, None] + penalty))
        return lambda new: (new - centre) @ weights + middle

    return [fit(float(penalty)) for penalty in PENALTIES]


def season_of(values: np.ndarray) -> int | None:
    """The lag, in rows, of the highest peak of the autocorrelation (mean over variates, straight lines taken away) of
    values (rows, V) without NaN, at most a third of the rows; None where no peak reaches 0.2."""
    rows = len(values)
    if rows < 12:
        return None
    centred = values[-10_000:].astype(np.float64)
    rows = len(centred)
    moment = np.stack([np.ones(rows), np.linspace(-1, 1, rows)], 1)
    centred = centred - moment @ np.linalg.lstsq(moment, centred, rcond=None)[0]
    spectrum = np.fft.rfft(centred, 2 * rows, axis=0)
    product = np.fft.irfft((spectrum * spectrum.conj()).real, axis=0)[: rows // 3 + 2]
    some = product[0] > 1e-9 * rows
    if not some.any():
        return None
    # Divided by the number of products of each lag, or long lags would look weaker than they are.
    correlation = (product[:, some] / product[0, some]).mean(1) * rows / (rows - np.arange(len(product)))
    inner = correlation[1:-1]
    peaks = 1 + np.flatnonzero((inner > correlation[:-2]) & (inner >= correlation[2:]))
    peaks = peaks[peaks >= 2]
    if not len(peaks) or correlation[peaks].max() < 0.2:
        return None
    # Whole numbers of seasons peak nearly as high: the first of those near the highest is the season.
    return int(peaks[correlation[peaks] >= 0.9 * correlation[peaks].max()][0])


Features = Callable[[np.ndarray], np.ndarray]  # rows -> what a linear model sees of them (rows, F)


def items(answers: np.ndarray, parts: dict[str, np.ndarray], features: Features | None) -> dict[str, float]:
    """Scores of the answers (n,) of classes, (n, N) of tokens or (n, outputs) of numbers; parts: split -> rows; without
    features, or with more than WIDE of them, no linear model is fitted."""
    if features is not None and not 0 < features(parts["train"][:1]).shape[1] <= WIDE:
        features = None
    if answers.dtype.kind == "f":
        return values(answers, parts, features)
    return classes(answers, parts, features) if answers.ndim == 1 else tokens(answers, parts)


def tokens(answers: np.ndarray, parts: dict[str, np.ndarray]) -> dict[str, float]:
    """Accuracy on the test part of the token commonest in training; answers (n, N), those below 0 not scored."""
    seen, truth = answers[parts["train"]], answers[parts["test"]]
    seen, truth = seen[seen >= 0], truth[truth >= 0]
    if not seen.size * truth.size:
        return {}
    return {"the commonest token": float((truth == np.bincount(seen).argmax()).mean())}


def classes(answers: np.ndarray, parts: dict[str, np.ndarray], features: Features | None) -> dict[str, float]:
    """Accuracies on the test part of the class commonest in training, and of a logistic regression; answers (n,)."""
    truth = answers[parts["test"]]
    scores = {"the commonest class": float((truth == np.bincount(answers[parts["train"]]).argmax()).mean())}
    if features is None:
        return scores
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    rows = {split: index[thinned(len(index), FEW_ROWS)] for split, index in parts.items()}
    if len(np.unique(answers[rows["train"]])) < 2:
        return scores
    seen, check = features(rows["train"]), features(rows["validation"])
    best = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # stopped early, it is still a baseline
        for strength in (0.01, 0.1, 1.0):
            model = LogisticRegression(C=strength, max_iter=200)
            model.fit(seen, answers[rows["train"]])
            right = model.score(check, answers[rows["validation"]])
            if best is None or right > best[0]:
                best = right, model
    rest = parts["test"][thinned(len(parts["test"]), ROWS)]
    return scores | {"a logistic regression": float(best[1].score(features(rest), answers[rest]))}


def values(answers: np.ndarray, parts: dict[str, np.ndarray], features: Features | None) -> dict[str, float]:
    """Errors (mse) on the test part of the training mean, and of a ridge regression; answers (n, outputs), NaN where
    not known."""
    truth = answers[parts["test"]]
    known = ~np.isnan(answers[parts["train"]]).all(0)
    mean = np.zeros(answers.shape[1])
    mean[known] = np.nanmean(answers[parts["train"]][:, known], axis=0, dtype=np.float64)
    scores = {"the mean": mse(np.broadcast_to(mean, truth.shape), truth)}
    if features is None:
        return scores
    train = parts["train"][thinned(len(parts["train"]), ROWS)]
    train = train[~np.isnan(answers[train]).any(1)]
    if len(train) < 2:
        return scores
    fits = ridges(features(train).astype(np.float64), answers[train].astype(np.float64))
    check = parts["validation"][thinned(len(parts["validation"]), FEW_ROWS)]
    best = _best(fits, features(check), answers[check])
    rest = parts["test"][thinned(len(parts["test"]), ROWS)]
    return scores | {"a ridge regression": mse(best(features(rest)), answers[rest])}


def encoded(columns: np.ndarray, categories: tuple[int, ...]) -> np.ndarray:
    """A table's inputs (n, numeric + categorical) -> features with a column for each category (n, F)."""
    plain = columns.shape[1] - len(categories)
    parts = [columns[:, :plain]]
    for place, number in enumerate(categories):
        parts.append(columns[:, plain + place, None] == np.arange(number, dtype=np.float32))
    return np.concatenate(parts, 1).astype(np.float32)


def text(train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Bits per byte on the test part (its first bytes, uint8): of the training part's bytes by themselves, of each byte
    given the one before it, and of gzip on the test part alone."""
    train, test = np.asarray(train[:TRAIN_BYTES]), np.asarray(test[:TEST_BYTES])
    single = np.bincount(train, minlength=256) + 1.0
    single /= single.sum()
    double = np.zeros(1 << 16)
    for start in range(0, len(train) - 1, 1 << 22):
        piece = train[start : start + (1 << 22) + 1].astype(np.int64)
        double += np.bincount(piece[:-1] << 8 | piece[1:], minlength=1 << 16)
    double = double.reshape(256, 256)
    # A byte never seen after another gets its share of two observations that are spread as bytes are.
    given = (double + 2 * single) / (double.sum(1, keepdims=True) + 2)
    scores = {
        "bytes by themselves": float(-np.log2(single[test]).mean()),
        "bytes by the one before": float(-np.log2(given[test[:-1], test[1:]]).mean()),
    }
    squeezed = zlib.compressobj(9, wbits=31)
    return scores | {"gzip": 8 * (len(squeezed.compress(test.tobytes())) + len(squeezed.flush())) / len(test)}
