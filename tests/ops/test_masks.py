import itertools

import pytest
import torch

from formwright.ops.masks import Causal, Dilated, Full, Padding, Prefix, Segments, Table, Window, simplify

MASKS = [
    Full(),
    Causal(),
    Window(1),
    Window(4),
    Causal() & Window(3),
    Causal() & Window(3) | Prefix(2),
    ~Causal(),
    ~(Causal() & Window(3)),
    ~Window(2) & Causal() | Prefix(1),
    Dilated(2) & Window(5),
    Segments(torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 4])),
    Table(torch.rand(11, 11, generator=torch.Generator().manual_seed(0)) < 0.5),
]


def plain(mask_of, n, m):
    """A mask by a loop over pairs; query i stands at m - n + i."""
    return torch.tensor([[mask_of(i + m - n, j) for j in range(m)] for i in range(n)])


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (3, 11), (11, 3)])
def test_materialize_is_the_definition(n, m):
    same = [0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 4]
    pairs = [
        (Full(), lambda i, j: True),
        (Causal(), lambda i, j: j <= i),
        (Window(3), lambda i, j: abs(i - j) < 3),
        (Causal() & Window(3), lambda i, j: 0 <= i - j < 3),
        (Causal() & Window(3) | Prefix(2), lambda i, j: 0 <= i - j < 3 or j < 2),
        (~Causal(), lambda i, j: j > i),
        (Dilated(3), lambda i, j: (i - j) % 3 == 0),
        (Segments(torch.tensor(same)), lambda i, j: i >= 0 and same[i] == same[j]),
    ]
    for mask, definition in pairs:
        assert torch.equal(mask.materialize(n, m), plain(definition, n, m)), str(mask)


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_touches_and_covers_bound_the_mask(mask):
    for n, m in ((11, 11), (4, 11)):
        table = mask.materialize(n, m)
        for a, b in itertools.combinations(range(n + 1), 2):
            touched, covered = torch.zeros(m, dtype=torch.bool), torch.zeros(m, dtype=torch.bool)
            for low, high in mask.touches(a + m - n, b + m - n, m):
                touched[low:high] = True
            for low, high in mask.covers(a + m - n, b + m - n, m):
                covered[low:high] = True
            assert not (table[a:b].any(0) & ~touched).any()
            assert not (covered & ~table[a:b].all(0)).any()


def test_ranges_of_a_window_and_a_prefix_are_tight():
    mask = Causal() & Window(256) | Prefix(8)
    assert mask.touches(1000, 1100, 8192) == [(0, 8), (745, 1100)]
    assert mask.covers(1000, 1100, 8192) == [(0, 8), (844, 1001)]
    assert (~Causal()).touches(10, 20, 30) == [(11, 30)]


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_density_counts_pairs(mask):
    for n, m in ((11, 11), (4, 11)):
        assert mask.density(n, m, chunk=3) == pytest.approx(mask.materialize(n, m).float().mean().item())


def test_padding_differs_by_row():
    mask = Padding(torch.tensor([1, 3])) & Causal()
    assert mask.materialize(3).tolist() == [
        [[True, False, False]] * 3,
        [[True, False, False], [True, True, False], [True, True, True]],
    ]
    assert mask.density(3) == pytest.approx(9 / 18)


def test_mask_mod_is_what_flex_attention_takes():
    from torch.nn.attention.flex_attention import create_mask

    mask = Causal() & Window(3) | Prefix(2)
    made = create_mask(mask.mask_mod, 1, 1, 9, 9, device="cpu")[0, 0]
    assert torch.equal(made, mask.materialize(9))


def test_text_equality_and_simplification():
    assert str(Causal() & Window(256) | Prefix(8)) == "Causal() & Window(256) | Prefix(8)"
    assert str((Causal() | Prefix(8)) & ~Window(2)) == "(Causal() | Prefix(8)) & ~Window(2)"
    assert Causal() & Window(3) == Causal() & Window(3)
    assert len({Window(3), Window(3), Window(4)}) == 2
    assert simplify(Causal() & Window(9), 9, 9) == Causal()
    assert simplify(Causal() & Window(8), 9, 9) == Causal() & Window(8)
    assert simplify(Causal(), 1, 9) == Full() == simplify(None, 2, 2)
    with pytest.raises(ValueError, match="at least 1"):
        Window(0)
