"""Our recurrences beside the naive forms of flash-linear-attention: outputs, states and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from agreement import agree, differences
from others import naive
from recurrences import BATCH, CASES, HEADS, KEY, VALUE, ours
from torch import Tensor

pytest.importorskip("einops", reason="fla's naive forms need einops; run make parity")

LENGTHS = [1, 61, 203]
# All cases agree to some 2e-6, the precision of float32 sums.
TOLERANCE = 1e-5
RUNS = [
    pytest.param(case, n, id=f"{name}-{n}")
    for name, case in CASES.items()
    for n in sorted({-(-n // case.chunk) * case.chunk for n in LENGTHS})
]


def draw(name: str, n: int) -> Tensor:
    """A random input (B, N, H, ...), a state (B, H, ...), or what a channel of its own needs (B, N, D)."""
    wide, tall, flat = (BATCH, n, HEADS, KEY), (BATCH, n, HEADS, VALUE), (BATCH, n, HEADS)
    match name:
        case "q" | "k":
            return torch.randn(wide)
        case "unit" | "reads":  # keys of the delta rule, and of one that reads elsewhere
            return F.normalize(torch.randn(wide), dim=-1)
        case "v":
            return torch.randn(tall)
        case "scalar":
            return F.logsigmoid(torch.randn(flat) + 2)
        case "diagonal":
            return F.logsigmoid(torch.randn(wide) + 2)
        case "beta":
            return torch.rand(flat)
        case "erase":
            return torch.rand(wide)
        case "write":
            return torch.rand(tall)
        case "state":
            return torch.randn(BATCH, HEADS, KEY, VALUE)
        case "total":  # of keys, a positive one
            return torch.rand(BATCH, 1, HEADS, KEY) * n
        case "x" | "u":
            return torch.randn(BATCH, n, KEY)
        case "gate":
            return F.logsigmoid(torch.randn(BATCH, n, KEY) + 2)
        case "delta":
            return F.softplus(torch.randn(BATCH, n, KEY) - 1)
        case "a":
            return -torch.rand(KEY, VALUE) * 2
        case "b" | "c":
            return torch.randn(BATCH, n, VALUE)
        case "channels":  # the state of a scan whose KEY channels have VALUE states each
            return torch.randn(BATCH, KEY, VALUE)
        case "last":
            return torch.randn(BATCH, KEY)
    raise ValueError(f"there is no input {name!r}")


@pytest.mark.parametrize(("case", "n"), RUNS)
def test_same_function(case, n):
    torch.manual_seed(n)
    leaves = {name: draw(name, n).requires_grad_() for name in case.inputs.split()}
    found = differences(case.theirs(naive(case.op), leaves), case.ours(leaves), leaves, idle=n == 1)
    agree(found, TOLERANCE)


@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunked"])
@pytest.mark.parametrize("name", ["simple_gla", "gla", "delta_rule", "gated_delta_rule", "kda"])
def test_every_form(name, form):
    torch.manual_seed(0)
    case = CASES[name]
    leaves = {name: draw(name, 61).requires_grad_() for name in case.inputs.split()}
    agree(differences(case.theirs(naive(case.op), leaves), ours(leaves, form=form), leaves), TOLERANCE)
