"""The learning rate of each step: a linear warm-up, then half a cosine down to a floor.

    lr_t = lr (t + 1) / w                                             t < w
    lr_t = lr (f + (1 - f) (1 + cos(pi (t - w + 1) / (T - w))) / 2)   w <= t < T

with T steps, w warm-up steps and f = min_lr. The last step runs at lr f.
SGDR: Stochastic Gradient Descent with Warm Restarts, arXiv 1608.03983, 2016 (without its restarts).
"""

from __future__ import annotations

import math


def warmup_steps(steps: int, warmup: float) -> int:
    """How many of `steps` warm up: a share of them where warmup < 1, else that many; never all."""
    if not warmup >= 0:
        raise ValueError(f"warmup is a share of the steps (below 1) or a number of steps, not {warmup}")
    wanted = round(steps * warmup) if warmup < 1 else int(warmup)
    return min(wanted, steps - 1)


def learning_rate(step: int, steps: int, *, lr: float, warmup: float = 0.05, min_lr: float = 0.1) -> float:
    """The learning rate of step `step` of 0..steps-1; `min_lr` is the floor as a share of lr."""
    warm = warmup_steps(steps, warmup)
    if step < warm:
        return lr * (step + 1) / warm
    done = (step - warm + 1) / (steps - warm)
    return lr * (min_lr + (1 - min_lr) * (1 + math.cos(math.pi * min(done, 1.0))) / 2)
