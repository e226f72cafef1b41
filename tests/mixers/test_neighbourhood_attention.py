import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from formwright.contract import Layout, Unsupported
from formwright.mixers.neighbourhood_attention import NeighbourhoodAttention
from formwright.ops.attention import SDPA_FLOPS, attention
from formwright.ops.masks import Causal, Dilated, Window


def make(**options):
    torch.manual_seed(0)
    return NeighbourhoodAttention(16, heads=2, **options).double().eval()


def window(i, length, kernel, dilation, causal):
    """NATTEN's definition along one axis, written out."""
    group = list(range(i % dilation, length, dilation))
    at = group.index(i)
    if causal:
        return group[max(0, at - kernel + 1) : at + 1]
    start = max(0, min(at - kernel // 2, len(group) - kernel))
    return group[start : start + kernel]


def by_loop(mixer, x, grid, kernel, dilation):
    """One token at a time: its neighbours are gathered, and attended to with the bias of each one's place."""
    q, k, v = (each.view(*grid, 2, 8) for each in mixer._heads(x[None])[0:3])
    out = torch.zeros(*grid, 16, dtype=x.dtype)
    for place in itertools.product(*map(range, grid)):
        axes = [window(*each, mixer.causal) for each in zip(place, grid, kernel, dilation, strict=True)]
        near = list(itertools.product(*axes))
        keys, values = (torch.stack([each[other] for other in near]) for each in (k, v))
        scores = torch.einsum("hk,jhk->hj", q[place], keys) / 8**0.5
        if mixer.table is not None:
            for j, other in enumerate(near):
                steps = zip(place, other, dilation, kernel, strict=True)
                index = tuple((b - a) // d + size - 1 for a, b, d, size in steps)
                scores[:, j] = scores[:, j] + mixer.table[(slice(None), *index)]
        out[place] = torch.einsum("hj,jhk->hk", scores.softmax(-1), values).flatten()
    return mixer.out(out.flatten(0, -2))


CASES = [
    ((40,), (7,), (1,)),
    ((50,), (5,), (4,)),
    ((9, 11), (3, 5), (1, 1)),
    ((14, 13), (3, 3), (4, 2)),
    ((4, 5, 6), (3, 3, 3), (1, 1, 1)),
    ((3, 7, 8), (2, 3, 4), (1, 2, 1)),
    ((2, 3), (7, 7), (1, 1)),  # fewer tokens than neighbours
]


@pytest.mark.parametrize("relative_bias", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("grid, kernel, dilation", CASES)
def test_equals_nattens_definition(grid, kernel, dilation, causal, relative_bias):
    mixer = make(causal=causal, kernel=kernel, dilation=dilation, relative_bias=relative_bias)
    if relative_bias:
        mixer.table.data.normal_()
    x = torch.randn(1, torch.Size(grid).numel(), 16, dtype=torch.float64)
    wanted = by_loop(mixer, x[0], grid, kernel, dilation)
    for compute in (mixer, mixer.reference):
        assert (compute(x, Layout(grid))[0] - wanted).abs().max() < 1e-12


def test_a_kernel_as_large_as_the_grid_is_plain_attention():
    mixer, x = make(kernel=9), torch.randn(2, 72, 16, dtype=torch.float64)
    q, k, v = (each.transpose(1, 2) for each in mixer._heads(x))
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert (mixer(x, Layout((9, 8))) - mixer.out(plain)).abs().max() < 1e-12


def test_a_causal_one_is_a_dilated_window():
    mixer, x = make(causal=True, kernel=5, dilation=3), torch.randn(2, 70, 16, dtype=torch.float64)
    o = attention(*mixer._heads(x), mask=Causal() & Window(13) & Dilated(3))
    assert (mixer(x, Layout((70,))) - mixer.out(o.flatten(2))).abs().max() < 1e-12


def test_a_causal_grid_sees_nothing_later():
    mixer, x = make(kernel=(3, 5), causal=True), torch.randn(1, 60, 16, dtype=torch.float64)
    before = mixer(x, Layout((6, 10)))
    for cut in range(59):
        after = mixer(torch.cat([x[:, : cut + 1], x[:, cut + 1 :] + 1], 1), Layout((6, 10)))
        assert torch.equal(after[:, : cut + 1], before[:, : cut + 1])


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": 5, "dilation": 3},
        {"kernel": (4, 4), "dilation": 2, "relative_bias": True},
        {"kernel": (3, 6), "relative_bias": True},
    ],
)
def test_extend_is_forward(options):
    mixer, x = make(causal=True, **options), torch.randn(2, 50, 16, dtype=torch.float64)
    if mixer.table is not None:
        mixer.table.data.normal_()
    wanted = mixer(x, Layout((50,)))
    for pieces in ([50], [20, 1, 29], [1] * 50, [3, 17, 1, 1, 28]):
        state, found = mixer.empty(2), []
        for piece in x.split(pieces, 1):
            o, state = mixer.extend(piece, state)
            found.append(o)
        assert (torch.cat(found, 1) - wanted).abs().max() < 1e-12
    for layout in (Layout((50,)), Layout((5, 10))):
        cost = mixer.cost(layout, 2)
        with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter:
            mixer(x, layout)
        assert counter.get_total_flops() // 2 == cost.macs


def test_refusals():
    with pytest.raises(Unsupported, match="relative_bias"):
        make(kernel=7, relative_bias=True)
    with pytest.raises(Unsupported, match="kernel=0"):
        make(kernel=0)
    with pytest.raises(Unsupported, match="prefix"):
        make()(torch.zeros(1, 5, 16).double(), Layout((4,), prefix=1))
    with pytest.raises(Unsupported, match="grid of 2 axes"):
        make(kernel=(7,))(torch.zeros(1, 6, 16).double(), Layout((2, 3)))
