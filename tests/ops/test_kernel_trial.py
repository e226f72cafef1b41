"""backend="auto" takes Triton's kernels where a trial shows them right, and says why where it doesn't."""

from __future__ import annotations

import pytest
import torch

from formwright import parts
from formwright.contract import Layout
from formwright.ops import kernel_trial, recurrence, recurrence_triton, scan, selective_scan
from formwright.ops.kernel_trial import not_now, trial

INPUTS = [torch.linspace(-1, 1, 12).view(3, 4), torch.linspace(1, 2, 12).view(3, 4)]
CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(
    not (recurrence_triton.INSTALLED and recurrence_triton.INTERPRETED),
    reason="trying Triton's kernels without a GPU needs the package triton and TRITON_INTERPRET=1",
)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def product(a, b):
    return (a * b, a + b)


class Wrong(torch.autograd.Function):
    """Right values, wrong gradients."""

    @staticmethod
    def forward(ctx, a):
        return a.clone()

    @staticmethod
    def backward(ctx, g):
        return 1.1 * g


def broken(a, b):
    raise RuntimeError("no such kernel")


def tried(kernels, gradients=True):
    """A trial of them beside `product`."""

    def op(*tensors, backend):
        return (kernels if backend == "triton" else product)(*tensors)

    return trial("it", op, INPUTS, CPU, torch.float32, gradients)


def test_what_agrees_passes():
    assert tried(product) is None
    with torch.inference_mode():
        assert tried(product) is None
    assert tried(lambda a, b: (a * Wrong.apply(b), a + b), gradients=False) is None


@pytest.mark.parametrize(
    ("kernels", "word"),
    [
        (lambda a, b: (a * b, a + 1.01 * b), "wrong by"),
        (lambda a, b: (a * b, a + b / (b - b)), "wrong by inf"),
        (lambda a, b: (a * Wrong.apply(b), a + b), "wrong by"),
        (broken, "no such kernel"),
    ],
)
def test_what_differs_or_fails_is_told_and_warned_of(kernels, word):
    with pytest.warns(UserWarning, match=f"it stays in PyTorch: .*{word}"):
        assert word in tried(kernels)


def test_running_out_of_memory_says_nothing_about_kernels():
    def starved(a, b):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        tried(starved)


def test_no_trial_without_a_gpu():
    assert "for CUDA" in not_now(CPU)
    if not torch.cuda.is_available():
        assert "there is none here" in not_now(torch.device("cuda"))


def kinds():
    yield from ((recurrence.kernels_tried, (8, 12, d, b)) for d in (None, "scalar", "diagonal") for b in (False, True))
    yield scan.kernel_tried, ()
    yield selective_scan.kernels_tried, (5,)


@interpreted
@pytest.mark.parametrize(("asked", "options"), [*kinds()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gradients", [True, False])
def test_the_kernels_pass_their_trial(asked, options, dtype, gradients):
    assert asked.__wrapped__(CPU, dtype, *options, gradients=gradients) is None


@interpreted
def test_a_wrong_kernel_does_not(monkeypatch):
    right = recurrence_triton._forward
    monkeypatch.setattr(recurrence_triton, "_forward", lambda q, *rest: right(1.01 * q, *rest))
    with pytest.warns(UserWarning, match=r"linear_recurrence .* stays in PyTorch"):
        assert "wrong by" in recurrence.kernels_tried.__wrapped__(CPU, torch.float32, 8, 8, "scalar", True, False)


@interpreted
@pytest.mark.parametrize("offsets", [None, [0, 3, 40, 70]])
@pytest.mark.parametrize("name", ["gla", "mamba", "mamba2", "gated_deltanet", "kda", "min_gru"])
def test_mixers_give_the_same_by_the_kernels(name, offsets, monkeypatch):
    monkeypatch.setattr(kernel_trial, "not_now", lambda device: None)
    torch.manual_seed(0)
    mixer, x = parts.get(name)(16, causal=True), torch.randn(1, 70, 16, requires_grad=True)
    layout = Layout((70,), offsets=None if offsets is None else torch.tensor(offsets))
    found = []
    for backend in ("auto", "torch"):
        mixer.backend = backend
        y = mixer(x, layout)
        found.append([y, *torch.autograd.grad(y.square().mean(), [x, *mixer.parameters()], materialize_grads=True)])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@gpu
def test_auto_takes_the_kernels_on_a_gpu():
    assert "in Triton's kernels: they were right" in recurrence.explain(500, log_decay="scalar", device="cuda")
    assert "they were right" in selective_scan.explain(500, device="cuda")
    assert "it was right" in scan.explain(500, device="cuda")
    q = torch.randn(1, 100, 2, 16, device="cuda")
    o, _ = recurrence.linear_recurrence(q, q, q)
    wanted, _ = recurrence.linear_recurrence(q, q, q, backend="torch")
    assert (o - wanted).abs().max() <= 1e-3 * wanted.abs().max()
