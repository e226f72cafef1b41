"""The laws of determinism and of save_load.

determinism   same seed, same weights, same output; eval is repeatable, whatever ran before
save_load     a part saved after some training steps and loaded into one of another seed computes the same
"""

from __future__ import annotations

import random

import numpy
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from formwright.check.compare import amount, token_deviation, worst
from formwright.check.extend import run_split
from formwright.check.subject import Broken, Subject, fresh, leaf, seeded


def determinism(subject: Subject) -> str:
    """Weights of equal seeds; outputs called again after other inputs, other seeds and a training step."""
    for pattern in subject.patterns:
        check_weights(subject, pattern)
        _check_repeat(subject, pattern)
    return "one seed gives one set of weights, and eval gives one output"


def check_weights(subject: Subject, pattern: str) -> None:
    """Raise Broken where two parts of one seed differ."""
    # Only torch's generator is seeded alike: numpy's and Python's go on, as they do for a user.
    states = []
    for run in range(2):
        with seeded(subject.seed):
            random.seed(run)
            numpy.random.seed(run)
            module = subject.construct(subject.arguments, pattern=pattern)
            states.append({**module.state_dict(), **dict(module.named_buffers())})
    if states[0].keys() != states[1].keys():
        raise Broken(f"two parts of one seed have other tensors: {sorted(states[0].keys() ^ states[1].keys())}")
    for name, tensor in states[0].items():
        if not torch.equal(tensor.nan_to_num(), states[1][name].nan_to_num()):
            raise Broken(f"two parts of one torch.manual_seed differ in {name}; draw weights from torch's generator")


def _check_repeat(subject: Subject, pattern: str) -> None:
    module = subject.module(pattern)
    for n in subject.sizes(9, 70):
        inputs, other = subject.inputs(pattern, n, 2), subject.inputs(pattern, n + 5, 3, salt=1)
        kept = tuple(x.clone() for x in inputs)
        one = _plain(subject, module, inputs, 1)
        for x, before in zip(inputs, kept, strict=True):
            if not torch.equal(x, before):
                raise Broken(f"forward changed its input in place (N={n}); the residual stream is read again after it")
        again = _plain(subject, module, kept, 1)
        _same(one, again, f"called twice with the same input and seed, eval gives other outputs (N={n})")
        _same(one, _plain(subject, module, kept, 2), f"eval draws random numbers: another seed, other outputs (N={n})")
        _plain(subject, module, other, 3)
        _same(one, _plain(subject, module, kept, 1), f"after other inputs eval gives other outputs (N={n})")


def _plain(subject: Subject, module: nn.Module, inputs: tuple[Tensor, ...], seed: int) -> Tensor:
    """forward of the module itself, not of a copy."""
    with torch.no_grad(), seeded(seed):
        return subject.forward(module, *inputs).clone()


def _same(one: Tensor, two: Tensor, what: str) -> None:
    gap = token_deviation(two, one)
    if gap.max() > 1e-12:
        raise Broken(f"{what}: output {int(gap.argmax())} changed {amount(float(gap.max()))} (relative)")


def save_load(subject: Subject) -> str:
    """Three training steps, safetensors, a fresh part of another seed."""
    subject.needs_repeatable(drawn=True)
    for pattern in subject.patterns:
        trained = subject.module(pattern)
        _train(subject, trained, pattern)
        trained.eval()
        try:
            saved = to_bytes({name: t.detach().clone().contiguous() for name, t in trained.state_dict().items()})
        except Exception as error:
            raise Broken(f"its state_dict can't be saved as safetensors: {error}") from error
        loaded = subject.module(pattern, seed=subject.seed + 1)
        try:
            loaded.load_state_dict(from_bytes(saved), strict=True)
        except RuntimeError as error:
            raise Broken(f"a fresh part can't load what a trained one saved: {' '.join(str(error).split())}") from error
        for n in subject.sizes(9, 130):
            inputs = subject.inputs(pattern, n, 2)
            gap = worst(subject.run(loaded, *inputs), subject.run(trained, *inputs))
            if gap > 1e-12:
                raise Broken(
                    f"after loading, outputs differ {amount(gap)} (relative, N={n}): something that forward uses is "
                    "neither a parameter nor a persistent buffer"
                )
        if pattern == "causal":
            _check_state(subject, trained, loaded)
    return "saved after three training steps and loaded into fresh weights, it computes the same"


def _train(subject: Subject, module: nn.Module, pattern: str) -> None:
    module.train()
    for step in range(3):
        module.zero_grad()
        with seeded(step):
            out = subject.forward(module, *(leaf(x) * 1 for x in subject.inputs(pattern, 12, 3, salt=step)))
        if out.requires_grad:
            out.square().mean().backward()
        with torch.no_grad():
            for p in module.parameters():
                if p.grad is not None:
                    p -= 0.05 * p.grad / p.grad.norm().clamp_min(1e-6)


def _check_state(subject: Subject, trained: nn.Module, loaded: nn.Module) -> None:
    (x,) = subject.inputs("causal", 12, 2)
    try:
        one, two = (run_split(subject, fresh(module), x, [8, 1, 3], 12)[0] for module in (trained, loaded))
    except Exception:
        return  # the law of extend tells what was raised
    if (gap := worst(two, one)) > 1e-12:
        raise Broken(f"after loading, extend's outputs differ {amount(gap)} (relative)")
