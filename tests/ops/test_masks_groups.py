"""Isolated groups: the table, and that touches and covers are right and tight for every block."""

import pytest
import torch

from formwright.ops.masks import Causal, Prefix
from formwright.ops.masks_groups import Isolated


def test_the_table():
    assert Isolated(1, 3).materialize(4).int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1]]
    assert (Causal() & Isolated(0, 2)).materialize(2, 3).int().tolist() == [[0, 1, 0], [1, 1, 1]]
    assert str(Causal() & Isolated(0, 2) | Prefix(1)) == "Causal() & Isolated(0, 2) | Prefix(1)"


@pytest.mark.parametrize("group", [(0, 0), (0, 4), (3, 7), (5, 20), (0, 30), (12, 14)])
def test_touches_and_covers_every_block(group):
    mask, m = Isolated(*group), 14
    for start in range(m):
        for stop in range(start + 1, m + 1):
            allowed = mask.block(torch.arange(start, stop), torch.arange(m))
            touched, covered = torch.zeros(m, dtype=torch.bool), torch.zeros(m, dtype=torch.bool)
            for ranges, marks in ((mask.touches(start, stop, m), touched), (mask.covers(start, stop, m), covered)):
                assert all(a < b for a, b in ranges) and sorted(ranges) == ranges
                for a, b in ranges:
                    assert not marks[a:b].any()
                    marks[a:b] = True
            assert (allowed.any(0) <= touched).all()
            assert (covered <= allowed.all(0)).all()
            assert (touched == allowed.any(0)).all()
            inside = len(set(range(start, stop)) & set(range(*group)))
            if inside != 1:  # the column of a lone token of the group is left to the mask
                assert (covered == allowed.all(0)).all()


def test_density_is_what_is_left():
    assert Isolated(10, 90).density(100) == (100**2 - 80**2 + 80) / 100**2


def test_a_group_that_ends_before_it_starts_is_refused():
    with pytest.raises(ValueError, match="0 <= start <= stop"):
        Isolated(3, 2)
