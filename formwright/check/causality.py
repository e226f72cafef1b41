"""The law of causality: a causal part's output at t never changes when inputs after t do.

Every cut t is tried for several N: the inputs after t are replaced by other normal numbers, and by numbers some of
which are a hundred times larger (a maximum or a threshold may hide from the first), and outputs 0..t must stay. Many
cuts run as rows of one batch; what is found there is confirmed with each sequence alone, so that a leak between rows is
left to the law of isolation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from formwright.check.compare import amount, first_beyond, token_deviation
from formwright.check.subject import Broken, Skipped, Subject, fresh, seeded

ROWS = 24


def causality(subject: Subject) -> str:
    """Every cut at N=5, 67, 130 and 300; cuts about every chunk edge, and the last, at N=1000."""
    if subject.kind != "mixer":
        raise Skipped(f"a {subject.kind} part has no order of tokens to keep")
    if not subject.causal_patterns:
        raise Skipped("no causal pattern on its card")
    subject.needs_repeatable(drawn=True)
    for pattern in subject.causal_patterns:
        module = subject.module(pattern)
        for n in subject.sizes(2, 5, 67, 130, 300, 1000):
            check_cuts(subject, module, pattern, n, cuts_of(n))
        for n in subject.sizes(130):  # parts may take another path in float32
            check_cuts(subject, subject.module(pattern, torch.float32), pattern, n, cuts_of(n), torch.float32)
        _check_training(subject, pattern)
        if pattern == "causal":
            _check_prefix(subject, module)
    return "no output changed with later inputs: every cut up to N=300, chunk edges up to N=1000"


def cuts_of(n: int) -> list[int]:
    """Every cut of a short sequence; of one past 300 those about the multiples of 64, between them, and at the end."""
    if n <= 300:
        return list(range(n - 1))
    near = {m + d for m in range(64, n, 64) for d in (-2, -1, 0, 32)} | {0, n - 3, n - 2}
    return sorted(t for t in near if 0 <= t < n - 1)


def _changed(inputs: tuple[Tensor, ...], cut: int, others: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs with all tokens of x after the cut those of others. A context stays: a decoder may read all of its
    source, and causality is among its own tokens."""
    return torch.cat([inputs[0][:, : cut + 1], others[0][:, cut + 1 :]], 1), *inputs[1:]


def _disturbances(subject: Subject, pattern: str, n: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, ...]]:
    """Other inputs: normal ones for short sequences, and such that every other token is large."""
    rounded = _tolerance(subject, dtype) > 1e-6  # the rounding of large numbers would show through an FFT
    if n <= 130 or rounded:
        yield subject.inputs(pattern, n, 1, dtype, salt=1)
    if not rounded:
        others = subject.inputs(pattern, n, 1, dtype, salt=2)
        yield tuple(x * (1 + 99 * (torch.arange(x.shape[1]) % 2))[:, None] for x in others)


def _tolerance(subject: Subject, dtype: torch.dtype) -> float:
    return subject.precision if dtype == torch.float64 else 1e-5


def check_cuts(
    subject: Subject,
    module: nn.Module,
    pattern: str,
    n: int,
    cuts: list[int],
    dtype: torch.dtype = torch.float64,
) -> None:
    """Raise Broken where an output up to one of the cuts changes with inputs after it."""
    inputs, tolerance = subject.inputs(pattern, n, 1, dtype), _tolerance(subject, dtype)
    where = f"N={n}, {pattern}{'' if dtype == torch.float64 else ', in float32'}"
    unconfirmed = 0
    for others in _disturbances(subject, pattern, n, dtype):
        for start in range(0, len(cuts), ROWS):
            rows = [inputs, *(_changed(inputs, cut, others) for cut in cuts[start : start + ROWS])]
            out = subject.run(module, *(torch.cat(column) for column in zip(*rows, strict=True)))
            for row, cut in enumerate(cuts[start : start + ROWS], 1):
                if _leak(out[:1], out[row : row + 1], cut, tolerance):
                    _confirm(inputs, rows[row], cut, tolerance, where, partial(subject.run, module))
                    unconfirmed += 1
                    if unconfirmed > 30:
                        return  # rows of one batch differ for another reason


def _leak(before: Tensor, after: Tensor, cut: int, tolerance: float) -> tuple[int, float] | None:
    gap = token_deviation(after[:, : cut + 1], before[:, : cut + 1])
    token = first_beyond(gap, tolerance)
    return None if token is None else (int(gap.argmax()), float(gap.max()))


def _confirm(
    inputs: tuple[Tensor, ...],
    changed: tuple[Tensor, ...],
    cut: int,
    tolerance: float,
    where: str,
    run: Callable[..., Tensor],
) -> None:
    found = _leak(run(*inputs), run(*changed), cut, tolerance)
    if found is not None:
        token, gap = found
        raise Broken(f"output {token} changed {amount(gap)} (relative) when only inputs after {cut} did ({where})")


def _check_training(subject: Subject, pattern: str) -> None:
    """Statistics over tokens may be taken in train mode alone. Where rows influence one another there, the statistics
    are those of a batch: the law of isolation tells."""
    module = subject.module(pattern).train()
    pair = subject.inputs(pattern, 70, 2)
    third = subject.inputs(pattern, 70, 2, salt=3)
    other = tuple(torch.cat([x[:1], 3 * y[1:]]) for x, y in zip(pair, third, strict=True))
    if token_deviation(subject.run(module, *other)[:1], subject.run(module, *pair)[:1]).max() > subject.precision:
        return
    inputs = subject.inputs(pattern, 70, 1)
    for cut in (0, 20, 62, 63, 64, 68):
        changed = _changed(inputs, cut, subject.inputs(pattern, 70, 1, salt=1))
        where = f"N=70, {pattern}, in train mode"
        _confirm(inputs, changed, cut, subject.precision, where, partial(subject.run, module))


def _check_prefix(subject: Subject, module: nn.Module) -> None:
    """Where there is no extend to compare with, an output must not depend on how many tokens follow, either."""
    if subject.randomness:
        return
    try:
        with torch.no_grad(), seeded(0):
            fresh(module).empty(1)
    except Exception:
        (x,) = subject.inputs("causal", 130, 1)
        whole = subject.run(module, x)
        for n in (1, 2, 63, 64, 65, 100, 129):
            gap = token_deviation(subject.run(module, x[:, :n]), whole[:, :n])
            if gap.max() > subject.precision:
                token = int(gap.argmax())
                raise Broken(
                    f"output {token} differs {amount(float(gap.max()))} between the first {n} tokens alone and all 130"
                ) from None
