"""Recurrent mixers beside the modules of Hugging Face transformers: same weights, same outputs, same gradients.

A module of theirs gets random weights. `weights` of a pair writes each parameter of ours as a function of theirs, and
our mixer runs on these, so that both ways end in gradients of the same parameters. Output, their parameters' gradients
and the input's are compared, each beside its own largest number. Their xLSTM is the 7B model's (arXiv 2503.13427); the
first paper's block is compared with the package `xlstm`.
"""

from __future__ import annotations

import pytest
import torch
from agreement import agree, differences
from hybrids import HYBRIDS
from pairs import PAIRS, transformers_xlstm
from torch import nn
from torch.func import functional_call

from formwright.contract import Layout
from formwright.mixers.mlstm import mlstm_cell

pytest.importorskip("transformers", reason="parity needs transformers; run make parity")

BATCH = 2


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


@pytest.mark.parametrize(
    ("pair", "n"),
    [pytest.param(pair, n, id=f"{name}-{n}") for name, pair in (PAIRS | HYBRIDS).items() for n in pair.lengths],
)
def test_same_weights_same_function(pair, n):
    torch.manual_seed(n)
    theirs, ours = pair.theirs().to(pair.dtype), pair.ours(causal=True)
    randomise(theirs)
    x = torch.randn(BATCH, n, ours.dim, dtype=pair.dtype, requires_grad=True)
    found = differences(
        {"output": pair.run(theirs, x)},
        {"output": functional_call(ours, pair.weights(theirs), (x, Layout((n,))), strict=True)},
        {"x": x, **dict(theirs.named_parameters())},
        # Nothing has faded before the first token, so that decays begin to matter at the second.
        idle=n == 1,
    )
    agree(found)


# With one token the forget gate matters by nothing but an eps.
@pytest.mark.parametrize("n", [2, 61, 203])
def test_mlstm_cell(n):
    torch.manual_seed(n)
    m = transformers_xlstm()
    theirs = m.xLSTMBackend(m.xLSTMConfig(chunk_size=64))
    q, k, v = (torch.randn(BATCH, n, 3, 16, requires_grad=True) for _ in range(3))
    write, forget = (torch.randn(BATCH, n, 3).mul(2).requires_grad_() for _ in range(2))

    outer = theirs(*(t.transpose(1, 2) for t in (q, k, v, write, forget)))[0].transpose(1, 2)
    inner = mlstm_cell(q, k, v, torch.cat([write, forget], -1))[0]
    leaves = {"q": q, "k": k, "v": v, "write": write, "forget": forget}
    agree(differences({"output": outer}, {"output": inner}, leaves))
