"""Whether Triton's kernels may stand for an op's form in PyTorch on this GPU: backend="auto" tries them on a small
problem before it takes them, once for each kind of input. Where they fail or differ it warns, and the op stays in
PyTorch."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# The largest error of an output or gradient, as a share of its largest number.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
Op = Callable[..., tuple[Tensor, ...]]


def not_now(device: torch.device) -> str | None:
    """Why kernels can't be tried at all here and now, as the end of a sentence; None where they can."""
    if device.type != "cuda":
        return "the kernels are for CUDA"
    if not torch.cuda.is_available():
        return "the kernels are tried on the GPU before they are taken, and there is none here"
    if torch.compiler.is_compiling():
        return "a graph is traced, which the kernels don't go into"
    if torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is captured, in which nothing can be tried"
    return None


def kernels_refused(
    backend: str, tokens: int, device: torch.device, refusal: Callable[[], str | None], tried: Callable[[], str | None]
) -> str | None:
    """Why an op's kernels don't compute N = tokens on a device with that backend, as the end of a sentence; None where
    they do. refusal() is what they can't do, tried() what a trial found, asked last.

    Raises ValueError where backend="triton" asks for what they can't do."""
    if backend == "triton":
        if (why := refusal()) is not None:
            raise ValueError(f"backend='triton' can't compute this: {why}; backend='auto' computes it in PyTorch")
        return None
    if backend != "auto":
        return f"backend={backend!r} was asked for"
    if tokens == 1:
        return "one step has nothing to share among them"
    return not_now(device) or refusal() or tried()


def draws() -> Callable[..., Tensor]:
    """torch.randn for a trial's inputs: the same numbers wherever it runs."""
    return functools.partial(torch.randn, generator=torch.Generator().manual_seed(0), device="cpu")


def trial(
    what: str, op: Op, inputs: Sequence[Tensor], device: torch.device, dtype: torch.dtype, gradients: bool
) -> str | None:
    """None where op(*inputs, backend="triton") on the device in that dtype agrees with backend="torch" in float64 on
    the CPU, in outputs and, where asked, in gradients; else what went wrong, which is warned of too. `inputs` are on
    the CPU and rounded to the dtype here; `what` names the op, its dtype and sizes."""
    inputs = [t.to(dtype) for t in inputs]
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        wanted = _run(functools.partial(op, backend="torch"), [t.double() for t in inputs])
        try:
            found = _run(functools.partial(op, backend="triton"), [t.to(device) for t in inputs])
        except torch.OutOfMemoryError:
            raise
        # Whatever it is that keeps them from running, the op itself can still be computed.
        except Exception as error:
            wrong = f"the kernels failed when they were tried on this GPU ({type(error).__name__}: {error})"
        else:
            gap = max(_gap(x, y) for x, y in zip(found, wanted, strict=True))
            if gap <= TOLERANCE[dtype]:
                return None
            wrong = f"the kernels were wrong by {gap:.1e} when they were tried on this GPU"
    warnings.warn(f"{what} stays in PyTorch: {wrong}; please report it", stacklevel=2)
    return wrong


def _run(op: Op, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs, and with gradients those of all inputs for cotangents that are the same on every device."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    outs = op(*leaves)
    g, slopes = torch.Generator().manual_seed(1), ()
    if torch.is_grad_enabled():
        cotangents = [torch.randn(o.shape, generator=g, dtype=torch.float64, device="cpu").to(o) for o in outs]
        slopes = torch.autograd.grad(outs, leaves, cotangents)
    return [t.detach().double().cpu() for t in (*outs, *slopes)]


def _gap(found: Tensor, wanted: Tensor) -> float:
    gap = (found - wanted).abs().max() / wanted.abs().max()
    return float("inf") if gap.isnan() else gap.item()
