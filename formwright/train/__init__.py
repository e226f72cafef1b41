"""Training: `fit(model, source, steps=200)`, `evaluate(model, source, "test")`; see loop.py."""

from formwright.train.budget import Budget
from formwright.train.checkpoint import CheckpointError
from formwright.train.divergence import Diverged
from formwright.train.evaluation import evaluate
from formwright.train.loop import fit
from formwright.train.plan import calibrate
from formwright.train.run import Fit

__all__ = ["Budget", "CheckpointError", "Diverged", "Fit", "calibrate", "evaluate", "fit"]
