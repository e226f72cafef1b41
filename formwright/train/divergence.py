"""When a run is past saving, and when it only stumbled.

A step whose loss or gradient is not finite is skipped: the weights stay as they were, and the event is reported. Three
such steps in a row, or more of them than a fiftieth of the run (and ten), end it.

A run has also diverged when, after the warm-up, its running loss r_t = 0.9 r_{t-1} + 0.1 loss_t has stayed above three
times the run's start (the mean of its first five losses; start + 2 |start| in general) for 20 steps and has not fallen
over them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FIRST = 5
DECAY = 0.9
PATIENCE = 20
IN_A_ROW = 3
FORGIVEN = 10


class Diverged(RuntimeError):
    """A run that cannot be saved. The message names the cause, the step, the value and the learning rate."""

    def __init__(self, cause: str, *, step: int, value: float, lr: float):
        super().__init__(f"training diverged: {cause}; try a lower learning rate or a longer warm-up")
        self.cause, self.step, self.value, self.lr = cause, step, value, lr


@dataclass
class Guard:
    """What the rules above remember between steps; plain numbers, so that a checkpoint can hold it."""

    start: float = 0.0
    seen: int = 0
    running: float = 0.0
    above: int = 0
    entry: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def check(self, step: int, steps: int, warm: int, loss: float, grad_norm: float, lr: float) -> str | None:
        """Take in one step (`warm` is the number of warm-up steps) -> a sentence worth reporting, or None.

        Raises Diverged where a rule is broken."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return self._skip(step, steps, loss, grad_norm, lr)
        self.skipped_in_a_row = 0
        self.running = loss if self.seen == 0 else DECAY * self.running + (1 - DECAY) * loss
        if self.seen < FIRST:
            self.start += (loss - self.start) / (self.seen + 1)
        self.seen += 1
        limit = self.start + 2 * abs(self.start)
        if step < warm or self.seen <= FIRST or self.running <= limit:
            self.above = 0
            return None
        if self.above == 0:
            self.entry = self.running
        self.above += 1
        if self.above == 1:
            return (
                f"step {step}: the running loss {self.running:.4g} is above three times its start {self.start:.4g} "
                f"(learning rate {lr:.3g})"
            )
        if self.above >= PATIENCE:
            if self.running >= self.entry:
                raise Diverged(
                    f"the running loss is {self.running:.4g} at step {step} (learning rate {lr:.3g}), more than three "
                    f"times its start {self.start:.4g} for {self.above} steps and not falling",
                    step=step,
                    value=self.running,
                    lr=lr,
                )
            self.above = 0
        return None

    def _skip(self, step: int, steps: int, loss: float, grad_norm: float, lr: float) -> str:
        self.skipped += 1
        self.skipped_in_a_row += 1
        name, value = ("loss", loss) if not math.isfinite(loss) else ("gradient norm", grad_norm)
        what = f"the {name} is {value} at step {step} (learning rate {lr:.3g})"
        if self.skipped_in_a_row >= IN_A_ROW:
            raise Diverged(f"{what}, the {self.skipped_in_a_row}rd such step in a row", step=step, value=value, lr=lr)
        if self.skipped > max(FORGIVEN, steps // 50):
            raise Diverged(f"{what}, after {self.skipped - 1} such steps before", step=step, value=value, lr=lr)
        return f"{what}: this step was skipped"
