"""The law of extend: forward(x) equals extend over any split of x.

Splits into ones, into two, into equal pieces and into random ones; one token after a prefill of every awkward length;
a prefill after one token; long prefills then single tokens. Two states from `empty` are independent of one another.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from formwright.check.causality import check_cuts, cuts_of
from formwright.check.compare import amount, first_beyond, token_deviation
from formwright.check.shapes import compare_form
from formwright.check.subject import Broken, Refused, Skipped, Subject, fresh, seeded
from formwright.contract import Unsupported

PREFILLS = (1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 192, 255, 256, 257)


def extend(subject: Subject) -> str:
    """forward against extend in float64 over some eighty splits, and in float32 and bfloat16 over a few."""
    if subject.kind != "mixer":
        raise Skipped(f"a {subject.kind} part has no state to extend")
    if "causal" not in subject.patterns:
        raise Skipped("no causal self pattern, so there is nothing to decode")
    module = subject.module("causal")
    try:
        with torch.no_grad(), seeded(0):
            fresh(module).empty(1)
    except Unsupported as error:
        raise Refused(str(error)) from error
    subject.needs_repeatable()
    left = [_check_splits(subject, module, n) for n in subject.sizes(40, 300, 1000)]
    _check_capacity(subject, module)
    _check_independent(subject, module)
    for dtype in (torch.float32, torch.bfloat16):
        _check_dtype(subject, dtype)
    if any(left):
        raise Skipped("forward sees later tokens (see causality), so extend can't equal it there")
    return "forward = extend over ones, halves, equal and random pieces, and single tokens after prefills, up to N=1000"


def splits(n: int, seed: int) -> Iterator[list[int]]:
    """Splits of n tokens, simple ones first."""
    yield [n]
    if n >= 1000:
        yield from ([512, n - 512], [513, 1, n - 514], [700, 1, 1, n - 702], [n - 3, 1, 1, 1])
        return
    yield [n // 2, n - n // 2]
    yield [n - 1, 1]
    yield [1, n - 1]
    for p in PREFILLS:
        if p < n - 8:
            yield [p, n - p]
            yield [p, 1, n - p - 1]
            yield [p, 1, 1, 1, n - p - 3]
    for size in (1, 2, 3, 5, 16, 63, 64, 65):
        if size < n:
            yield [size] * (n // size) + [n % size] * (n % size > 0)
    if n > 260:
        yield [257, *[1] * (n - 257)]
    dice = random.Random(seed)
    for largest in (4, 20, 100):
        pieces = []
        while sum(pieces) < n:
            pieces.append(min(n - sum(pieces), dice.choice((1, dice.randint(1, largest)))))
        yield pieces


def run_split(
    subject: Subject, module: nn.Module, x: Tensor, pieces: list[int], capacity: int | None
) -> tuple[Tensor, Any]:
    """extend over the pieces of x -> outputs, the last state."""
    outs, start = [], 0
    with torch.no_grad(), seeded(subject.seed + 1):
        module = fresh(module)
        state = module.empty(x.shape[0], capacity, like=x)
        for size in pieces:
            piece = x[:, start : start + size].clone()
            out, state = module.extend(piece, state)
            compare_form(out, piece, f"extend by {size} after {start}")
            outs.append(out.clone())
            start += size
    return torch.cat(outs, 1), state


def tolerance(subject: Subject, state: Any, x: Tensor) -> float:
    """1e-8 in float64; 1e-4 where the state is kept in fewer bits than the tokens."""
    leaves = [t for t in _pytree.tree_leaves(state) if isinstance(t, Tensor) and t.dtype.is_floating_point]
    leaves += [t.real for t in _pytree.tree_leaves(state) if isinstance(t, Tensor) and t.dtype.is_complex]
    coarse = any(t.element_size() < x.element_size() for t in leaves)
    return 1e-4 if coarse or subject.precision > 1e-6 else 1e-8


def _check_splits(subject: Subject, module: nn.Module, n: int) -> bool:
    (x,) = subject.inputs("causal", n, 2)
    forward = _Forward(subject, module, x)
    for pieces in splits(n, subject.seed):
        text = describe(pieces)
        try:
            out, state = run_split(subject, module, x, pieces, n)
        except Exception as error:
            if isinstance(error, Broken):
                raise
            raise Broken(f"extend raised when {n} tokens came as {text}: {type(error).__name__}: {error}") from error
        fault = forward.first_fault(out, pieces, tolerance(subject, state, x))
        if fault is not None:
            _leave_rows_to_isolation(subject, module, x, pieces)
            raise Broken(
                f"output {fault[0]} differs {amount(fault[1])} (relative) from forward's when {n} tokens came as {text}"
            )
    return forward.left


@dataclass(eq=False)
class _Forward:
    """forward over x, to compare extend with. Where forward sees later tokens, no extend can equal it: such outputs are
    left to the law of causality, and `left` remembers that there were some."""

    subject: Subject
    module: nn.Module
    x: Tensor
    shows: dict[int, bool] = field(default_factory=dict)
    left: bool = False

    @functools.cached_property
    def out(self) -> Tensor:
        return self.subject.run(self.module, self.x)

    @functools.cached_property
    def leaks(self) -> bool:
        """Whether any output of forward changes with later inputs."""
        n = self.x.shape[1]
        try:
            check_cuts(self.subject, self.module, "causal", n, cuts_of(n), self.x.dtype)
        except Broken:
            return True
        return False

    def sees_later(self, token: int) -> bool:
        """Whether forward's output at the token changes when later inputs do."""
        if token not in self.shows:
            self.shows[token] = self._changes(partial(self.subject.run, self.module), token)
        return self.shows[token]

    def _changes(self, run: Callable[[Tensor], Tensor], token: int) -> bool:
        (other,) = self.subject.inputs("causal", self.x.shape[1], self.x.shape[0], self.x.dtype, salt=5)
        later = torch.cat([self.x[:, : token + 1], 30 * other[:, token + 1 :]], 1)
        gap = token_deviation(run(later)[:, : token + 1], run(self.x)[:, : token + 1])[token]
        return bool(gap > (self.subject.precision if self.x.dtype == torch.float64 else 1e-5))

    def first_fault(self, out: Tensor, pieces: list[int], tolerance: float) -> tuple[int, float] | None:
        """The first token at which extend's output is wrong, and by how much."""
        gap = token_deviation(out, self.out)
        faults = (gap > tolerance).nonzero().flatten().tolist()
        if not faults:
            return None
        if not self.leaks:
            return faults[0], float(gap[faults[0]])

        def extended(x: Tensor) -> Tensor:
            return run_split(self.subject, self.module, x, pieces, x.shape[1])[0]

        for token in faults[:8]:
            if not self.sees_later(token) and not self._changes(extended, token):
                return token, float(gap[token])
        self.left = True
        return None


def _leave_rows_to_isolation(subject: Subject, module: nn.Module, x: Tensor, pieces: list[int]) -> None:
    """Raise Skipped where row 0 changes when row 1 does, in forward or in extend."""
    changed = torch.cat([x[:1], 3 * x[1:].flip(1)])
    for run in (partial(subject.run, module), lambda rows: run_split(subject, module, rows, pieces, x.shape[1])[0]):
        if token_deviation(run(changed)[:1], run(x)[:1]).max() > 1e-8:
            raise Skipped("rows influence one another (see isolation), so forward and extend can't be compared")


def _check_capacity(subject: Subject, module: nn.Module) -> None:
    """Without a capacity, with more than is needed, and for one row."""
    for n in subject.sizes(140):
        (x,) = subject.inputs("causal", n, 1)
        forward = _Forward(subject, module, x)
        for capacity in (None, n + 60 if n + 60 <= subject.limit else n):
            for pieces in ([70, 1, 1, n - 72], [1] * 20 + [n - 20]):
                out, state = run_split(subject, module, x, pieces, capacity)
                fault = forward.first_fault(out, pieces, tolerance(subject, state, x))
                if fault is not None:
                    raise Broken(
                        f"output {fault[0]} differs {amount(fault[1])} (relative) from forward's when "
                        f"{n} tokens came as {describe(pieces)} into empty(1, capacity={capacity})"
                    )


def _check_independent(subject: Subject, module: nn.Module) -> None:
    """Two sequences fed in turn give what each gives by itself."""
    pieces = [9, 1, 1, 20, 1, 40]
    n = sum(pieces)
    one, two = (subject.inputs("causal", n, 2, salt=s)[0] for s in (11, 12))
    alone = [run_split(subject, module, x, pieces, n)[0] for x in (one, two)]
    with torch.no_grad(), seeded(subject.seed + 1):
        module = fresh(module)
        states = [module.empty(2, n, like=one) for _ in range(2)]
        outs: list[list[Tensor]] = [[], []]
        start = 0
        for size in pieces:
            for which, x in enumerate((one, two)):
                out, states[which] = module.extend(x[:, start : start + size].clone(), states[which])
                outs[which].append(out.clone())
            start += size
    for which in range(2):
        gap = token_deviation(torch.cat(outs[which], 1), alone[which])
        token = first_beyond(gap, 1e-9)
        if token is not None:
            raise Broken(
                f"two states made by empty() share memory: output {token} of one sequence changed "
                f"{amount(float(gap[token]))} when another was extended in between"
            )


def _check_dtype(subject: Subject, dtype: torch.dtype) -> None:
    """float32 agrees to 1e-3; bfloat16 keeps shape and dtype, and is finite where forward is."""
    module = subject.module("causal", dtype)
    for n in subject.sizes(140):
        (x,) = subject.inputs("causal", n, 2, dtype)
        forward = _Forward(subject, module, x)
        for pieces in ([70, 1, 1, n - 72], [1] * n):
            name = str(dtype).removeprefix("torch.")
            try:
                out, _ = run_split(subject, module, x, pieces, n)
            except Exception as error:
                if isinstance(error, Broken):
                    raise
                raise Broken(
                    f"extend raised in {name} when {n} tokens came as {describe(pieces)}: "
                    f"{type(error).__name__}: {error}"
                ) from error
            fault = forward.first_fault(out, pieces, 1e-3 if dtype == torch.float32 else 1e30)
            if fault is not None:
                raise Broken(
                    f"output {fault[0]} differs {amount(fault[1])} (relative) from forward's in {name} when "
                    f"{n} tokens came as {describe(pieces)}"
                )


def describe(pieces: list[int]) -> str:
    """[70, 1, 1, 68] -> '70 + 2*1 + 68'."""
    runs = [(size, len(list(group))) for size, group in itertools.groupby(pieces)]
    shown = [str(size) if count == 1 else f"{count}*{size}" for size, count in runs]
    return " + ".join(shown if len(shown) <= 8 else [*shown[:7], "..."])
