import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from formwright.ops import attention as dense
from formwright.ops import grid_tiles as tiles
from formwright.ops.masks_grid import GridWindows, Neighbourhood


def natten_window(i, length, kernel, dilation, causal=False):
    """The places that place i of one axis reads, by NATTEN's definition, counted by hand."""
    group = list(range(i % dilation, length, dilation))
    at = group.index(i)
    if causal:
        return group[max(0, at - kernel + 1) : at + 1]
    start = at - kernel // 2
    while start + kernel > len(group):
        start -= 1
    while start < 0:
        start += 1
    return group[start : start + kernel]


def as_mask(plan):
    """(N, N) booleans: what each token reads in the tile where its output is computed."""
    found = torch.zeros(plan.length, plan.length, dtype=torch.bool)
    for token, (tile, slot) in enumerate(zip(plan.tile.tolist(), plan.slot.tolist(), strict=True)):
        assert int(plan.queries[tile, slot]) == token
        row = plan.keys[tile] if plan.allowed is None else plan.keys[tile][plan.allowed[tile, slot]]
        assert len(row) == len(set(row.tolist()))  # no key is read twice
        found[token, row] = True
    return found


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dilation", [1, 2, 3, 7])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 8])
def test_neighbourhoods_are_nattens(kernel, dilation, causal):
    for length in (1, 2, 3, 5, 7, 12, 23, 40):
        wanted = torch.zeros(length, length, dtype=torch.bool)
        for i in range(length):
            wanted[i, natten_window(i, length, kernel, dilation, causal)] = True
        if not causal and length >= kernel * dilation:
            assert (wanted.sum(1) == kernel).all()
        assert torch.equal(Neighbourhood((length,), (kernel,), (dilation,), causal).materialize(length), wanted)
        for size in (None, 1, 4, 16):
            assert torch.equal(as_mask(tiles.neighbourhoods(length, kernel, dilation, causal, size)), wanted)


@pytest.mark.parametrize("size", [1, 3, 4, 9])
def test_windows_are_those_of_the_mask(size):
    for length, shift in itertools.product((1, 2, 3, 4, 8, 9, 13, 27), (0, 1, 2, 5)):
        fit, moved = min(size, length), shift if size < length and shift < size else 0
        wanted = GridWindows((length,), (fit,), (moved,)).materialize(length)
        assert torch.equal(as_mask(tiles.windows(length, size, moved)), wanted)


def test_a_grids_tiles_are_products():
    grid, kernel, dilation = (5, 4, 6), (3, 2, 3), (1, 1, 2)
    axes = [tiles.neighbourhoods(*each) for each in zip(grid, kernel, dilation, strict=True)]
    assert torch.equal(as_mask(tiles.over_grid(axes)), Neighbourhood(grid, kernel, dilation).materialize(120))
    mixed = tiles.over_grid([tiles.lines(5), tiles.windows(7, 3, 1)])
    assert torch.equal(as_mask(mixed), GridWindows((5, 7), (5, 3), (0, 1)).materialize(35))


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_equal_to_dense_attention_with_gradients(biased, learns, monkeypatch):
    monkeypatch.setattr(tiles, "SCORES", 3000)  # several chunks
    torch.manual_seed(0)
    grid, n, heads = (9, 10), 90, 2
    q, k, v = (torch.randn(2, n, heads, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    table = torch.randn(heads, 5, 9, dtype=torch.float64, requires_grad=learns)
    axes = [tiles.neighbourhoods(9, 3, 2), tiles.neighbourhoods(10, 5, 1)]
    plan = tiles.over_grid(axes)
    bias, whole = None, None
    if biased:
        bias = tiles.relative_bias(table, plan, (2, 4))
        rows, columns = torch.arange(n) // 10, torch.arange(n) % 10
        down = torch.div(rows - rows[:, None], 2, rounding_mode="trunc").clamp(-2, 2) + 2
        whole = table[:, down, (columns - columns[:, None]).clamp(-4, 4) + 4]
    mask = Neighbourhood(grid, (3, 5), (2, 1))
    given = [q, k, v] + [table] * (biased and learns)
    found = tiles.tiled_attention(q, k, v, plan, bias=bias)
    wanted = dense.attention(q, k, v, mask=mask, bias=whole, backend="reference")
    assert (found - wanted).abs().max() < 1e-12
    weights = torch.randn_like(found)
    for a, b in zip(
        *(torch.autograd.grad((o * weights).sum(), given, retain_graph=True) for o in (found, wanted)), strict=True
    ):
        assert (a - b).abs().max() < 1e-11


@pytest.mark.parametrize("biased", [False, True])
def test_macs_are_those_counted(biased):
    plan = tiles.over_grid([tiles.windows(7, 3, 1), tiles.windows(5, 5)])
    q = torch.randn(2, 35, 3, 8)
    bias = torch.randn(3, *plan.steps[0].shape) if biased else None
    with FlopCounterMode(display=False, custom_mapping=dense.SDPA_FLOPS) as counter:
        tiles.tiled_attention(q, q, q, plan, bias=bias)
    assert counter.get_total_flops() // 2 == tiles.macs(plan, heads=3, key_dim=8, batch=2)


def test_tiles_of_another_length_are_refused():
    with pytest.raises(ValueError, match="12 tokens were given 13"):
        tiles.tiled_attention(*[torch.zeros(1, 13, 1, 4)] * 3, tiles.windows(12, 4))
