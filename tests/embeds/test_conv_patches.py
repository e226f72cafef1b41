from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from formwright.contract import Layout, parameter_count
from formwright.embeds.conv_patches import ConvPatches
from formwright.embeds.patches import Patches


@pytest.mark.parametrize(
    ("image", "options"),
    [
        ((16, 24), {}),
        ((13, 10), {"size": 3, "stride": 2, "padding": 0}),
        ((16, 24), {"size": 7, "stride": 4, "within": 8}),
        ((12, 12), {"size": 5, "stride": 2, "within": 6}),
        ((19,), {"size": 4, "stride": 3}),
        ((6, 8, 4), {"size": 3, "stride": 2}),
        ((6, 8, 4), {"size": 3, "stride": 2, "within": 2}),
    ],
)
def test_shapes_layouts_and_costs(image, options):
    embed = ConvPatches(5, channels=3, image=image, **options)
    x = torch.randn(2, *image, 3)
    with FlopCounterMode(display=False) as counter:
        y, layout = embed(x)
    layout.check(y)
    assert embed.layout(x.shape[1:]) == layout
    assert (embed.length, embed.rank) == (layout.tokens, len(image))
    cost = embed.cost(layout, 2)
    assert (2 * cost.macs, cost.params) == (counter.get_total_flops(), parameter_count(embed))


@pytest.mark.parametrize("within", [None, 8])
def test_without_overlap_it_is_patches(within):
    image, torch_x = (16, 8), torch.randn(2, 16, 8, 3)
    embed = ConvPatches(5, channels=3, image=image, size=4, stride=4, padding=0, within=within)
    plain = Patches(5, channels=3, image=image, size=4, position=None)
    with torch.no_grad():
        plain.project.weight.copy_(embed.project.weight.permute(0, 2, 3, 1).flatten(1))
        plain.project.bias.copy_(embed.project.bias)
    torch.testing.assert_close(embed(torch_x)[0], plain(torch_x)[0])


def test_blocks_are_convolved_one_by_one():
    embed = ConvPatches(5, channels=2, image=(8, 12), size=3, stride=2, within=4)
    alone = ConvPatches(5, channels=2, image=(4, 4), size=3, stride=2)
    alone.load_state_dict(embed.state_dict())
    x = torch.randn(1, 8, 12, 2)
    whole = embed(x)[0].unflatten(1, (4, 6))
    for i in range(2):
        for j in range(3):
            block = alone(x[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4])[0].unflatten(1, (2, 2))
            torch.testing.assert_close(whole[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], block)


def test_refusals():
    with pytest.raises(ValueError, match="within=5 pixels don't divide"):
        ConvPatches(4, channels=3, image=(8, 8), within=5)
    with pytest.raises(ValueError, match="too small"):
        ConvPatches(4, channels=3, image=(3, 3), padding=0)
    embed = ConvPatches(4, channels=3, image=(8, 8))
    with pytest.raises(ValueError, match="channels last"):
        embed(torch.randn(1, 3, 8, 8))
    with pytest.raises(ValueError, match="not padded"):
        embed(torch.randn(1, 8, 8, 3), Layout((4,), lengths=torch.tensor([3])))


def test_places_for_the_class_token_too():
    embed = Patches(6, channels=1, image=(4, 4), size=2, cls=True, position="tokens")
    assert embed.places.shape == (5, 6)
    x, layout = embed(torch.zeros(1, 4, 4, 1))
    assert layout == Layout((2, 2), prefix=1)
    torch.testing.assert_close(x[0, 0], embed.cls + embed.places[0])
    torch.testing.assert_close(x[0, 1:], embed.project.bias + embed.places[1:])
    with pytest.raises(ValueError, match="'tokens'"):
        Patches(6, channels=1, image=(4, 4), position="cells")
