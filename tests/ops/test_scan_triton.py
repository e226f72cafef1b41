"""Triton's kernels of ops.linear_scan and ops.selective_scan against the definitions: on CUDA, or on the CPU with
TRITON_INTERPRET=1."""

from __future__ import annotations

import os

import pytest
import torch

from formwright.ops import recurrence_triton
from formwright.ops.scan import explain, linear_scan
from formwright.ops.selective_scan import explain as explain_selective
from formwright.ops.selective_scan import selective_scan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
kernels = pytest.mark.skipif(
    not (recurrence_triton.INSTALLED and (DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")),
    reason="Triton's kernels need the package triton, and CUDA or TRITON_INTERPRET=1",
)


def compare(op, inputs, *, tolerance=1e-5, dtype=torch.float32, **options):
    """Results and gradients of the kernels beside the definition's in float64."""
    found = []
    for kind, device, backend in ((dtype, DEVICE, "triton"), (torch.float64, "cpu", "reference")):
        leaves = {n: t.to(dtype).to(device, kind).detach().clone().requires_grad_() for n, t in inputs.items()}
        results = op(**leaves, backend=backend, **options)
        weights = [torch.randn(t.shape, generator=torch.Generator().manual_seed(1)).to(t) for t in results]
        torch.autograd.backward(results, weights)
        found.append([t.detach().double().cpu() for t in (*results, *(t.grad for t in leaves.values()))])
    for name, ours, wanted in zip(["out", "last", *inputs], *found, strict=True):
        assert (ours - wanted).abs().max() <= tolerance * wanted.abs().max().clamp(min=1e-6), name


def scan_inputs(*shape, low=-1.0):
    g = torch.Generator().manual_seed(0)
    a = low + (1 - low) * torch.rand(shape, generator=g)
    b = torch.randn(shape, generator=g)
    return {"a": a, "b": b, "state": torch.randn(shape[0], *shape[2:], generator=g)}


@kernels
@pytest.mark.parametrize("shape", [(2, 1, 3), (1, 63, 5), (2, 64, 33), (3, 130, 2, 4), (2, 67)])
def test_linear_scan(shape):
    compare(linear_scan, scan_inputs(*shape))


@kernels
def test_linear_scan_that_starts_anew_is_exact():
    inputs = scan_inputs(1, 90, 3)
    inputs["a"][:, 40] = 0
    compare(linear_scan, inputs)
    compare(linear_scan, inputs, dtype=torch.bfloat16, tolerance=2e-2)


def selective_inputs(batch, tokens, dim, states, rows=None):
    g = torch.Generator().manual_seed(0)
    return {
        "u": torch.randn(batch, tokens, dim, generator=g),
        "delta": 0.5 * torch.rand(batch, tokens, dim, generator=g),
        "a": -2 * torch.rand(dim, states, generator=g),
        "b": torch.randn(batch, tokens, states, generator=g),
        "c": torch.randn(batch, tokens, states, generator=g),
        "state": torch.randn(rows or batch, dim, states, generator=g),
    }


@kernels
@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (1, 63, 5, 16), (2, 64, 3, 1), (1, 130, 70, 17)])
def test_selective_scan(shape):
    compare(selective_scan, selective_inputs(*shape))


@kernels
def test_selective_scan_of_packed_sequences():
    compare(selective_scan, selective_inputs(1, 90, 3, 4, rows=4), offsets=torch.tensor([0, 1, 66, 66, 90]))


@kernels
def test_what_the_kernels_cannot_do_is_refused():
    with pytest.raises(ValueError, match="complex64"):
        linear_scan(*(torch.ones(1, 4, 2, dtype=torch.complex64, device=DEVICE),) * 2, backend="triton")
    wide = {n: t.to(DEVICE) for n, t in selective_inputs(1, 2, 1, 300).items()}
    with pytest.raises(ValueError, match="not 300"):
        selective_scan(**wide, backend="triton")


def test_without_triton_or_cuda_it_says_so(monkeypatch):
    monkeypatch.setattr(recurrence_triton, "INTERPRETED", False)
    cpu = torch.ones(1, 4, 2)
    with pytest.raises(ValueError, match=r"need CUDA|pip install triton"):
        linear_scan(cpu, cpu, backend="triton")
    with pytest.raises(ValueError, match=r"need CUDA|pip install triton"):
        selective_scan(cpu, cpu, torch.ones(2, 3), torch.ones(1, 4, 3), torch.ones(1, 4, 3), backend="triton")
    with pytest.raises(ValueError, match="not form='parallel'"):
        linear_scan(cpu, cpu, form="parallel", backend="triton")
    for told in (explain, explain_selective):
        with pytest.raises(ValueError, match=r"need CUDA|pip install triton"):
            told(9, backend="triton")
        assert "in PyTorch" in told(9) and "for CUDA" in told(9)
        assert torch.cuda.is_available() or "there is none here" in told(9, device="cuda")


def test_explain_names_the_kernels(monkeypatch):
    monkeypatch.setattr(recurrence_triton, "INSTALLED", True)
    for told in (explain, explain_selective):
        assert "Triton" in told(9, device="cuda", backend="triton")
