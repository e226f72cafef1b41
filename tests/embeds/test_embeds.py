from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from formwright.contract import Card, Layout, Position, Unsupported, parameter_count
from formwright.embeds.columns import Columns
from formwright.embeds.patches import Patches
from formwright.embeds.series import Series, statistics
from formwright.embeds.tokens import Tokens
from formwright.embeds.vectors import Vectors
from formwright.norms.layernorm import LayerNorm


class Ramp(Position):
    """Adds scale times the coordinates' sum: shows which positions an embedding hands over."""

    card = Card(name="test_ramp", kind="position")
    role = "embed"

    def __init__(self, dim, scale=1.0):
        super().__init__()
        self.scale = scale

    def embed(self, x, positions):
        return x + self.scale * positions.sum(-1, keepdim=True).to(x.dtype)


CASES = [
    (Tokens(6, vocab=11), torch.randint(11, (2, 7))),
    (Patches(6, channels=3, image=(8, 12), size=(4, 3)), torch.randn(2, 8, 12, 3)),
    (Patches(6, channels=1, image=(8, 8), size=2, cls=True), torch.randn(2, 8, 8, 1)),
    (Patches(6, channels=2, image=(9,), size=3), torch.randn(2, 9, 2)),
    (Patches(6, channels=2, image=(4, 6, 2), size=2), torch.randn(2, 4, 6, 2, 2)),
    (Series(6, variates=3, input_length=12, patch=4), torch.randn(2, 12, 3)),
    (Series(6, variates=3, input_length=12, tokens="variate"), torch.randn(2, 12, 3)),
    (Vectors(6, variates=4), torch.randn(2, 7, 4)),
    (Columns(6, numeric=(3,)), torch.randn(2, 3)),
    (Columns(6, numeric=1, categories=(2, 4), cls=False), torch.tensor([[0.3, 1, 3], [0.1, 0, 2]])),
    (Columns(6, numeric=0, categories=(2, 4)), torch.tensor([[1.0, 3], [0, 2]])),
]


@pytest.mark.parametrize(("embed", "inputs"), CASES)
def test_shapes_layouts_costs_and_gradients(embed, inputs):
    with FlopCounterMode(display=False) as counter:
        x, layout = embed(inputs)
    layout.check(x)
    assert x.shape[::2] == (2, 6)
    assert embed.layout(tuple(inputs.shape[1:])) == layout
    assert getattr(embed, "length", layout.tokens) == layout.tokens
    assert embed.rank == len(layout.grid)
    cost = embed.cost(layout, 2)
    assert (2 * cost.macs, cost.params) == (counter.get_total_flops(), parameter_count(embed))
    x.square().sum().backward()
    assert all(p.grad is not None for p in embed.parameters())


@pytest.mark.parametrize("position", [None, functools.partial(Ramp, scale=0.5)])
def test_tokens_extend_is_forward(position):
    embed, inputs = Tokens(6, vocab=11, position=position), torch.randint(11, (2, 7))
    whole, _ = embed(inputs)
    pieces, start = [], 0
    for piece in inputs.split([1, 4, 2], 1):
        pieces.append(embed.extend(piece, start))
        start += piece.shape[1]
    assert torch.equal(torch.cat(pieces, 1), whole)


@pytest.mark.parametrize("position", [None, functools.partial(Ramp, scale=0.5)])
def test_vectors_stand_alone_and_extend_is_forward(position):
    embed, inputs = Vectors(6, variates=3, position=position), torch.randn(2, 7, 3)
    whole, _ = embed(inputs)
    ramp = 0.0 if position is None else 0.5 * torch.arange(7.0)[None, :, None]
    torch.testing.assert_close(whole, inputs @ embed.project.weight.T + embed.project.bias + ramp)
    pieces, start = [], 0
    for piece in inputs.split([1, 4, 2], 1):
        pieces.append(embed.extend(piece, start))
        start += piece.shape[1]
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    with pytest.raises(ValueError, match="set variates to the width"):
        embed(torch.randn(2, 7, 4))
    with pytest.raises(ValueError, match="at least one number"):
        Vectors(6, variates=0)


def test_tokens_in_packed_rows_start_at_position_zero():
    embed = Tokens(6, vocab=11, position=Ramp)
    layout = Layout((5,), offsets=torch.tensor([0, 2, 5]))
    x, _ = embed(torch.zeros(1, 5, dtype=torch.long), layout)
    torch.testing.assert_close(x[0, :, 0] - embed.weight[0, 0], torch.tensor([0.0, 1, 0, 1, 2]))


def test_patches_are_a_strided_convolution():
    embed, images = Patches(6, channels=3, image=(8, 12), size=(4, 3), position=None), torch.randn(2, 8, 12, 3)
    kernel = embed.project.weight.view(6, 4, 3, 3).permute(0, 3, 1, 2)
    expected = F.conv2d(images.permute(0, 3, 1, 2), kernel, embed.project.bias, stride=(4, 3))
    torch.testing.assert_close(embed(images)[0], expected.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)
    x, layout = embed(torch.randn(1, 4, 9, 3))
    assert layout.grid == (1, 3)
    assert x.shape == (1, 3, 6)


@pytest.mark.parametrize(("side", "size"), [(8, 1), (28, 4), (32, 4), (224, 32), (13, 1)])
def test_patches_choose_a_size_that_divides(side, size):
    assert Patches(4, channels=1, image=(side, side)).size == (size, size)


def test_series_tokens():
    inputs = torch.randn(2, 12, 3) * 5 + 2
    normal = (inputs - inputs.mean(1, keepdim=True)) / (inputs.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    time = Series(6, variates=3, input_length=12, patch=4, position=None)
    torch.testing.assert_close(time(inputs)[0], time.project(normal.reshape(2, 3, 12)))
    variate = Series(6, variates=3, input_length=12, tokens="variate", normalise=False)
    torch.testing.assert_close(variate(inputs)[0], variate.project(inputs.transpose(1, 2)))
    torch.testing.assert_close(time(inputs * 3 + 1)[0], time(inputs)[0], rtol=1e-3, atol=1e-3)
    mean, deviation = statistics(torch.ones(1, 5, 2))
    assert torch.equal(mean, torch.ones(1, 1, 2))
    assert (deviation > 0).all()


def test_columns_look_up_their_own_tables():
    embed = Columns(6, numeric=1, categories=(2, 4))
    x, layout = embed(torch.tensor([[0.5, 1, 3]]))
    assert (layout.prefix, layout.grid) == (1, (3,))
    assert torch.equal(x[0, 0], embed.cls)
    torch.testing.assert_close(x[0, 1], 0.5 * embed.weight[0] + embed.bias[0])
    torch.testing.assert_close(x[0, 2], embed.table[1] + embed.bias[1])
    torch.testing.assert_close(x[0, 3], embed.table[2 + 3] + embed.bias[2])


def test_refusals_say_what_to_do():
    with pytest.raises(ValueError, match="vocab=11 has 0 to 10"):
        Tokens(6, vocab=11)(torch.tensor([[3, 11]]))
    with pytest.raises(ValueError, match="give it to the mixer"):
        rotary = type("Rotary", (Position,), {"card": Card(name="test_rotary", kind="position"), "role": "rotate"})
        Tokens(6, vocab=11, position=rotary)
    with pytest.raises(ValueError, match="take sizes that divide it"):
        Patches(6, channels=1, image=(8, 9), size=2)
    free = Patches(6, channels=1, image=(8, 8), size=2, position=None)
    with pytest.raises(ValueError, match="take sizes that divide it"):
        free(torch.randn(1, 8, 7, 1))
    with pytest.raises(ValueError, match="channels last"):
        free(torch.randn(1, 1, 8, 8))
    with pytest.raises(ValueError, match="position=None"):
        Patches(6, channels=1, image=(8, 8), size=2)(torch.randn(1, 4, 8, 1))
    with pytest.raises(Unsupported, match="lengths"):
        free(torch.randn(1, 8, 8, 1), Layout((16,), lengths=torch.tensor([3])))
    with pytest.raises(ValueError, match="take a divisor"):
        Series(6, variates=1, input_length=10, patch=4)
    with pytest.raises(ValueError, match="but the input"):
        Series(6, variates=1, input_length=10)(torch.randn(2, 9, 1))
    with pytest.raises(ValueError, match="has 4 categories"):
        Columns(6, numeric=1, categories=(2, 4))(torch.tensor([[0.5, 1, 4]]))
    with pytest.raises(ValueError, match="nothing to embed"):
        Columns(6, numeric=0)


def test_tokens_scaled_with_segments_and_a_norm():
    embed = Tokens(16, vocab=7, scaled=True, segments=2, norm=LayerNorm, position=Ramp)
    tokens, segments = torch.randint(7, (2, 5)), torch.randint(2, (2, 5))
    places = torch.arange(5.0)[:, None]
    expected = 4 * embed.weight[tokens] + places + embed.segment[segments]
    x, _ = embed(torch.stack([tokens, segments], -1))
    torch.testing.assert_close(x, F.layer_norm(expected, (16,)))
    x, _ = embed(tokens)
    torch.testing.assert_close(x, F.layer_norm(4 * embed.weight[tokens] + places + embed.segment[0], (16,)))
    pieces = [embed.extend(tokens[:, :2], 0), embed.extend(tokens[:, 2:], 2)]
    torch.testing.assert_close(torch.cat(pieces, 1), x)
    assert embed.cost(Layout((5,))).params == parameter_count(embed) == 16 * (7 + 2 + 2)


def test_segments_are_refused_where_none_are():
    pairs = torch.zeros(2, 5, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="where segments are told apart"):
        Tokens(8, vocab=7)(pairs)
    with pytest.raises(ValueError, match="segments=2 has 0 to 1"):
        Tokens(8, vocab=7, segments=2)(pairs + 2)
    with pytest.raises(ValueError, match="segments is 0"):
        Tokens(8, vocab=7, segments=0)
