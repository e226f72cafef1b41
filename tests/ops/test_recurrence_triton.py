"""Triton's kernels of ops.linear_recurrence against the definition: on CUDA, or on the CPU with TRITON_INTERPRET=1."""

from __future__ import annotations

import itertools
import os

import pytest
import torch
import torch.nn.functional as F

from formwright.ops import recurrence_triton
from formwright.ops.recurrence import explain, linear_recurrence

KINDS = list(itertools.product((None, "scalar", "diagonal"), (False, True)))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
kernels = pytest.mark.skipif(
    not (recurrence_triton.INSTALLED and (DEVICE == "cuda" or INTERPRETED)),
    reason="Triton's kernels need the package triton, and CUDA or TRITON_INTERPRET=1",
)


def make(batch, tokens, heads, key, value, decay, delta, *, dtype=torch.float32, strength=2.0, states=None):
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(batch, tokens, heads, key, generator=g) for _ in range(2))
    shape = {None: None, "scalar": (batch, tokens, heads), "diagonal": (batch, tokens, heads, key)}[decay]
    inputs = {
        "q": q,
        "k": F.normalize(k, dim=-1),
        "v": torch.randn(batch, tokens, heads, value, generator=g),
        "log_decay": None if shape is None else -strength * torch.rand(shape, generator=g),
        "beta": 2 * torch.rand(batch, tokens, heads, generator=g) if delta else None,
        "state": torch.randn(states or batch, heads, key, value, generator=g),
    }
    return {n: None if t is None else t.to(dtype) for n, t in inputs.items()}


def run(inputs, dtype, device, **options):
    """o, the last state and all gradients, for a loss that weighs both results."""
    leaves = {
        n: None if t is None else t.detach().clone().to(device, dtype).requires_grad_() for n, t in inputs.items()
    }
    o, s = linear_recurrence(scale=0.3, **leaves, **options)
    weigh = [torch.randn(t.shape, generator=torch.Generator().manual_seed(5)).to(t) for t in (o, s)]
    torch.autograd.backward((o, s), weigh)
    grads = {n: t.grad for n, t in leaves.items() if t is not None}
    return {n: t.detach().double().cpu() for n, t in {"o": o, "s": s, **grads}.items()}


def compare(inputs, tolerance, floor=1e-6, dtype=torch.float32, **options):
    found = run(inputs, dtype, DEVICE, backend="triton", **options)
    expected = run(inputs, torch.float64, "cpu", backend="reference", **options)
    for name, want in expected.items():
        error = (found[name] - want).abs().max() / want.abs().max().clamp(min=floor)
        assert error < tolerance, (name, error.item())


@kernels
@pytest.mark.parametrize(("decay", "delta"), KINDS)
@pytest.mark.parametrize("tokens", [1, 63, 65, 130])
def test_equals_the_definition(decay, delta, tokens):
    compare(make(2, tokens, 3, 5, 20, decay, delta), 1e-5)


@kernels
@pytest.mark.parametrize(("decay", "delta"), KINDS)
def test_several_tiles_of_keys_and_values(decay, delta):
    compare(make(1, 70, 1, 72, 136, decay, delta), 1e-5)


@kernels
@pytest.mark.parametrize("decay", [None, "diagonal"])
def test_the_widest_heads(decay):
    compare(make(1, 65, 1, 256, 256, decay, True, strength=0.1), 1e-5)


@kernels
@pytest.mark.parametrize(("decay", "delta"), KINDS)
def test_packed_sequences(decay, delta):
    compare(make(1, 150, 2, 4, 3, decay, delta, states=5), 1e-5, offsets=torch.tensor([0, 1, 66, 66, 70, 150]))


@kernels
@pytest.mark.parametrize(("decay", "delta"), [kind for kind in KINDS if kind[0]])
@pytest.mark.parametrize("strength", [1e-3, 20.0, 300.0, float("inf")])
def test_strong_decay_is_safe(decay, delta, strength):
    inputs = make(2, 130, 2, 6, 5, decay, delta, strength=min(strength, 300.0))
    if strength == float("inf"):
        inputs["log_decay"][:, ::3] = -float("inf")
    compare(inputs, 3e-4, floor=1e-3)


@kernels
@pytest.mark.parametrize(("decay", "delta"), KINDS)
def test_bfloat16(decay, delta):
    compare(make(1, 100, 2, 8, 8, decay, delta, dtype=torch.bfloat16, strength=0.5), 1e-2, dtype=torch.bfloat16)


@kernels
def test_the_state_keeps_its_dtype_and_strides_do_not_matter():
    inputs = make(2, 66, 2, 4, 4, "scalar", False, dtype=torch.bfloat16)
    inputs = {n: None if t is None else t.to(DEVICE) for n, t in inputs.items()}
    inputs["state"] = inputs["state"].float()
    o, s = linear_recurrence(**inputs, backend="triton")
    assert (o.dtype, s.dtype) == (torch.bfloat16, torch.float32)
    turned = {n: t.transpose(0, 1).contiguous().transpose(0, 1) for n, t in inputs.items() if t is not None}
    again = linear_recurrence(**turned, backend="triton")
    assert torch.equal(o, again[0])
    assert torch.equal(s, again[1])


@kernels
def test_what_the_kernels_cannot_do_is_refused():
    q = torch.zeros(1, 4, 1, 8, device=DEVICE)
    wide = torch.zeros(1, 4, 1, 300, device=DEVICE)
    for given, options, word in (
        ((q.double(),) * 3, {}, "float64"),
        ((q, q, wide), {}, "V=300"),
        ((q, q, q), {"form": "parallel"}, "parallel"),
    ):
        with pytest.raises(ValueError, match=word):
            linear_recurrence(*given, backend="triton", **options)


def test_without_cuda_it_says_so_and_auto_stays_in_pytorch(monkeypatch):
    monkeypatch.setattr(recurrence_triton, "INTERPRETED", False)
    q = torch.zeros(1, 4, 1, 8)
    with pytest.raises(ValueError, match=r"need CUDA|pip install triton"):
        linear_recurrence(q, q, q, backend="triton")
    assert "in PyTorch" in explain(500)
    assert linear_recurrence(q, q, q)[0].device.type == "cpu"


def test_explain_names_the_kernels(monkeypatch):
    monkeypatch.setattr(recurrence_triton, "INSTALLED", True)
    assert "in Triton's kernels: backend='triton' asks" in explain(500, device="cuda", backend="triton")
    assert torch.cuda.is_available() or "there is none here" in explain(500, device="cuda")
    assert "for CUDA" in explain(500)
    with pytest.raises(ValueError, match="the kernels compute"):
        explain(500, device="cuda", dtype=torch.float64, backend="triton")
    monkeypatch.setattr(recurrence_triton, "INSTALLED", False)
    with pytest.raises(ValueError, match="not installed"):
        explain(500, device="cuda", backend="triton")
