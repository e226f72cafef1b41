"""conditional_position: a depthwise convolution over the grid, added to the tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import formwright
from formwright.build import BuildProblem
from formwright.contract import Layout, Unsupported
from formwright.wiring.conditional_position import ConditionalPosition

IMAGE = {"channels": 1, "classes": 2}


def tokens(*shape):
    return torch.randn(*shape, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("grid", "prefix"), [((9,), 0), ((4, 5), 1), ((2, 3, 4), 0)])
def test_it_is_a_residual_depthwise_convolution(grid, prefix):
    part, x = ConditionalPosition(6, rank=len(grid)).double(), tokens(2, prefix + math.prod(grid))
    nn.init.normal_(part.bias)
    convolve = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(grid) - 1](6, 6, 3, padding=1, groups=6).double()
    convolve.weight.data, convolve.bias.data = part.weight.data.unsqueeze(1), part.bias.data
    found, after = part(x, Layout(grid, prefix))
    assert after == Layout(grid, prefix) and torch.equal(found[:, :prefix], x[:, :prefix])
    at = x[:, prefix:]
    torch.testing.assert_close(found[:, prefix:], at + convolve(at.mT.unflatten(2, grid)).flatten(2).mT)


@pytest.mark.parametrize("causal", [False, True])
def test_padded_is_packed_is_alone(causal):
    part, x = ConditionalPosition(6, causal=causal, rank=1).double(), tokens(3, 8)
    nn.init.normal_(part.bias)
    lengths = [8, 1, 5]
    alone = [part(x[row : row + 1, :n], Layout((n,)))[0] for row, n in enumerate(lengths)]
    padded = part(x, Layout((8,), lengths=torch.tensor(lengths)))[0]
    joined = torch.cat([x[row : row + 1, :n] for row, n in enumerate(lengths)], 1)
    packed = part(joined, Layout((14,), offsets=torch.tensor([0, 8, 9, 14])))[0]
    torch.testing.assert_close(packed, torch.cat(alone, 1))
    for row, n in enumerate(lengths):
        torch.testing.assert_close(padded[row : row + 1, :n], alone[row])


def test_a_causal_one_looks_back_and_decodes():
    text = "tokens(dim=16, vocab=11) >> attention(heads=2) >> conditional_position(size=4) >> attention(heads=2) >> lm"
    model = formwright.build(text).double().eval()
    inputs = torch.randint(11, (2, 20))
    whole = model(inputs)
    state, outs = model.empty(2), []
    for a, b in ((0, 2), (2, 3), (3, 11), (11, 12), (12, 20)):
        out, state = model.extend(inputs[:, a:b], state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole)
    changed = inputs.clone()
    changed[:, 9] += 1
    torch.testing.assert_close(model(changed % 11)[:, :9], whole[:, :9])


def test_models_of_images_read_grids_of_any_size_and_state_their_cost():
    text = (
        "patches(dim=16, size=2, position=None) >> attention >> conditional_position >> attention + swiglu >> classify"
    )
    model = formwright.build(text, facts={**IMAGE, "image": (8, 8)})
    assert model(torch.randn(2, 12, 6, 1)).shape == (2, 2)
    part = next(m for m in model.modules() if isinstance(m, ConditionalPosition))
    assert part.weight.shape == (16, 3, 3)
    x, layout = torch.randn(3, 24, 16), Layout((4, 6))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        part(x, layout)
    assert 2 * part.cost(layout, 3).macs == counter.get_total_flops()
    model(torch.randn(2, 8, 8, 1)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_without_it_a_model_is_blind_to_order_and_with_it_not():
    x = torch.randint(11, (1, 9))
    turned = x.flip(1)
    for part, blind in (("", True), ("conditional_position >> ", False)):
        text = f"tokens(dim=16, vocab=11) >> {part}attention(heads=2) >> classify(classes=3)"
        model = formwright.build(text).eval()
        assert torch.allclose(model(x), model(turned), atol=1e-6) is blind


def test_it_refuses():
    with pytest.raises(BuildProblem, match="make it odd"):
        formwright.build(
            "patches >> conditional_position(size=2) >> attention >> classify", facts={**IMAGE, "image": (8, 8)}
        )
    with pytest.raises(Unsupported, match="an order along one"):
        ConditionalPosition(6, causal=True, rank=2)
    with pytest.raises(Unsupported, match="a grid of 2 axes"):
        ConditionalPosition(6)(tokens(1, 6), Layout((2, 3)))
    with pytest.raises(Unsupported, match="two-directional"):
        ConditionalPosition(6).empty(1)
