"""The laws are sharp: each wrong mixer breaks the law that names its mistake and no other; right ones break none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from right_mixers import RIGHT
from wrong_mixers import CARELESS, WRONG

from formwright import check
from formwright.contract import Layout, Unsupported


@pytest.mark.parametrize("mixer", RIGHT, ids=lambda c: c.__name__)
def test_a_right_mixer_breaks_no_law(mixer):
    report = check.run(mixer)
    assert [law for law in report.laws if law.status == "fail"] == []
    assert report.passed
    assert [law.law for law in report.laws] == list(check.LAWS)


@pytest.mark.parametrize(("mixer", "law"), WRONG, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_a_wrong_mixer_breaks_just_its_law(mixer, law):
    # Tracing is the slowest law: it is left out where nothing about it is to be found.
    laws = [name for name in check.LAWS if name != "compile" or name in law]
    report = check.run(mixer, laws=laws)
    assert [found.law for found in report.laws if found.status == "fail"] == law.split(" and ")
    assert not report.passed


@pytest.mark.parametrize("mixer", CARELESS, ids=lambda c: c.__name__)
def test_the_contract_refuses_what_a_card_leaves_out(mixer):
    x = torch.randn(2, 15, 32)
    built = mixer(32, causal=True)
    assert built(x, Layout((15,))).shape == x.shape
    with pytest.raises(Unsupported, match="a context"):
        built(x, Layout((15,)), x, Layout((15,)))
    if mixer.card.grid_ranks:
        with pytest.raises(Unsupported, match="a grid of 2 axes"):
            built(x, Layout((3, 5)))
    assert check.run(mixer, laws=["refusals"]).passed
