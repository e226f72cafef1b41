"""Recurrent mixers beside the modules of Hugging Face transformers: same weights, same outputs, same gradients.

A module of theirs gets random weights. `weights` of a pair writes each parameter of ours as a function of theirs, and
our mixer runs on these, so that both ways end in gradients of the same parameters. Output, their parameters' gradients
and the input's are compared, each beside its own largest number. Their xLSTM is the 7B model's (arXiv 2503.13427),
whose layer is another than the first paper's block: its cell is compared here, the block with the package `xlstm`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pairs import PAIRS
from torch import Tensor, nn
from torch.func import functional_call

from formwright.contract import Layout
from formwright.mixers.mlstm import MLSTM

transformers = pytest.importorskip("transformers", reason="parity needs transformers; run make parity")

BATCH, LENGTHS = 2, [1, 61, 203]
TOLERANCE = 1e-4
# Numbers below it are compared beside it: gates that matter by nothing but an eps have gradients made of rounding.
SMALL = 1e-3


def randomise(module: nn.Module) -> None:
    """Weights of a size that keeps all gates open; scales around 1; nothing 0 or 1 by chance."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "norm" in name or name.endswith("D"):
                p.normal_(1, 0.3)
            elif p.ndim == 1 or "log" in name or "bias" in name:
                p.normal_(0, 0.5)
            else:
                p.normal_(0, p.shape[-1] ** -0.5)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, beside the largest number of theirs."""
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=SMALL)).item()


def compare(run_theirs: Callable[[], Tensor], run_ours: Callable[[], Tensor], leaves: dict[str, Tensor]) -> None:
    """Outputs (B, N, ...) and gradients by `leaves` under a random cotangent agree."""
    theirs, ours = run_theirs(), run_ours()
    assert ours.shape == theirs.shape
    found = {"output": difference(ours, theirs)}
    cotangent = torch.randn_like(theirs)
    gradients = [torch.autograd.grad(y, leaves.values(), cotangent, materialize_grads=True) for y in (ours, theirs)]
    for name, a, b in zip(leaves, *gradients, strict=True):
        # Nothing has faded before the first token, so that decays begin to matter at the second.
        assert theirs.shape[1] == 1 or b.abs().max() > SMALL, f"{name} has no part in the output"
        found[name] = difference(a, b)
    apart = {name: value for name, value in found.items() if not value <= TOLERANCE}
    assert not apart, f"they differ in {apart}"


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_same_weights_same_function(pair, n):
    torch.manual_seed(n)
    theirs, ours = pair.theirs().to(pair.dtype), pair.ours(causal=True)
    randomise(theirs)
    x = torch.randn(BATCH, n, ours.dim, dtype=pair.dtype, requires_grad=True)

    def run_ours() -> Tensor:
        return functional_call(ours, pair.weights(theirs), (x, Layout((n,))), strict=True)

    compare(lambda: pair.run(theirs, x), run_ours, {"x": x, **dict(theirs.named_parameters())})


@pytest.mark.parametrize("n", LENGTHS)
def test_mlstm_cell(n, monkeypatch):
    # With the package xlstm at hand, transformers would take its kernels in place of code of its own.
    monkeypatch.setattr(transformers.utils, "is_xlstm_available", lambda: False)
    from transformers.models.xlstm.modeling_xlstm import xLSTMBackend, xLSTMConfig

    torch.manual_seed(n)
    theirs, ours = xLSTMBackend(xLSTMConfig(chunk_size=64)), MLSTM(32, causal=True, heads=3, head_dim=16)
    q, k, v = (torch.randn(BATCH, n, 3, 16, requires_grad=True) for _ in range(3))
    write, forget = (torch.randn(BATCH, n, 3).mul(2).requires_grad_() for _ in range(2))

    def run_theirs() -> Tensor:
        return theirs(*(t.transpose(1, 2) for t in (q, k, v, write, forget)))[0].transpose(1, 2)

    def run_ours() -> Tensor:
        return ours._memory(q, k, v, torch.cat([write, forget], -1), None, None, None)[0]

    compare(run_theirs, run_ours, {"q": q, "k": k, "v": v, "write": write, "forget": forget})
