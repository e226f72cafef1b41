"""What the laws can't know: that each mixer is the one its paper defines."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from formwright.contract import Layout, Unsupported, state_bytes
from formwright.mixers.activator import Activator
from formwright.mixers.dense import Dense
from formwright.mixers.fourier import Fourier
from formwright.mixers.hyena import Hyena
from formwright.mixers.identity import Identity
from formwright.mixers.pooling import Pooling
from formwright.mixers.random import Random

CAUSAL = [
    (Identity, {}),
    (Activator, {}),
    (Pooling, {"window": 4}),
    (Dense, {"length": 20}),
    (Dense, {"length": 20, "project": True}),
    (Random, {"length": 20}),
    (Hyena, {"length": 12, "order": 3}),
]
GRIDDED = [*((cls, {}) for cls in (Identity, Activator, Pooling, Fourier)), (Dense, {"length": 30}), (Hyena, {})]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def made(cls, **options):
    return cls(8, **options).double()


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(("cls", "options"), CAUSAL)
@pytest.mark.parametrize("cuts", [[1] * 17, [16, 1], [1, 16], [5, 1, 8, 3]])
@pytest.mark.parametrize("capacity", [17, 4, None])
def test_extend_is_forward(cls, options, cuts, capacity):
    mixer, x = made(cls, causal=True, **options), randn(2, 17, 8)
    whole = mixer(x, Layout((17,)))
    with torch.no_grad():
        state, pieces = mixer.empty(2, capacity=capacity, like=x), []
        for piece in x.split(cuts, 1):
            y, state = mixer.extend(piece, state)
            pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("cls", "options"), CAUSAL)
def test_extend_carries_gradients_across_pieces(cls, options):
    mixer, x = made(cls, causal=True, **options), randn(2, 9, 8).requires_grad_()
    weights = randn(2, 9, 8)
    (expected,) = torch.autograd.grad((mixer(x, Layout((9,))) * weights).sum(), x)
    state, pieces = mixer.empty(2, capacity=9, like=x), []
    for piece in x.split([4, 1, 1, 3], 1):
        y, state = mixer.extend(piece, state)
        pieces.append(y)
    (actual,) = torch.autograd.grad((torch.cat(pieces, 1) * weights).sum(), x)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("cls", "options"), CAUSAL)
def test_state_bytes_are_those_of_cost(cls, options):
    mixer = cls(8, causal=True, **options)
    _, state = mixer.extend(torch.randn(2, 7, 8), mixer.empty(2, capacity=7))
    assert mixer.cost(Layout((7,)), 2).state_bytes == state_bytes(state)


@pytest.mark.parametrize(
    ("cls", "options"), [*GRIDDED, (Hyena, {"rank": 2}), (Hyena, {"rank": 2, "directions": "first"})]
)
def test_cost_over_a_grid(cls, options):
    mixer, x, layout = made(cls, **options), randn(2, 20, 8), Layout((4, 5))
    with FlopCounterMode(display=False) as counter:
        mixer(x, layout)
    assert counter.get_total_flops() == 2 * mixer.cost(layout, 2).macs


BOTH = [(cls, options, causal) for cls, options in CAUSAL for causal in (True, False) if causal or cls is not Pooling]


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize(("cls", "options", "causal"), [*BOTH, (Pooling, {}, False), (Fourier, {}, False)])
def test_padded_and_packed_are_alone(cls, options, causal, lengths):
    mixer, x = made(cls, causal=causal, **options), randn(2 if lengths else 1, 9, 8)
    if lengths:
        layout = Layout((9,), lengths=torch.tensor([4, 9]))
        x[0, 4:] = 1e3
    else:
        layout = Layout((9,), offsets=torch.tensor([0, 1, 4, 9]))
    y = mixer(x, layout)
    assert y.isfinite().all()
    for row, where, alone in layout.sequences():
        expected = mixer(x[row : row + 1, where], alone)[0]
        torch.testing.assert_close(y[row, where], expected, rtol=1e-9, atol=1e-9)


def test_hyena_is_the_recurrence_of_the_paper():
    mixer, x = made(Hyena, causal=True, length=16, order=2), randn(1, 11, 8)
    u = F.conv1d(
        F.pad(mixer.inputs(x).transpose(1, 2), (2, 0)), mixer.short_weight[:, None], mixer.short_bias, groups=24
    ).transpose(1, 2)
    z, first, second = u.chunk(3, -1)
    h = mixer.filters((11,))
    for p, gate in enumerate((first, second)):
        z = gate * torch.stack([sum(h[p, t - s] * z[:, s] for s in range(t + 1)) for t in range(11)], 1)
    torch.testing.assert_close(mixer(x, Layout((11,))), mixer.out(z))


def test_hyena_filters_do_not_depend_on_the_number_of_tokens():
    mixer = made(Hyena, causal=True, length=16)
    torch.testing.assert_close(mixer.filters((40,))[:, :7], mixer.filters((7,)))
    both = made(Hyena, length=16)
    torch.testing.assert_close(both.filters((9,))[:, 3:-3], both.filters((6,)))
    assert both.filters((6,)).shape == (2, 11, 8)


def test_hyena_window_decays_by_channel():
    mixer = made(Hyena, causal=True, length=100)
    with torch.no_grad():
        mixer.tap.zero_()
        for layer in mixer.filter:
            layer.weight.zero_()
            layer.bias.fill_(math.pi / 2 / 14)
        mixer.filter_out.weight.fill_(1 / 64)
    h = mixer.filters((101,))[0]
    torch.testing.assert_close(h[30, -1].item(), 0.01, rtol=1e-6, atol=0)
    torch.testing.assert_close(h[100, 0].item(), 0.01 ** (1 / 1.5), rtol=1e-6, atol=0)


def test_hyena_over_a_grid_turns_with_it():
    """With equal weights for all corners, flipping the image flips the output of all but the short filters."""
    mixer = made(Hyena, rank=2, length=20)
    with torch.no_grad():
        mixer.short_weight.copy_(mixer.short_weight + mixer.short_weight.flip(1))
        mixer.short_weight.copy_(mixer.short_weight + mixer.short_weight.flip(2))
    x, layout = randn(2, 4, 5, 8), Layout((4, 5))
    y = mixer(x.flatten(1, 2), layout).unflatten(1, (4, 5))
    for axes in ((1,), (2,), (1, 2)):
        turned = mixer(x.flip(axes).flatten(1, 2), layout).unflatten(1, (4, 5))
        torch.testing.assert_close(turned, y.flip(axes))
    first = made(Hyena, rank=2, length=20, directions="first", short=1)
    changed = x.clone()
    changed[:, 2, 3] += 1
    moved = (
        (first(changed.flatten(1, 2), layout) - first(x.flatten(1, 2), layout)).unflatten(1, (4, 5)).abs().amax((0, 3))
    )
    seen = moved > 1e-9
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[2:, 3:] = True
    assert torch.equal(seen, expected)


def test_hyena_over_three_axes_agrees_with_its_reference():
    mixer, x, layout = made(Hyena, rank=3, length=24), randn(1, 24, 8), Layout((2, 3, 4))
    fast = mixer(x, layout)
    mixer.backend = "reference"
    torch.testing.assert_close(fast, mixer(x, layout))


def test_dense_is_a_matrix_for_each_head():
    mixer, x = made(Dense, length=12, heads=2), randn(3, 10, 8)
    y = mixer(x, Layout((10,)))
    torch.testing.assert_close(y[..., :4], mixer.matrix[0, :10, :10] @ x[..., :4])
    torch.testing.assert_close(y[..., 4:], mixer.matrix[1, :10, :10] @ x[..., 4:])


def test_random_is_frozen_saved_and_normalised():
    mixer, x = made(Random, length=12), randn(3, 10, 8)
    assert not list(mixer.parameters())
    assert "logits" in mixer.state_dict()
    torch.testing.assert_close(mixer(torch.ones_like(x), Layout((10,))), torch.ones_like(x))


def test_activator_gates_each_token_by_itself():
    mixer, x = made(Activator), randn(2, 5, 8)
    u, v = mixer.norm(F.gelu(mixer.gate(x))), mixer.norm(mixer.value(x))
    torch.testing.assert_close(mixer(x, Layout((5,))), mixer.out(u * v))


def test_refusals_name_part_and_option():
    x = randn(1, 6, 8)
    for cls in (Dense, Random):
        mixer = made(cls, length=5, causal=True)
        with pytest.raises(ValueError, match="length=6 or more"):
            mixer(x, Layout((6,)))
        with pytest.raises(ValueError, match="length=6 or more"):
            mixer.extend(x, mixer.empty(1))
    with pytest.raises(ValueError, match="odd"):
        Pooling(8, window=2)
    with pytest.raises(Unsupported, match="causal=True"):
        Fourier(8, causal=True)
    with pytest.raises(Unsupported, match="rank=2"):
        Hyena(8, rank=2, causal=True)
    with pytest.raises(Unsupported, match="rank=2"):
        made(Hyena, rank=2)(x, Layout((6,)))
    with pytest.raises(Unsupported, match="prefix"):
        made(Hyena, rank=2)(x, Layout((1, 5), prefix=1))
    with pytest.raises(Unsupported, match="prefix"):
        made(Pooling)(x, Layout((1, 5), prefix=1))
    with pytest.raises(Unsupported, match="context"):
        made(Identity)(x, Layout((6,)), x)
    with pytest.raises(Unsupported, match="empty"):
        made(Hyena).empty(1)
