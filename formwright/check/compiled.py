"""The law of compile: torch.compile in one graph and torch.export compute the same.

The graph is compiled by a backend that runs it with PyTorch's own kernels ("aot_eager"), which finds what can't be
traced in seconds; `run(..., compiler="inductor")` generates code as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from formwright.check.compare import amount, worst
from formwright.check.subject import Broken, Subject, fresh, leaf, seeded
from formwright.contract import Layout


class _Bound(nn.Module):
    """The part with its layouts bound: a module of tensors alone, as export wants it."""

    def __init__(self, subject: Subject, module: nn.Module, sizes: tuple[int, ...]):
        super().__init__()
        self.part = module
        self.call = subject.forward
        self.layouts = [Layout((n,)) for n in sizes]

    def forward(self, *inputs: Tensor) -> Tensor:
        named = dict(zip(("layout", "context_layout"), self.layouts, strict=False))
        return self.call(self.part, *inputs, **named)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the compiler's log lines, and without what earlier graphs left in its caches."""
    logger = logging.getLogger("torch")
    level = logger.level
    torch._dynamo.reset()
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        torch._dynamo.reset()


def compile(subject: Subject) -> str:
    """Outputs and input gradients at N=70, on two inputs, against the part itself."""
    subject.needs_repeatable()
    for pattern in subject.patterns:
        for n in subject.sizes(70) or [subject.limit]:
            module = subject.module(pattern)
            inputs = subject.inputs(pattern, n, 2)
            others = tuple(-2 * x for x in subject.inputs(pattern, n, 2, salt=1))
            bound = _Bound(subject, module, tuple(x.shape[1] for x in inputs))
            with _quiet(), seeded(subject.seed + 1):
                graph = torch.compile(fresh(bound), fullgraph=True, backend=subject.compiler, dynamic=False)
                what = f"torch.compile ({pattern})" if pattern else "torch.compile"
                _agree(subject, what, graph, bound, inputs, others)
            with _quiet(), seeded(subject.seed + 1), torch.no_grad():
                program = _guarded("torch.export", partial(torch.export.export, fresh(bound), inputs))
                for given in (inputs, others):
                    found = _guarded("the exported graph", partial(program.module(), *(x.clone() for x in given)))
                    gap = worst(found, fresh(bound)(*(x.clone() for x in given)))
                    if gap > max(subject.precision, 1e-9):
                        raise Broken(f"what torch.export gives differs {amount(gap)} (relative, N={n}, {pattern})")
    return f"one graph by torch.compile ({subject.compiler}) and by torch.export, outputs and gradients the same"


def _agree(
    subject: Subject,
    what: str,
    graph: Callable[..., Tensor],
    bound: nn.Module,
    inputs: tuple[Tensor, ...],
    others: tuple[Tensor, ...],
) -> None:
    for given in (inputs, others):
        results = []
        for run in (graph, fresh(bound)):
            leaves = tuple(leaf(x) for x in given)
            out = _guarded(what, partial(run, *(x.clone() for x in leaves)))
            if out.requires_grad:
                _guarded(f"backward of {what}", (out * torch.cos(out.detach())).sum().backward)
            results.append((out.detach(), *(x.grad for x in leaves if x.grad is not None)))
        for name, found, expected in zip(("outputs", "gradients", "gradients"), *results, strict=False):
            if (gap := worst(found, expected)) > max(subject.precision, 1e-9):
                raise Broken(f"{what} gives {name} that differ {amount(gap)} (relative, N={given[0].shape[1]})")


def _guarded(what: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise Broken(f"{what} raised {type(error).__name__}: {' '.join(lines[:3])[:400]}") from error
