"""Learning curves: the seeds of each contender put on one axis of tokens, with mean, lowest and highest."""

from __future__ import annotations

import numpy as np

from formwright.race.records import Trial
from formwright.report.figures import Table

MOST = 80  # points a line: enough for its course, few enough to see it through the noise of single batches


def lines(table: Table, split: str, score: str) -> list[dict]:
    """Points {name, tokens, seconds, mean, low, high} of every contender, failed ones included as far as they came.

    A seed counts where it has values: nothing is drawn beyond its ends. Values that are not finite are left out.
    Training scores, written at every step, are averaged over windows so that lines of many steps stay readable.
    """
    found = []
    for row in table.everyone:
        trials = [trial for trial in row.contender.trials if trial.phase == "main"]
        seeds = [seed for trial in trials if (seed := _curve(trial, split, score)).shape[1]]
        if not seeds:
            continue
        grid = np.unique(np.concatenate([seed[0] for seed in seeds]))
        if len(grid) > MOST:
            grid = grid[np.unique(np.linspace(0, len(grid) - 1, MOST).round().astype(int))]
        for tokens in grid:
            covering = [seed for seed in seeds if seed[0, 0] <= tokens <= seed[0, -1]]
            values = [float(np.interp(tokens, seed[0], seed[2])) for seed in covering]
            seconds = [float(np.interp(tokens, seed[0], seed[1])) for seed in covering]
            point = {"name": row.name, "tokens": int(tokens), "seconds": float(np.mean(seconds))}
            found.append(point | {"mean": float(np.mean(values)), "low": min(values), "high": max(values)})
    return found


def _curve(trial: Trial, split: str, score: str) -> np.ndarray:
    """(3, n): tokens, seconds, value of a trial's finite points, thinned to at most MOST by averaging windows."""
    rows = [(p.tokens, p.seconds, p.value) for p in trial.points if p.split == split and p.score == score]
    curve = np.array(rows, dtype=float).reshape(-1, 3).T
    curve = curve[:, np.isfinite(curve[2])]
    if curve.shape[1] > MOST:
        curve = np.stack([window.mean(axis=1) for window in np.array_split(curve, MOST, axis=1)], axis=1)
    return curve
