"""Every Triton kernel, as its op launches it, compiled for NVIDIA GPUs, which needs none of them: Triton's interpreter
runs code that its compiler refuses. What a kernel needs of shared memory stays below what the launchers say."""

from __future__ import annotations

import itertools

import pytest
import torch

from formwright.ops import recurrence_triton
from formwright.ops.recurrence import linear_recurrence
from formwright.ops.scan import linear_scan
from formwright.ops.selective_scan import selective_scan

pytestmark = pytest.mark.skipif(
    not recurrence_triton.INSTALLED or recurrence_triton.INTERPRETED,
    reason="compiling Triton's kernels needs the package triton, and TRITON_INTERPRET unset",
)
AMPERE, HOPPER = 80, 90
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}


@pytest.fixture(params=[AMPERE, HOPPER])
def compiled(request, monkeypatch):
    """Launches compile instead: (kernel, shared memory in bytes) of each."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_kernel
    from triton.runtime.jit import JITFunction

    found, seen = [], set()

    def launch(kernel, *args, grid, warmup, **options):
        given = dict(zip(kernel.arg_names, args, strict=False)) | {
            n: options[n] for n in kernel.arg_names if n in options
        }
        fixed = {p.name for p in kernel.params if p.is_constexpr} | {n for n, value in given.items() if value is None}
        kinds = {int: "i32", float: "fp32"}
        signature = {
            n: "constexpr" if n in fixed else POINTERS[v.dtype] if torch.is_tensor(v) else kinds[type(v)]
            for n, v in given.items()
        }
        constants = {(kernel.arg_names.index(n),): given[n] for n in fixed}
        settings = {n: options[n] for n in ("num_warps", "num_stages") if n in options}
        key = (kernel.__name__, str(signature), str(constants), str(settings))
        if key not in seen:
            seen.add(key)
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
            made = compile_kernel(source, target=GPUTarget("cuda", request.param, 32), options=settings)
            found.append((kernel.__name__, made.metadata.shared))

    monkeypatch.setattr(recurrence_triton, "INTERPRETED", True)  # the launchers then take tensors of the CPU
    monkeypatch.setattr(JITFunction, "run", launch)
    return found


def go(op, backend="triton", **inputs):
    leaves = {n: t if t is None else t.requires_grad_() for n, t in inputs.items()}
    out, last = op(**leaves, backend=backend)
    (out.float().sum() + last.float().sum()).backward()


@pytest.mark.parametrize(
    ("key", "value", "dtype"), [(64, 128, torch.bfloat16), (128, 128, torch.float32), (256, 256, torch.float32)]
)
@pytest.mark.parametrize(("decay", "delta"), list(itertools.product((None, "scalar", "diagonal"), (False, True))))
def test_the_recurrence(compiled, decay, delta, key, value, dtype):
    shape = {None: None, "scalar": (1, 70, 2), "diagonal": (1, 70, 2, key)}[decay]
    q, k, v = (torch.zeros(1, 70, 2, width, dtype=dtype) for width in (key, key, value))
    decays = None if shape is None else torch.zeros(shape, dtype=dtype)
    go(linear_recurrence, q=q, k=k, v=v, log_decay=decays, beta=torch.zeros(1, 70, 2, dtype=dtype) if delta else None)
    assert {"walk", "read", "read_backward"} <= {name for name, _ in compiled}
    room = recurrence_triton.SHARED if max(key, value) <= 128 else recurrence_triton.SHARED_WIDE
    assert max(shared for _, shared in compiled) <= room << 10, compiled


def test_the_scans(compiled):
    go(linear_scan, a=torch.zeros(1, 70, 40), b=torch.zeros(1, 70, 40))
    for dtype, states in ((torch.float32, 16), (torch.bfloat16, 256)):
        u, delta, b, c = (torch.zeros(2, 70, width, dtype=dtype) for width in (40, 40, states, states))
        go(selective_scan, u=u, delta=delta, a=torch.zeros(40, states), b=b, c=c)
    assert {"scan_forward", "scan_backward", "selective_forward", "selective_backward"} == {n for n, _ in compiled}
