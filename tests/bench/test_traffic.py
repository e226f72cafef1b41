"""Multiply-adds and bytes of calls whose traffic is known, and the roofline made of them."""

from __future__ import annotations

import pytest
import torch

import formwright
from formwright.bench import roofline
from formwright.bench.cost_report import roofline_table
from formwright.bench.measure import counted_macs
from formwright.bench.traffic import counts


def test_a_matrix_product_reads_both_and_writes_one():
    a, b = torch.randn(30, 50), torch.randn(50, 20)
    done = counts(lambda: a @ b)
    assert (done.macs, done.bytes) == (30 * 50 * 20, 4 * (30 * 50 + 50 * 20 + 30 * 20))
    assert done.intensity == pytest.approx(2 * done.macs / done.bytes)


def test_views_and_empty_memory_move_nothing():
    a = torch.randn(8, 6)
    assert counts(lambda: a.t()[2:].unsqueeze(0).expand(5, 4, 8)).bytes == 0
    assert counts(lambda: torch.empty(1000)).bytes == 0
    assert counts(lambda: torch.zeros(1000)).bytes == 4000
    assert counts(lambda: a.t().contiguous()).bytes == 2 * 4 * 48


def test_in_place_work_reads_and_writes_and_a_copy_does_not_read_its_target():
    a, b = torch.zeros(100), torch.ones(100)
    assert counts(lambda: a.add_(b)).bytes == 3 * 400
    assert counts(lambda: a.copy_(b)).bytes == 2 * 400


def test_what_is_spread_is_read_where_it_lies():
    one, many = torch.ones(1, 64), torch.ones(100, 64)
    assert counts(lambda: one.expand(100, 64) + many).bytes == 4 * (64 + 2 * 6400)


def test_half_precision_moves_half():
    a = torch.randn(64, 64)
    assert counts(lambda: a.bfloat16() + 1).bytes == (4 + 2 + 2 + 2) * 64 * 64
    h = a.bfloat16()
    assert 2 * counts(lambda: h @ h).bytes == counts(lambda: a @ a).bytes


def test_fused_attention_keeps_its_scores_to_itself():
    q = torch.randn(1, 2, 256, 16)
    fused = counts(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    plain = counts(lambda: (q @ q.transpose(-1, -2) / 4).softmax(-1) @ q)
    assert fused.macs == plain.macs == 2 * 2 * 256 * 256 * 16
    assert fused.bytes < plain.bytes / 5


def test_layers_of_a_model_add_up_to_it():
    model = formwright.build("2*(attention + swiglu)", facts={"length": 64}, dim=32)
    roof = roofline.Roof(flops=1e9, bytes=1e9)
    rows = roofline.layers(model, 48, batch=2, roof=roof, seconds=0.2)
    times = {row["part"].split("(")[0]: row["times"] for row in rows}
    assert times == {"tokens": 1, "rmsnorm": 5, "attention": 2, "swiglu": 2, "lm": 1}
    inputs = torch.zeros(2, 48, dtype=torch.long)
    assert sum(row["macs"] * row["times"] for row in rows) == counted_macs(lambda: model(inputs))
    assert model.training
    for row in rows:
        assert row["held_by"] == ("arithmetic" if row["intensity"] >= 1 else "memory")
        least = max(2 * row["macs"], row["bytes"]) / 1e9
        assert row["roof_milliseconds"] == pytest.approx(1e3 * least)
        assert row["roof"] == pytest.approx(row["roof_milliseconds"] / row["milliseconds"])
    held = {row["part"].split("(")[0]: row["held_by"] for row in rows}
    assert held["rmsnorm"] == held["tokens"] == "memory" and held["swiglu"] == "arithmetic"
    assert roofline_table(rows, roof).renderables


def test_the_machines_rates_are_those_of_a_machine():
    roof = roofline.measure_roof(seconds=0.5)
    assert 1e8 < roof.flops < 1e15 and 1e8 < roof.bytes < 1e14
    assert roof.ridge == pytest.approx(roof.flops / roof.bytes)
    assert roof.seconds(roof.flops, 0) == roof.seconds(0, roof.bytes) == 1
    assert roof.seconds(roof.flops, 3 * roof.bytes) == pytest.approx(3)


def test_a_part_without_tokens_is_refused():
    with pytest.raises(ValueError, match="reads none"):
        roofline.expression_layers("patches(size=4, channels=1, image=(8, 8)) >> attention >> classify(classes=3)")
