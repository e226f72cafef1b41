from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from formwright.contract import parameter_count
from formwright.embeds.conv_stem import ConvStem
from formwright.positions.sinusoidal import Sinusoidal


@pytest.mark.parametrize(
    ("image", "size", "position"), [((16, 24), 8, "fourier"), ((12,), 2, None), ((8, 8, 4), 4, Sinusoidal)]
)
def test_shapes_layouts_costs_and_gradients(image, size, position):
    torch.manual_seed(0)
    embed = ConvStem(16, channels=3, image=image, size=size, position=position)
    with FlopCounterMode(display=False) as counter:
        x, layout = embed(torch.randn(2, *image, 3))
    layout.check(x)
    assert layout.grid == tuple(n // size for n in image)
    assert (embed.length, embed.rank) == (layout.tokens, len(image))
    cost = embed.cost(layout, 2)
    assert (2 * cost.macs, cost.params) == (counter.get_total_flops(), parameter_count(embed))
    x.square().sum().backward()
    assert all(p.grad is not None for p in embed.parameters())


def test_fourier_places_are_shares_of_the_grid():
    places = ConvStem(16, channels=3, image=(16, 16), size=4).places.double()
    with torch.no_grad():
        places.map.weight.zero_()
        places.map.weight[:, 2] = 1  # the sine of the second frequency along the first axis
        places.map.bias.zero_()
    expected = [math.sin(2 * math.pi * p / 3 / 10000 ** (2 / 32)) for p in (1, 2, 3) for _ in range(5)]
    torch.testing.assert_close(places((3, 5))[:, 0], torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)
    assert torch.allclose(places((3, 5)).view(3, 5, 16)[2, 0], places((6, 5)).view(6, 5, 16)[5, 0], atol=1e-5)


def test_refusals():
    for size in (1, 6):
        with pytest.raises(ValueError, match="power of 2"):
            ConvStem(16, channels=3, image=(12, 12), size=size)
    with pytest.raises(ValueError, match="multiple of 4"):
        ConvStem(18, channels=3, image=(16, 16), size=8)
    with pytest.raises(ValueError, match="doesn't divide"):
        ConvStem(16, channels=3, image=(12, 10), size=4)
    with pytest.raises(ValueError, match="'fourier'"):
        ConvStem(16, channels=3, image=(8, 8), position="grid")
