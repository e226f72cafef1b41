"""Shifted windows and cross-shaped windows beside loops over their windows."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from formwright.contract import Layout, Unsupported
from formwright.mixers.cross_shaped_attention import CrossShapedAttention
from formwright.mixers.shifted_window_attention import ShiftedWindowAttention
from formwright.ops.attention import SDPA_FLOPS


def swin(**options):
    torch.manual_seed(0)
    mixer = ShiftedWindowAttention(16, heads=2, **options).double().eval()
    mixer.table.data.normal_()
    return mixer


def cswin(**options):
    torch.manual_seed(0)
    return CrossShapedAttention(16, heads=4, **options).double().eval()


def cut(length, size, shift=0):
    """The windows of one axis, cut where (i - shift) is a multiple of the size."""
    borders = sorted({0, length, *(b for b in range(shift, length, size) if b > 0)})
    return [range(*pair) for pair in itertools.pairwise(borders)]


def by_windows(mixer, x, grid, sizes):
    q, k, v = (each.view(*grid, 2, 8) for each in mixer._heads(x[None]))
    out = torch.zeros(*grid, 16, dtype=x.dtype)
    for window in itertools.product(*(cut(*each) for each in zip(grid, *sizes, strict=True))):
        places = list(itertools.product(*window))
        for place in places:
            keys, values = (torch.stack([each[other] for other in places]) for each in (k, v))
            scores = torch.einsum("hk,jhk->hj", q[place], keys) / 8**0.5
            for j, other in enumerate(places):
                index = (b - a + w - 1 for a, b, w in zip(place, other, mixer.window, strict=True))
                scores[:, j] = scores[:, j] + mixer.table[(slice(None), *index)]
            out[place] = torch.einsum("hj,jhk->hk", scores.softmax(-1), values).flatten()
    return mixer.out(out.flatten(0, -2))


@pytest.mark.parametrize(
    "grid, window, shift",
    [
        ((8, 12), (4, 4), (2, 2)),
        ((8, 12), (4, 3), (0, 0)),
        ((9, 11), (4, 5), (1, 3)),  # no multiples: padded
        ((3, 10), (4, 4), (2, 2)),  # shorter than a window: no shift there
        ((4, 5, 6), (2, 3, 3), (1, 1, 1)),
    ],
)
def test_shifted_windows_equal_a_loop(grid, window, shift):
    mixer = swin(window=window, shift=shift)
    x = torch.randn(1, torch.Size(grid).numel(), 16, dtype=torch.float64)
    moved = [s if n > w else 0 for n, w, s in zip(grid, window, shift, strict=True)]
    wanted = by_windows(mixer, x[0], grid, (window, moved))
    for compute in (mixer, mixer.reference):
        assert (compute(x, Layout(grid))[0] - wanted).abs().max() < 1e-12


def test_half_a_window_is_the_shift_unless_told():
    assert swin().shift == (3, 3) and swin(window=(8, 4, 6)).shift == (4, 2, 3)


@pytest.mark.parametrize("grid, stripe", [((6, 8), 2), ((7, 9), 3), ((5, 4), 7), ((1, 11), 3), ((14, 14), 7)])
def test_cross_shaped_windows_equal_a_loop(grid, stripe):
    mixer = cswin(stripe=stripe)
    mixer.place.bias.data.normal_()
    x = torch.randn(2, grid[0] * grid[1], 16, dtype=torch.float64)
    qkv = mixer.query_key_value(x).unflatten(-1, (3, 16)).unflatten(1, grid).unbind(3)
    out = torch.zeros(2, *grid, 16, dtype=torch.float64)
    for half, sizes in enumerate(((stripe, grid[1]), (grid[0], stripe))):
        channels = slice(8 * half, 8 * half + 8)
        for rows, columns in itertools.product(*(cut(*each) for each in zip(grid, sizes, strict=True))):
            here = slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1), channels
            q, k, v = (each[here].flatten(1, 2).unflatten(-1, (2, 4)).transpose(1, 2) for each in qkv)
            o = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            weights = mixer.place.weight[channels], mixer.place.bias[channels]
            place = F.conv2d(qkv[2][here].permute(0, 3, 1, 2), *weights, padding=1, groups=8)
            out[here] = o.unflatten(1, (len(rows), len(columns))) + place.permute(0, 2, 3, 1)
    wanted = mixer.out(out.flatten(1, 2))
    for compute in (mixer, mixer.reference):
        assert (compute(x, Layout(grid)) - wanted).abs().max() < 1e-12


def test_stripes_as_wide_as_the_image_are_plain_attention():
    mixer = cswin(stripe=9)
    torch.nn.init.zeros_(mixer.place.weight), torch.nn.init.zeros_(mixer.place.bias)
    x = torch.randn(1, 63, 16, dtype=torch.float64)
    q, k, v = mixer.query_key_value(x).unflatten(-1, (3, 4, 4)).transpose(1, 3).unbind(2)
    plain = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert (mixer(x, Layout((7, 9))) - mixer.out(plain)).abs().max() < 1e-12


@pytest.mark.parametrize("make", [swin, cswin])
def test_macs_on_images(make):
    mixer, x = make(), torch.randn(2, 15 * 17, 16, dtype=torch.float64)
    with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter:
        mixer(x, Layout((15, 17)))
    assert counter.get_total_flops() // 2 == mixer.cost(Layout((15, 17)), 2).macs


def test_refusals():
    with pytest.raises(Unsupported, match="shift=5"):
        swin(window=4, shift=5)
    with pytest.raises(Unsupported, match="heads=3"):
        CrossShapedAttention(24, heads=3)
    for mixer in (swin(), cswin()):
        with pytest.raises(Unsupported, match="prefix"):
            mixer(torch.zeros(1, 5, 16).double(), Layout((2, 2), prefix=1))
