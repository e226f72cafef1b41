"""How far ahead a model forecasts a chaotic system: steps until its path has parted from the true one.

The model forecasts `horizon` steps, reads its own forecast, forecasts on. With u the true path and v the forecast one,

    error_t = sqrt(mean over variates of ((v_t - u_t) / deviation)^2)        deviation of the training part

and the steps before error_t first exceeds 0.5 are valid, as counted by Vlachas et al., "Backpropagation Algorithms and
Reservoir Computing in Recurrent Neural Networks for the Forecasting of Complex Spatiotemporal Dynamics", arXiv
1910.05266, 2019.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from formwright.data.source import Source

THRESHOLD = 0.5


def roll_out(model: nn.Module, windows: Tensor, steps: int) -> Tensor:
    """Windows (B, T, V) -> the `steps` after them (B, steps, V), the model reading its own forecasts."""
    length, parts, have = windows.shape[1], [], 0
    while have < steps:
        ahead = model(windows)
        parts.append(ahead)
        have += ahead.shape[1]
        windows = torch.cat([windows, ahead], 1)[:, -length:]
    return torch.cat(parts, 1)[:, :steps]


def path(source: Source, starts: np.ndarray, steps: int, split: str = "test") -> tuple[Tensor, Tensor]:
    """Items `starts` (n,) of a series' split -> their windows (n, T, V) and the `steps` that truly followed them
    (n, steps, V)."""
    horizon = source.facts["horizon"]
    windows, parts = None, []
    for number in range(-(-steps // horizon)):
        inputs, targets = source.take(split, starts + number * horizon, np.zeros(len(starts), dtype=np.uint64))
        windows = inputs if windows is None else windows
        parts.append(targets)
    return windows, torch.cat(parts, 1)[:, :steps]


def valid_steps(
    model: nn.Module,
    source: Source,
    *,
    starts: int = 100,
    steps: int | None = None,
    threshold: float = THRESHOLD,
    split: str = "test",
    batch_size: int = 32,
) -> np.ndarray:
    """Valid steps (starts,) from as many places, spread evenly over a split; at most `steps` (16 horizons, or what the
    split allows) of each are tried. Raises ValueError where the source is no series to be forecast."""
    if source.head != "forecast":
        raise ValueError(f"valid steps are counted on a series to be forecast, but {source.name} is {source.kind} data")
    horizon, count = source.facts["horizon"], source.counts[split]
    most = horizon * (1 + (count - 1) // horizon)
    steps = min(16 * horizon if steps is None else steps, most)
    room = count - horizon * (-(-steps // horizon) - 1)
    chosen = np.unique(np.arange(starts, dtype=np.int64) * room // starts)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    found = []
    try:
        with torch.no_grad():
            for first in range(0, len(chosen), batch_size):
                windows, truth = path(source, chosen[first : first + batch_size], steps, split)
                forecast = roll_out(model, windows.to(device), steps).float().cpu()
                error = (forecast - truth).square().nanmean(-1).sqrt()
                # A forecast that is no number any more has left the path as well; a step without truth says nothing.
                parted = (error > threshold) | ~torch.isfinite(forecast).all(-1)
                found.append(torch.where(parted.any(1), parted.int().argmax(1), steps))
    finally:
        model.train(was_training)
    return torch.cat(found).numpy()
