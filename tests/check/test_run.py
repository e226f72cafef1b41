"""check.run: its targets, its report, what it leaves behind, and the laws of parts that are no mixers."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from right_mixers import RingConvolution

from formwright import check
from formwright.channels.mlp import MLP
from formwright.check.extend import describe, splits
from formwright.embeds.tokens import Tokens
from formwright.heads.lm import LM
from formwright.norms.rmsnorm import RMSNorm

QUICK = ["causality", "refusals"]


def broken(target, **options):
    return [law.law for law in check.run(target, **options).laws if law.status == "fail"]


def test_the_report_as_json_and_table(capsys):
    report = check.run(RingConvolution, laws=QUICK)
    found = json.loads(json.dumps(report.to_json()))
    assert list(found) == ["target", "laws", "passed"]
    assert found["target"] == "RingConvolution" and found["passed"] is True
    assert [list(law) for law in found["laws"]] == [["law", "status", "detail"]] * 2
    assert [law["status"] for law in found["laws"]] == ["pass", "pass"]
    report.show()
    assert "causality" in capsys.readouterr().out


def test_a_class_in_a_file(tmp_path):
    source = """
import torch
from torch import nn
from formwright.contract import Card, Cost, TokenMixer, parameter_count

class Leaky(TokenMixer):
    card = Card("leaky", patterns=("causal",))
    def __init__(self, dim, *, causal=False):
        super().__init__(dim, causal=causal)
        self.out = nn.Linear(dim, dim)
    def forward(self, x, layout, context=None, context_layout=None):
        return self.out(x.mean(1, keepdim=True).expand_as(x))
"""
    path = tmp_path / "mine.py"
    path.write_text(source)
    report = check.run(f"{path}:Leaky", laws=["causality"])
    assert [law.status for law in report.laws] == ["fail"]
    assert "when only inputs after" in report.laws[0].detail


def test_an_expression_with_options_and_parts():
    report = check.run("attention(heads=4, position=rope, window=20)", laws=["causality", "extend"])
    assert report.passed, report.to_json()


@pytest.mark.parametrize("target", ["attention + mlp", "no_such_part", "nowhere.py:Mine", int])
def test_a_target_that_is_no_part(target):
    with pytest.raises((ValueError, LookupError, FileNotFoundError)):
        check.run(target)


def test_options_choose_a_width_they_fit_and_wrong_ones_are_misuse():
    assert check.run("attention(heads=5)", laws=["shapes"]).passed
    with pytest.raises(ValueError, match="heads"):
        check.run("attention(heads=0)", laws=["shapes"])
    with pytest.raises(ValueError, match="colour"):
        check.run("attention(colour=2)", laws=["shapes"])


def test_an_unknown_law():
    with pytest.raises(ValueError, match="causality"):
        check.run(RingConvolution, laws=["causalty"])


def test_a_check_leaves_settings_and_generators_as_they_were():
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.manual_seed(3)
    random.seed(3)
    wanted = torch.rand(1), random.random()
    torch.manual_seed(3)
    random.seed(3)
    check.run(RingConvolution, laws=["determinism", "extend", "save_load"])
    assert (torch.rand(1), random.random()) == wanted
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory == fill


@pytest.mark.parametrize("n", [40, 300, 1000])
def test_splits_cover_all_tokens(n):
    every = list(splits(n, 0))
    assert all(sum(pieces) == n and min(pieces) >= 1 for pieces in every)
    assert len(every) >= (4 if n >= 1000 else 30)
    assert describe([70, 1, 1, 68]) == "70 + 2*1 + 68"


class NeighbourlyMLP(MLP):
    def forward(self, x, layout):
        return super().forward(x + 1e-3 * x.roll(1, 1), layout)


class BatchNorm(RMSNorm):
    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))


class CostlessTokens(Tokens):
    def cost(self, layout, batch=1):
        return replace(super().cost(layout, batch), params=0)


class ShiftedTokens(Tokens):
    def extend(self, inputs, start):
        return super().extend(inputs, start) * (1 + start)


class SummedScores(LM):
    def scores(self, outputs, targets):
        total, count = super().scores(outputs, targets)["loss"]
        return {"loss": (total / count, count)}


class UnusedBias(LM):
    def __init__(self, dim, *, vocab):
        super().__init__(dim, vocab=vocab)
        self.bias = nn.Parameter(torch.zeros(vocab))

    def cost(self, layout, batch=1):
        stated = super().cost(layout, batch)
        return replace(stated, params=stated.params + self.vocab)


@pytest.mark.parametrize(
    ("part", "law"),
    [
        (NeighbourlyMLP, "isolation"),
        (BatchNorm, "isolation"),
        (CostlessTokens, "cost"),
        (ShiftedTokens, "extend"),
        (SummedScores, "shapes"),
        (UnusedBias, "gradients"),
    ],
    ids=lambda v: v if isinstance(v, str) else v.__name__,
)
def test_a_wrong_part_breaks_just_its_law(part, law):
    assert broken(part) == [law]
