"""One step of training: the gradient of the mean loss over a global batch, clipped, then AdamW.

A step is a function of (weights, moments, seed, step): its batches come from the source by number, and every random
number it draws comes from a seed made of the run's seed, the step and the rank. Nothing else is remembered between
steps, which is what lets a resumed run end in the same bits.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch
from torch import nn

from formwright.train.checkpoint import copy_tensors, model_tensors
from formwright.train.device import Ranks, agree, autocast, move, scored, shard, sum_gradients


def step_batches(source: Any, step: int, batch_size: int, accumulate: int, seed: int) -> list[Any]:
    """The `accumulate` global batches of batch_size rows that step `step` learns from."""
    return [source.batch("train", step * accumulate + i, batch_size, seed=seed) for i in range(accumulate)]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch, NumPy and Python for one step of one rank."""
    number = int(numpy.random.SeedSequence((seed, step, rank)).generate_state(1, numpy.uint64)[0]) >> 1
    torch.manual_seed(number)
    numpy.random.seed(number % 2**32)
    random.seed(number)


@contextlib.contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Give the caller's random states back afterwards."""
    python, legacy = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(legacy)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[Any],
    *,
    lr: float,
    clip: float | None,
    ranks: Ranks,
    precision: str,
) -> tuple[float, float]:
    """Learn from the batches as from one -> (mean loss over all scored targets, gradient norm before clipping). Where
    either is not finite the weights are left as they were."""
    optimizer.zero_grad(set_to_none=True)
    counts = [scored(batch) for batch in batches]
    total = max(1, sum(counts))
    loss = torch.zeros((), device=ranks.device)
    for batch, count in zip(batches, counts, strict=True):
        part = shard(batch, ranks)
        if part is None:
            continue
        weight = (count if part is batch else scored(part)) / total
        if weight == 0 and any(counts):
            continue
        with autocast(ranks.device, precision):
            part_loss = model.loss(move(part, ranks.device))
        if weight != 1:
            part_loss = part_loss * weight
        part_loss.backward()
        loss = loss + part_loss.detach()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    loss = sum_gradients(parameters, loss, ranks)
    norm = nn.utils.clip_grad_norm_(parameters, clip if clip else float("inf"))
    loss_value, norm_value = torch.stack([loss.double(), norm.to(loss.device).double()]).tolist()
    if math.isfinite(loss_value) and math.isfinite(norm_value):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    return loss_value, norm_value


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put parameters and buffers back as they were, and drop gradients, whatever happens inside."""
    before = {name: tensor.detach().clone() for name, tensor in model_tensors(model).items()}
    try:
        yield
    finally:
        copy_tensors(before, model_tensors(model))
        model.zero_grad(set_to_none=True)


def seconds_per_step(run: Callable[[int], Any], *, allowance: float, ranks: Ranks) -> float:
    """The median time of run(0), run(1), ... after two steps of warm-up, within about `allowance` seconds and 3 to 30
    steps."""
    run(0)
    times: list[float] = []
    for step in range(1, 3):
        times = [_seconds(run, step)]
    count = agree(max(3, min(30, int(allowance / max(times[0], 1e-9)))), ranks)
    times = [_seconds(run, 3 + i) for i in range(count)]
    return agree(sorted(times)[count // 2], ranks)


def _seconds(run: Callable[[int], Any], step: int) -> float:
    begin = time.perf_counter()
    run(step)
    return time.perf_counter() - begin
