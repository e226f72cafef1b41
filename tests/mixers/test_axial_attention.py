import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from formwright.contract import Layout, Unsupported
from formwright.mixers.attention import Attention
from formwright.mixers.axial_attention import AxialAttention
from formwright.mixers.row_above_attention import RowAboveAttention
from formwright.ops.attention import SDPA_FLOPS


def make(**options):
    torch.manual_seed(0)
    return AxialAttention(16, heads=2, **options).double().eval()


def by_lines(mixer, x, grid):
    q, k, v = (each.view(*grid, 2, 8) for each in mixer._heads(x[None]))
    out = torch.zeros(*grid, 2, 8, dtype=x.dtype)
    axes = range(len(grid)) if mixer.axis is None else [mixer.axis % len(grid)]
    for axis in axes:
        others = [[slice(None)] if a == axis else range(n) for a, n in enumerate(grid)]
        for line in itertools.product(*others):
            parts = (each[line].transpose(0, 1) for each in (q, k, v))
            out[line] += F.scaled_dot_product_attention(*parts, is_causal=mixer.causal).transpose(0, 1)
    return mixer.out(out.flatten(-2).flatten(0, -2))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("grid, axis", [((5, 7), None), ((5, 7), 0), ((5, 7), -1), ((3, 4, 5), None), ((3, 4, 5), 1)])
def test_equals_a_loop_over_lines(grid, axis, causal):
    mixer = make(axis=axis, causal=causal)
    x = torch.randn(2, torch.Size(grid).numel(), 16, dtype=torch.float64)
    wanted = torch.stack([by_lines(mixer, row, grid) for row in x])
    for compute in (mixer, mixer.reference):
        assert (compute(x, Layout(grid)) - wanted).abs().max() < 1e-12
    with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter:
        mixer(x, Layout(grid))
    assert counter.get_total_flops() // 2 == mixer.cost(Layout(grid), 2).macs


@pytest.mark.parametrize("causal", [False, True])
def test_a_sequence_gets_plain_attention(causal):
    mixer, x = make(causal=causal), torch.randn(2, 21, 16, dtype=torch.float64)
    plain = Attention(16, heads=2, causal=causal).double()
    plain.load_state_dict(mixer.state_dict())
    assert (mixer(x, Layout((21,))) - plain(x, Layout((21,)))).abs().max() < 1e-12


@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("grid", [(6, 5), (3, 2, 5)])
def test_extend_row_by_row_is_forward_and_sees_nothing_later(grid, axis):
    mixer, x = make(causal=True, axis=axis, extents=grid[1:]), torch.randn(2, 30, 16, dtype=torch.float64)
    wanted = mixer(x, Layout(grid))
    for pieces in ([30], [10, 20], [10] * 3, [1] * 30, [7, 1, 1, 13, 8], [20, *[1] * 10]):
        state, found = mixer.empty(2), []
        for piece in x.split(pieces, 1):
            o, state = mixer.extend(piece, state)
            found.append(o)
        assert (torch.cat(found, 1) - wanted).abs().max() < 1e-12
    for cut in range(29):
        later = mixer(torch.cat([x[:, : cut + 1], x[:, cut + 1 :] + 1], 1), Layout(grid))
        assert torch.equal(later[:, : cut + 1], wanted[:, : cut + 1])


def test_a_token_of_an_image_costs_two_lines():
    mixer, x = make(causal=True, extents=(32,)), torch.randn(1, 1000, 16, dtype=torch.float64)
    _, state = mixer.extend(x[:, :-1], mixer.empty(1, 1000))
    with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter:
        mixer.extend(x[:, -1:], state)
    assert counter.get_total_flops() // 2 == 4 * 16 * 16 + 16 * 2 * (32 + 8)  # its column of 32, and 8 of its row


def test_refusals():
    with pytest.raises(Unsupported, match="axis=1"):
        make(axis=1)(torch.zeros(1, 4, 16).double(), Layout((4,)))
    with pytest.raises(Unsupported, match="extents"):
        make(extents=(0,))


def above(**options):
    torch.manual_seed(0)
    return RowAboveAttention(16, causal=True, heads=2, **options).double().eval()


def test_the_row_above_is_unmasked_axial_attention_a_row_late():
    mixer, full = above(), make(axis=-1)
    full.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 42, 16, dtype=torch.float64)
    found = mixer(x, Layout((6, 7)))
    assert (found[:, 7:] - full(x, Layout((6, 7)))[:, :-7]).abs().max() < 1e-12
    assert not found[:, :7].any()
    assert torch.equal(found, above(row=7)(x, Layout((42,))))


def test_the_row_above_sees_nothing_later_and_decodes():
    mixer, x = above(row=5), torch.randn(2, 33, 16, dtype=torch.float64)
    wanted = mixer(x, Layout((33,)))
    for cut in range(32):
        later = mixer(torch.cat([x[:, : cut + 1], x[:, cut + 1 :] + 1], 1), Layout((33,)))
        assert torch.equal(later[:, : cut + 1], wanted[:, : cut + 1])
    for pieces in ([33], [5] * 6 + [3], [1] * 33, [7, 1, 1, 16, 8]):
        state, found = mixer.empty(2), []
        for piece in x.split(pieces, 1):
            o, state = mixer.extend(piece, state)
            found.append(o)
        assert (torch.cat(found, 1) - wanted).abs().max() < 1e-12


def test_the_row_above_refuses_another_grid():
    with pytest.raises(Unsupported, match="row=5"):
        above(row=5)(torch.zeros(1, 12, 16).double(), Layout((3, 4)))
