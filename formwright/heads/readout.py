"""One vector for a sequence: the mean over its valid tokens, its last valid token, or its class token."""

from __future__ import annotations

import torch
from torch import Tensor

from formwright.contract import Layout

POOLS = ("mean", "last", "cls")


def read_out(x: Tensor, layout: Layout, pool: str | None, causal: bool, part: str) -> Tensor:
    """x (B, N, D) -> (B, D); of a packed row with S sequences (S, D).

    pool=None takes the class token where there is one, else the last token of a causal stack, else the mean. The mean
    leaves class tokens and padding out. Raises ValueError for "cls" without a class token."""
    if pool is None:
        pool = "last" if causal else "cls" if layout.prefix else "mean"
    if pool == "cls" and not layout.prefix:
        raise ValueError(f"{part}: pool='cls' reads a class token, but the embedding gives none; set cls=True there")
    if layout.offsets is not None:
        return _packed(x[0], layout, pool)
    if pool == "cls":
        return x[:, 0]
    if pool == "last":
        if layout.lengths is None:
            return x[:, -1]
        return x[torch.arange(len(x), device=x.device), layout.lengths.to(x.device) - 1]
    valid = layout.valid(x.device)
    if valid is None:
        return x[:, layout.prefix :].mean(1)
    valid = valid[:, layout.prefix :, None]
    return torch.where(valid, x[:, layout.prefix :], 0).sum(1) / valid.sum(1).clamp(min=1)


def _packed(x: Tensor, layout: Layout, pool: str) -> Tensor:
    bounds = layout.offsets.to(x.device)
    if pool == "cls":
        return x[bounds[:-1]]
    if pool == "last":
        return x[bounds[1:] - 1]
    counts = bounds[1:] - bounds[:-1]
    sums = x.new_zeros(len(counts), x.shape[1]).index_add(0, layout.sequence_ids(x.device), x)
    return sums / counts[:, None].clamp(min=1)


def check_pool(part: str, pool: str | None) -> None:
    """Raise ValueError unless pool is one of POOLS or None."""
    if pool is not None and pool not in POOLS:
        raise ValueError(f"{part}: pool is one of {', '.join(POOLS)}, or left out, not {pool!r}")


def squared_and_absolute(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of squared and absolute errors over the targets that are not NaN, and their number."""
    if outputs.shape != targets.shape:
        raise ValueError(f"predictions are {tuple(outputs.shape)}, but targets {tuple(targets.shape)}")
    known = ~targets.isnan()
    error = torch.where(known, outputs.float() - targets.nan_to_num().float(), 0)
    return error.square().sum(), error.abs().sum(), known.sum()


def regression_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error over the targets that are not NaN; zero where all are."""
    squared, _, count = squared_and_absolute(outputs, targets)
    return squared / count.clamp(min=1)


def regression_scores(outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, int]]:
    """loss and mse (sums of squared errors) and mae (of absolute ones), with the number of targets that are not NaN."""
    squared, absolute, count = squared_and_absolute(outputs, targets)
    number = int(count)
    return {"loss": (squared, number), "mse": (squared, number), "mae": (absolute, number)}
