"""What decides a run's result besides model, data and length: written into checkpoints, equal again on resume."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The options of `fit` that bear these names; ValueError names the one that makes no sense."""

    batch_size: int = 32
    accumulate: int = 1
    lr: float = 1e-3
    warmup: float = 0.05
    min_lr: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    seed: int = 0
    evaluate_every: int | None = None
    evaluation_items: int | None = None
    keep_best: bool = False
    enough: float | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "evaluate_every", "evaluation_items"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be above zero and finite, but is {self.lr}")
        if not 0 <= self.min_lr <= 1:
            raise ValueError(f"min_lr is a share of lr, from 0 to 1, but is {self.min_lr}")
        if not self.warmup >= 0:
            raise ValueError(f"warmup is a share of the steps (below 1) or a number of steps, but is {self.warmup}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must not be negative, but is {self.weight_decay}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is the largest gradient norm, above zero, or None; but is {self.clip}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, but is {self.seed}")
