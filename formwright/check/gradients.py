"""The law of gradients: backward is the derivative of forward (central differences in float64), every parameter gets a
gradient, and outputs and gradients stay finite at long N and for large, zero and constant inputs.

A causal part must also forget or keep, never grow: what the first token changes in output t may rise like a power of t,
not like a^t with a > 1. A decay above one overflows only after a while, but it shows at once in that the influence
rises by more each time N doubles.

A part whose choices let gradients straight through has an attribute `held` (ops/straight_through.py): its backward is
the derivative of forward with the choices held as they are and moved by what stands beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from formwright.check.subject import Broken, Subject, fresh, leaf, seeded

LONG = 4096


def gradients(subject: Subject) -> str:
    """Central differences at N = 6 and 70; unused parameters; N = 4096 and inputs of 1000."""
    for pattern in subject.patterns:
        for n in subject.sizes(6, 70):
            _check_derivative(subject, pattern, n)
        for n in subject.sizes(LONG) or [subject.limit]:
            _check_finite(subject, pattern, n, "normal", lambda x: x)
        for n in subject.sizes(300):
            _check_finite(subject, pattern, n, "1000 times normal", lambda x: 1000 * x)
            _check_finite(subject, pattern, n, "zero", lambda x: 0 * x)
            _check_finite(subject, pattern, n, "all equal", torch.ones_like)
        if pattern == "causal" and not subject.randomness:
            _check_growth(subject)
    _check_used(subject)
    return "backward is forward's derivative; every parameter learns; finite at N=4096, for zero and for large inputs"


def _check_derivative(subject: Subject, pattern: str, n: int) -> None:
    """The derivative along random directions, one for every tensor. Kinks, as of a ReLU, may lie on the way: only what
    differs at three points differs."""
    # Where something is computed in float32 inside, steps must be larger than its rounding.
    step, tolerance = (1e-5, 1e-5) if subject.precision < 1e-6 else (3e-3, 2e-2)
    failures: dict[str, list[str]] = {}
    for attempt in range(3):
        for name, found, numeric, scale in _derivatives(subject, pattern, n, attempt, step / 3**attempt, failures):
            if abs(found - numeric) > tolerance * 3**attempt * scale + 1e-9:
                failures.setdefault(name, []).append(f"is {found:.5g}, but forward's differences give {numeric:.5g}")
        failures = {name: texts for name, texts in failures.items() if len(texts) == attempt + 1}
        if not failures:
            return
    name, texts = next(iter(failures.items()))
    hint = "" if subject.precision < 1e-6 else "; something inside is computed in float32"
    raise Broken(f"the derivative by {name} along a random direction {texts[0]} (N={n}, {pattern}{hint})")


def _derivatives(
    subject: Subject, pattern: str, n: int, attempt: int, step: float, only: dict[str, list[str]]
) -> list[tuple[str, float, float, float]]:
    """(name, backward's, central difference, scale) for inputs and parameters, or for those of `only`."""
    module = subject.module(pattern)
    pristine = fresh(module)
    inputs = tuple(leaf(x) for x in subject.inputs(pattern, n, 2, salt=20 + attempt))
    held = _hold(module)
    out = _forward(subject, module, inputs)
    weights = subject.randn(*out.shape, salt=30 + attempt)
    tensors = {"x": inputs[0], **({"context": inputs[1]} if inputs[1:] else {}), **dict(module.named_parameters())}
    tensors = {name: t for name, t in tensors.items() if t.requires_grad}
    if not out.requires_grad:
        raise Broken(f"the output has no gradient at all (N={n}, {pattern})")
    found = torch.autograd.grad((out * weights).sum(), list(tensors.values()), allow_unused=True)
    rows = []
    moving = {**dict(zip(("x", "context"), inputs, strict=False)), **dict(pristine.named_parameters())}
    for i, (name, grad) in enumerate(zip(tensors, found, strict=True)):
        if (only and name not in only) or name not in moving:
            continue
        tensor = moving[name]
        direction = subject.randn(*tensor.shape, salt=50 + 7 * i + attempt)
        ends = []
        with torch.no_grad():
            before = tensor.clone()
            for sign in (1, -1):
                tensor.copy_(before + sign * step * direction)
                moved = fresh(pristine)
                _hold(moved, held)
                ends.append(_forward(subject, moved, inputs).detach())
            tensor.copy_(before)
        change = (ends[0] - ends[1]) / (2 * step) * weights
        backward = 0.0 if grad is None else float((grad * direction).sum())
        if not change.isfinite().all():
            continue  # the check of finiteness tells
        rows.append((name, backward, float(change.sum()), float(change.norm()) + 1e-6 * float(out.detach().norm())))
    return rows


def _hold(module: nn.Module, held: list[dict] | None = None) -> list[dict]:
    """Give each part with straight-through choices a dict to keep them in, or those that were kept."""
    parts = [part for part in module.modules() if hasattr(part, "held")]
    held = [{} for _ in parts] if held is None else held
    for part, kept in zip(parts, held, strict=True):
        part.held = kept
    return held


def _forward(subject: Subject, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with seeded(subject.seed + 1):
        return subject.forward(module, *(x.clone() for x in inputs))


def _check_used(subject: Subject) -> None:
    """Every parameter gets a gradient in one of the patterns; weights that begin at zero and hold others back are
    moved first."""
    modules = {}
    unused: set[str] | None = None
    for pattern in subject.patterns:
        module = subject.module(pattern)
        names = set(_without_gradient(subject, module, pattern))
        if names:
            with torch.no_grad():
                for i, p in enumerate(module.parameters()):
                    p += 0.1 * subject.randn(*p.shape, salt=70 + i)
            names &= set(_without_gradient(subject, module, pattern))
        modules[pattern] = module
        unused = names if unused is None else unused & names
    if unused:
        names = ", ".join(sorted(unused))
        raise Broken(f"no gradient reaches the parameters {names}")


def _without_gradient(subject: Subject, module: nn.Module, pattern: str) -> list[str]:
    module = fresh(module)
    inputs = tuple(leaf(x) for x in subject.inputs(pattern, subject.sizes(150, 16)[0], 2))
    out = _forward(subject, module, inputs)
    (out * subject.randn(*out.shape, salt=4)).sum().backward()
    wanted = [(name, p) for name, p in module.named_parameters() if p.requires_grad and p.numel()]
    return [name for name, p in wanted if p.grad is None or not (p.grad != 0).any()]


def _check_finite(subject: Subject, pattern: str, n: int, what: str, change) -> None:
    module = fresh(subject.module(pattern, torch.float32))
    inputs = tuple(leaf(change(x)) for x in subject.inputs(pattern, n, 1, torch.float32))
    out = _forward(subject, module, inputs)
    (out * subject.randn(*out.shape, salt=4).float()).sum().backward()
    tensors = {"x": inputs[0], **dict(module.named_parameters())}
    grads = {f"the gradient of {name}": t.grad for name, t in tensors.items() if t.grad is not None}
    for name, t in {"the output": out.detach(), **grads}.items():
        if not t.isfinite().all():
            where = ""
            if name == "the output":
                where = f" from token {int((~t.isfinite()).any(-1).any(0).nonzero()[0])} on"
            raise Broken(f"{name} is not finite{where} (N={n}, inputs {what}, float32, {pattern})")


def _check_growth(subject: Subject) -> None:
    n = min(LONG, subject.limit)
    if n < 512:
        return
    module = subject.module("causal")
    (x,) = subject.inputs("causal", n, 1)
    changed = x.clone()
    changed[:, 0] += subject.randn(1, subject.dim, salt=8)
    influence = (subject.run(module, changed) - subject.run(module, x)).abs().amax((0, 2))
    if not influence.isfinite().all():
        raise Broken(f"outputs overflow float64 within {n} tokens")
    _judge_growth("what token 0 changes in later outputs grows with their distance", influence, n)
    try:
        state, sizes = module.empty(1, n, like=x), []
        with torch.no_grad(), seeded(subject.seed + 1):
            for piece in x.split(n // 16, 1):
                _, state = module.extend(piece, state)
                leaves = [t for t in _pytree.tree_leaves(state) if isinstance(t, Tensor) and t.numel()]
                sizes += [max(float(t.detach().abs().double().max()) for t in leaves) if leaves else 0.0] * (n // 16)
    except Exception:
        return  # the law of extend tells what was raised
    _judge_growth("the state grows without bound", torch.tensor(sizes), n)


def _judge_growth(what: str, values: Tensor, n: int) -> None:
    """Raise Broken where values rise faster at each doubling than the last, as a^t does and no power of t."""
    if not values.isfinite().all():
        raise Broken(f"{what}: it overflows float64 within {n} tokens; is a decay above one?")
    early, middle, late = (float(values[len(values) // d - 16 : len(values) // d].max()) for d in (4, 2, 1))
    if early > 1e-12 and late > 4 * middle and late / middle > 1.5 * middle / early:
        raise Broken(
            f"{what}: {early:.0e} at {n // 4}, {middle:.0e} at {n // 2}, {late:.0e} at {n}; is a decay above one?"
        )
