"""The law of isolation: rows don't influence one another, and padded = packed = alone.

A padded or packed layout may be refused by `Unsupported`; computing something else is never an answer. Channel parts,
norms and positions must moreover treat each token by itself, but for positions that say otherwise (Position).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright.check.compare import amount, deviation, worst
from formwright.check.extend import run_split
from formwright.check.subject import Broken, Subject
from formwright.contract import Layout, Unsupported

LENGTHS = ((9, 1, 4), (9, 9, 9), (70, 65, 1), (130, 64, 129), (5, 130, 63))
BOUNDS = ((0, 9), (0, 1, 4, 9), (0, 64, 70), (0, 63, 64, 130), (0, 5, 70, 71, 135))


def isolation(subject: Subject) -> str:
    """Other rows changed, permuted or left out; padded rows of several lengths; packed sequences."""
    subject.needs_repeatable(drawn=True)
    notes: list[str] = []
    for pattern in subject.patterns:
        module = subject.module(pattern)
        for n in subject.sizes(1, 9, 70, 140):
            _check_rows(subject, module, pattern, n)
            if not subject.randomness:
                _check_alone(subject, module, pattern, n)
        if getattr(subject.cls, "batched", False):
            notes.append("training takes statistics over the batch, as declared")
        else:
            _check_rows(subject, subject.module(pattern).train(), pattern, 20)
        if pattern == "causal":
            _check_state(subject, module)
        local = subject.kind == "position" and module.role == "value"
        if getattr(subject.cls, "across_tokens", False):
            notes.append("statistics go over a row's tokens, as declared")
        elif subject.kind in ("channel", "norm", "position") and not local:
            _check_tokens(subject, module)
        elif (subject.kind == "mixer" or local) and not subject.randomness:
            for check in (_check_padded, _check_packed):
                try:
                    check(subject, module, pattern)
                except Unsupported as error:
                    notes.append(f"{check.__name__.removeprefix('_check_')} refused ({pattern}: {error.option})")
    return "; ".join(["rows change nothing in one another, padded and packed equal alone", *notes])


def _check_rows(subject: Subject, module: nn.Module, pattern: str, n: int) -> None:
    """Row 1 of 3 changed, by other numbers and by large ones: rows 0 and 2 stay."""
    inputs = subject.inputs(pattern, n, 3)
    before = subject.run(module, *inputs)
    disturbances = [subject.inputs(pattern, n, 3, salt=1)]
    if subject.precision < 1e-6:
        disturbances.append(tuple(100 * x for x in subject.inputs(pattern, n, 3, salt=2)))
    for others in disturbances:
        changed = tuple(torch.cat([x[:1], y[1:2], x[2:]]) for x, y in zip(inputs, others, strict=True))
        after = subject.run(module, *changed)
        gap = deviation(after, before).amax((1, 2))
        for row in (0, 2):
            if gap[row] > subject.precision:
                mode = ", in train mode" if module.training else ""
                raise Broken(
                    f"row {row} changed {amount(float(gap[row]))} (relative) when only row 1 of the batch did "
                    f"(N={n}{', ' + pattern if pattern else ''}{mode})"
                )


def _check_alone(subject: Subject, module: nn.Module, pattern: str, n: int) -> None:
    """Each row by itself, and the rows in another order."""
    inputs = subject.inputs(pattern, n, 3)
    together = subject.run(module, *inputs)
    for row in range(3):
        gap = worst(subject.run(module, *(x[row : row + 1] for x in inputs)), together[row : row + 1])
        if gap > subject.precision:
            raise Broken(f"row {row} alone differs {amount(gap)} from row {row} in a batch of 3 (N={n}, {pattern})")
    turned = subject.run(module, *(x.flip(0) for x in inputs)).flip(0)
    if (gap := worst(turned, together)) > subject.precision:
        raise Broken(f"the rows in another order give outputs that differ {amount(gap)} (N={n}, {pattern})")


def _check_tokens(subject: Subject, module: nn.Module) -> None:
    """A token changed changes no other."""
    for n in (2, 9, 70):
        (x,) = subject.inputs("", n)
        if subject.kind == "position" and module.role == "bias":
            return  # a bias reads positions alone
        before = subject.run(module, x)
        for at in {0, n // 2, n - 1}:
            changed = x.clone()
            changed[:, at] = 30 * subject.inputs("", n, salt=1)[0][:, at]
            gap = deviation(subject.run(module, changed), before).amax((0, 2))
            gap[at:] = 0 if getattr(module, "contextual", False) else gap[at:]  # tokens move on those after them
            gap[at] = 0
            if gap.max() > subject.precision:
                token = int(gap.argmax())
                raise Broken(
                    f"output {token} changed {amount(float(gap.max()))} (relative) when only token {at} did (N={n}); "
                    f"a {subject.kind} part treats every token by itself"
                )


def _check_state(subject: Subject, module: nn.Module) -> None:
    """The same for the rows of extend's state."""
    pieces = [12, 1, 1, 6]
    (x,), (other,) = subject.inputs("causal", 20, 3), subject.inputs("causal", 20, 3, salt=1)
    changed = torch.cat([x[:1], 10 * other[1:2], x[2:]])
    try:
        before, after = (run_split(subject, module, rows, pieces, 20)[0] for rows in (x, changed))
    except Exception:
        return  # the law of extend tells what was raised
    gap = deviation(after, before).amax((1, 2))
    for row in (0, 2):
        if gap[row] > max(subject.precision, 1e-8):
            raise Broken(f"in extend, row {row} changed {amount(float(gap[row]))} when only row 1 of the batch did")


def _check_padded(subject: Subject, module: nn.Module, pattern: str) -> None:
    for lengths in LENGTHS:
        n = max(lengths)
        if n > subject.limit:
            continue
        inputs = subject.inputs(pattern, n, 3)
        # A context's rows end three tokens later than x's: both stay aligned at their ends.
        counts = [torch.tensor(lengths), torch.tensor(lengths) + 3][: len(inputs)]
        filled = []
        for x, count in zip(inputs, counts, strict=True):
            pad = torch.arange(x.shape[1])[None, :, None] >= count[:, None, None]
            filled.append(torch.where(pad, 20 * x.flip(1), x))
        layouts = [Layout((x.shape[1],), lengths=count) for x, count in zip(filled, counts, strict=True)]
        out = subject.run(module, *filled, **_named(layouts))
        if not out.isfinite().all():
            raise Broken(f"outputs at padded places are not finite (lengths {list(lengths)}, {pattern})")
        for row, count in enumerate(lengths):
            alone = subject.run(module, *(x[row : row + 1, : int(c[row])] for x, c in zip(filled, counts, strict=True)))
            found = out[row : row + 1, :count]
            if pattern == "causal" and worst(alone, found) > subject.precision:
                plain = subject.run(module, filled[0][row : row + 1])[:, :count]
                if worst(found, plain) <= subject.precision:
                    continue  # forward itself sees the tokens that follow: the law of causality tells
            _compare(subject, found, alone, f"row {row} padded from {count} to {n}", pattern)


def _check_packed(subject: Subject, module: nn.Module, pattern: str) -> None:
    for bounds in BOUNDS:
        n = bounds[-1]
        if n > subject.limit:
            continue
        (x, *rest) = subject.inputs(pattern, n, 1)
        spans = [bounds]
        layouts = [Layout((n,), offsets=torch.tensor(bounds))]
        if rest:
            spans.append(tuple(b + 2 * i for i, b in enumerate(bounds)))  # two more context tokens a sequence
            rest = [subject.randn(1, spans[1][-1], subject.dim, salt=9)]
            layouts.append(Layout((spans[1][-1],), offsets=torch.tensor(spans[1])))
        inputs = (x, *rest)
        out = subject.run(module, *inputs, **_named(layouts))
        for i in range(len(bounds) - 1):
            alone = subject.run(module, *(t[:, s[i] : s[i + 1]] for t, s in zip(inputs, spans, strict=True)))
            found = out[:, bounds[i] : bounds[i + 1]]
            _compare(subject, found, alone, f"sequence {i} of the packed bounds {list(bounds)}", pattern)


def _named(layouts: list[Layout]) -> dict[str, Layout]:
    return dict(zip(("layout", "context_layout"), layouts, strict=False))


def _compare(subject: Subject, found: Tensor, alone: Tensor, what: str, pattern: str) -> None:
    if found.shape != alone.shape:
        raise Broken(f"{what} has the shape {tuple(found.shape)}, alone {tuple(alone.shape)} ({pattern})")
    gap = deviation(found, alone).amax((0, 2))
    if gap.max() > max(subject.precision, 1e-9):
        token = int((gap > subject.precision).nonzero()[0])
        raise Broken(
            f"{what}: output {token} differs {amount(float(gap.max()))} (relative) from the sequence alone "
            f"({pattern}); compute it exactly or raise Unsupported"
        )
