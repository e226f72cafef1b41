"""The law of reference: fast = reference, forward and backward, to 1e-9 in float64; in float32 and bfloat16 to the
card's tolerances, measured against the reference in float64 on the same rounded weights.

The reference is the part's method `reference`, with forward's signature, or the part itself with `backend="reference"`
on each submodule that has a backend. A part whose output doesn't depend on any of these has nothing to compare.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from formwright.check.compare import amount, first_beyond, token_deviation
from formwright.check.subject import Broken, Skipped, Subject, fresh, leaf, seeded
from formwright.contract import Layout

TOLERANCES = {"float32": 2e-4, "bfloat16": 5e-2}
NONSENSE = "no such backend"


def reference(subject: Subject) -> str:
    """Outputs and all gradients at N about chunk edges."""
    subject.needs_repeatable()
    has_method = callable(getattr(subject.cls, "reference", None))
    if not has_method and not _backend_matters(subject):
        raise Skipped("it has no method `reference`, and no op inside takes its backend: there is one form alone")
    for pattern in subject.patterns:
        module = subject.module(pattern)
        for n in subject.sizes(1, 2, 5, 63, 64, 65, 130, 200):
            inputs = subject.inputs(pattern, n, 2)
            fast = _with_gradients(subject, subject.forward, module, inputs)
            slow = _with_gradients(subject, _reference(subject, has_method), module, inputs)
            _compare_exact(fast, slow, f"N={n}, {pattern}, float64")
        for name, tolerance in TOLERANCES.items():
            _check_coarse(subject, pattern, has_method, name, subject.card.tolerances.get(name, tolerance))
    by = "method `reference`" if has_method else 'backend="reference"'
    return f"equal to its {by} with all gradients: 1e-9 in float64, within tolerance in float32 and bfloat16"


def set_backend(module: nn.Module, backend: str) -> nn.Module:
    """A copy with this backend on every submodule that has one."""
    module = fresh(module)
    for part in module.modules():
        if hasattr(part, "backend"):
            part.backend = backend
    return module


def _backend_matters(subject: Subject) -> bool:
    """Whether an op inside objects to a backend that doesn't exist."""
    for pattern in subject.patterns:
        module = subject.module(pattern)
        try:
            subject.run(set_backend(module, NONSENSE), *subject.inputs(pattern, 8))
        except Exception:
            return True
    return False


def _reference(subject: Subject, has_method: bool) -> Callable[..., Tensor]:
    def by_method(module: nn.Module, x: Tensor, *context: Tensor) -> Tensor:
        layouts = [Layout((t.shape[1],)) for t in (x, *context)]
        return module.reference(x, layouts[0], *context, *layouts[1:])

    def by_backend(module: nn.Module, *inputs: Tensor) -> Tensor:
        for part in module.modules():
            if hasattr(part, "backend"):
                part.backend = "reference"
        return subject.forward(module, *inputs)

    return by_method if has_method else by_backend


def _with_gradients(
    subject: Subject, forward: Callable[..., Tensor], module: nn.Module, inputs: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """The output and the gradients of a random weighting of it, by name."""
    module = fresh(module)
    inputs = tuple(leaf(x) for x in inputs)
    with seeded(subject.seed + 1):
        out = forward(module, *(x.clone() for x in inputs))
    weights = subject.randn(*out.shape, salt=4).to(out.dtype)
    wanted = {"x": inputs[0], **({"context": inputs[1]} if inputs[1:] else {}), **dict(module.named_parameters())}
    wanted = {name: t for name, t in wanted.items() if t.requires_grad}
    (out * weights).sum().backward()
    grads = {f"the gradient of {n}": torch.zeros_like(t) if t.grad is None else t.grad for n, t in wanted.items()}
    return {"output": out.detach(), **grads}


def _compare_exact(fast: dict[str, Tensor], slow: dict[str, Tensor], where: str) -> None:
    largest = max(float(t.abs().max()) for name, t in slow.items() if name != "output" and t.numel())
    for name, expected in slow.items():
        found = fast[name]
        if name == "output":
            gap = token_deviation(found, expected)
            token = first_beyond(gap, 1e-9)
            if token is not None:
                raise Broken(f"output {token} differs {amount(float(gap[token]))} from the reference ({where})")
            continue
        # A gradient that is zero but for rounding is compared on the scale of the others.
        scale = max(float(expected.abs().max()) if expected.numel() else 0.0, 1e-6 * largest, 1e-300)
        error = float((found - expected).abs().max()) / scale if expected.numel() else 0.0
        if not error <= 1e-9:
            raise Broken(f"{name} differs by {error:.0e} (relative) from the reference's ({where})")


def _check_coarse(subject: Subject, pattern: str, has_method: bool, name: str, tolerance: float) -> None:
    """The root-mean-square error of outputs and gradients, relative to the reference's root mean square."""
    dtype = getattr(torch, name)
    module = subject.module(pattern, dtype)
    for n in subject.sizes(65, 200):
        inputs = subject.inputs(pattern, n, 2, dtype)
        fast = _with_gradients(subject, subject.forward, module, inputs)
        exact = tuple(x.double() for x in inputs)
        slow = _with_gradients(subject, _reference(subject, has_method), fresh(module).double(), exact)
        largest = max(float(t.norm()) for key, t in slow.items() if key != "output")
        for key, expected in slow.items():
            # Backward sums more terms than forward, and small gradients are judged beside the largest.
            floor, allowed = (0.0, tolerance) if key == "output" else (0.05 * largest, 2 * tolerance)
            error = float((fast[key].double() - expected).norm()) / max(float(expected.norm()), floor, 1e-30)
            if not error <= allowed:
                raise Broken(
                    f"{key} in {name} is {error:.0e} off the float64 reference, more than {allowed:.0e} "
                    f"(N={n}, {pattern})"
                )
