"""The law of shapes: shape, dtype and device are kept at any N >= 1, on every grid the card claims; what comes out is
finite, so that memory nobody wrote (poisoned by NaN during a check) is seen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from formwright.check.subject import Broken, Refused, Subject
from formwright.contract import Layout, Unsupported

LENGTHS = (1, 2, 3, 5, 7, 8, 13, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 97, 127, 128, 129, 191, 192, 193)
LONG_LENGTHS = (255, 256, 257, 511, 512, 513, 769, 1000)
GRIDS = {1: (12,), 2: (3, 5), 3: (2, 3, 4)}
WIDTHS = (24, 48, 80)


def shapes(subject: Subject) -> str:
    """Forward at many N, dtypes, widths and grids."""
    claimed = subject.card.patterns if subject.kind == "mixer" and not subject.options else subject.patterns
    if not claimed:
        raise Broken("the card claims no pattern; give it patterns=('self',) or ('causal',) or both")
    for pattern in claimed:
        module = subject.module(pattern, torch.float32)
        for n in subject.sizes(*LENGTHS, *LONG_LENGTHS):
            _check(subject, module, pattern, n, 1 + n % 2, torch.float32)
        for dtype in (torch.float64, torch.bfloat16):
            module = subject.module(pattern, dtype)
            for n in subject.sizes(1, 7, 65, 130):
                _check(subject, module, pattern, n, 3, dtype)
        _check_device(subject, pattern)
        _check_grids(subject, pattern)
        if subject.kind in ("mixer", "channel", "norm"):
            _check_widths(subject, pattern)
    return f"N from 1 to {max(subject.sizes(*LENGTHS, *LONG_LENGTHS))}, float32, float64, bfloat16"


def _check(
    subject: Subject, module: torch.nn.Module, pattern: str, n: int, batch: int, dtype: torch.dtype, dim: int = 0
) -> None:
    inputs = subject.inputs(pattern, n, batch, dtype, dim=dim)
    where = f"N={n}, batch {batch}, {str(dtype).removeprefix('torch.')}{', ' + pattern if pattern else ''}"
    try:
        out = subject.run(module, *inputs)
    except Exception as error:
        raise Broken(f"forward raised at {where}: {type(error).__name__}: {_line(error)}") from error
    compare_form(out, inputs[0], where)
    if not out.isfinite().all():
        token = int((~out.isfinite()).any(-1).any(0).nonzero()[0])
        raise Broken(f"output {token} is not finite at {where}: memory nobody wrote, or a division by zero")


def compare_form(out: Tensor, x: Tensor, where: str) -> None:
    """Raise Broken unless out is a tensor of x's shape, dtype and device."""
    if not isinstance(out, Tensor):
        raise Broken(f"forward gave a {type(out).__name__} instead of a tensor at {where}")
    for name, got, wanted in (
        ("shape", tuple(out.shape), tuple(x.shape)),
        ("dtype", out.dtype, x.dtype),
        ("device", out.device, x.device),
    ):
        if got != wanted:
            raise Broken(f"the {name} {wanted} became {got} at {where}")


def _check_device(subject: Subject, pattern: str) -> None:
    """Nothing made inside stays on the CPU. The meta device stands for all others; parts that read values off a tensor
    can't run there, which the law of compile tells."""
    for device in ("meta", "cuda") if torch.cuda.is_available() else ("meta",):
        module = subject.module(pattern, torch.float32).to(device)
        inputs = [x.to(device) for x in subject.inputs(pattern, 65, 2, torch.float32)]
        try:
            with torch.no_grad():
                out = subject.forward(module, *inputs)
        except (RuntimeError, NotImplementedError) as error:
            if device == "meta" and "device" not in str(error).lower().replace("meta device", ""):
                continue
            if "item()" in str(error) or "copy out of meta" in str(error):
                continue
            raise Broken(f"on another device than the CPU ({device}) forward raised: {_line(error)}") from error
        if out.device.type != device:
            raise Broken(f"tokens on the device {device} came back on {out.device}")


def _check_grids(subject: Subject, pattern: str) -> None:
    if subject.kind not in ("mixer", "channel") or pattern.endswith("cross"):
        return
    module = subject.module(pattern)
    ranks = subject.card.grid_ranks or (1, 2, 3)
    for rank in ranks:
        for prefix in (0, 1):
            n = prefix + math.prod(GRIDS.get(rank, (2,) * rank))
            layout = Layout(GRIDS.get(rank, (2,) * rank), prefix)
            (x,) = subject.inputs("", n)
            try:
                out = subject.run(module, x, layout=layout)
            except Unsupported as error:
                if prefix == 0 and subject.card.grid_ranks:
                    raise Broken(f"the card claims grids of {rank} axes, but {error}") from error
                continue  # without a claim, and for prefix tokens, a refusal is an answer
            compare_form(out, x, f"the grid {layout.grid} after {prefix} prefix tokens")


def _check_widths(subject: Subject, pattern: str) -> None:
    """Other widths: a part may refuse one with a ValueError when it is made, but not break on it later."""
    made = 0
    for dim in WIDTHS:
        try:
            module = subject.module(pattern, torch.float32, dim=dim)
        except ValueError:
            continue
        made += 1
        _check(subject, module, pattern, 10, 2, torch.float32, dim)
    if not made:
        raise Refused(f"it takes none of the widths {WIDTHS}, only {subject.dim}")


def _line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
