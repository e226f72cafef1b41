"""How well functions are learnt in context, by the number of examples seen: models beside what learns without a model.

`curves` gives the score at every x of a prompt, after 0, 1, ... examples: for linear_regression the squared error over
the dimension (What Can Transformers Learn In-Context?, arXiv 2208.01066, 2022), for boolean_functions the share of
right answers (arXiv 2310.03016, 2023). `differences` asks which algorithm a model behaves like: the squared difference
of what the two say, whatever the truth is (What learning algorithm is in-context learning?, arXiv 2211.15661, 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from formwright import data
from formwright.data import DataError
from formwright.data.synthetic import read
from formwright.data.tasks import in_context
from formwright.data.tasks.boolean_functions import SPARSE
from formwright.data.tasks.boolean_learners import learners
from formwright.data.tasks.linear_regression import deviations, predictors

TASKS = ("linear_regression", "boolean_functions")
ROWS = 100  # prompts that a model reads at once


@dataclass
class Prompts:
    """Prompts of a task with what learns from them without a model.

    inputs    (rows, 2 points, channels), as the models read them
    x, y      (rows, points, dim), (rows, points); y is 0 or 1 for Boolean functions
    learners  name -> (x, y) -> what is said of each x from the examples before it, (rows, points)
    size      what squared errors are divided by; None where right answers are counted
    """

    inputs: torch.Tensor
    x: np.ndarray
    y: np.ndarray
    learners: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]
    size: int | None

    def score(self, said: np.ndarray) -> np.ndarray:
        """(points,) mean scores of what was said, (rows, points)."""
        if self.size is None:
            return (said == self.y).mean(0)
        return np.square(said - self.y).mean(0) / self.size


def prompts(spec: str, *, split: str = "test", items: int = 1000, seed: int = 0) -> Prompts:
    """So many prompts of a task written as data, `linear_regression(dim=5)`. Raises DataError for other tasks."""
    name, chosen = read(spec)
    if name not in TASKS:
        raise DataError(f"{name} is not learnt in context; take {' or '.join(TASKS)}")
    source = data.open(spec, seed=seed)
    batch = next(source.evaluation(split, items, items))
    x, y = in_context.parted(batch.inputs.numpy(), chosen["apart"])
    if name == "boolean_functions":
        family, dim = chosen["family"], chosen["dim"]
        found = learners(family, dim, chosen["relevant"] or SPARSE.get(family, 1))
        return Prompts(batch.inputs, x, (y > 0).astype(np.int64), found, None)
    skew, scale = chosen["skew"], 1.0
    if split == "test":
        skew, scale = chosen["skew_tested"] if chosen["skew_tested"] is not None else skew, chosen["scale_tested"]
    largest = float((scale * deviations(chosen["dim"], skew)).max() ** 2)
    found = predictors(noise=chosen["noise"], largest=largest, sparsity=chosen["sparsity"])
    return Prompts(batch.inputs, x, y, found, chosen["sparsity"] or chosen["dim"])


def said_by(model: nn.Module, asked: Prompts) -> np.ndarray:
    """(rows, points): what a model says of each x; for Boolean functions the likelier class."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.no_grad():
            made = [model(rows.to(device))[:, 0::2].float().cpu() for rows in asked.inputs.split(ROWS)]
    finally:
        model.train(training)
    outputs = torch.cat(made)
    return (outputs[..., 0].double() if asked.size is not None else outputs.argmax(-1)).numpy()


def curves(
    spec: str, models: dict[str, nn.Module] | None = None, *, split: str = "test", items: int = 1000, seed: int = 0
) -> dict[str, list[float]]:
    """name -> scores after 0, 1, ... examples, of the models and of what learns without one."""
    asked = prompts(spec, split=split, items=items, seed=seed)
    said = {name: said_by(model, asked) for name, model in (models or {}).items()}
    said |= {name: learn(asked.x, asked.y) for name, learn in asked.learners.items()}
    return {name: asked.score(values).tolist() for name, values in said.items()}


def differences(
    spec: str, model: nn.Module, *, split: str = "test", items: int = 1000, seed: int = 0
) -> dict[str, list[float]]:
    """name -> mean squared difference between what the model says and what that learner does, after 0, 1, ... examples;
    in the scores' unit for regression, the share of other answers for Boolean functions. The least is what the model
    behaves like most."""
    asked = prompts(spec, split=split, items=items, seed=seed)
    said, size = said_by(model, asked), asked.size or 1
    return {
        name: (np.square(learn(asked.x, asked.y) - said).mean(0) / size).tolist()
        for name, learn in asked.learners.items()
    }
