"""The zoo's image models, one copy of each repeated stack, on small images."""

from __future__ import annotations

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from formwright import build, zoo
from formwright.contract import parameter_count
from formwright.ops.attention import SDPA_FLOPS

IMAGE = (64, 96)


@pytest.mark.parametrize("name", [n for n in zoo.names() if "image" in zoo.entry(n).facts])
def test_every_image_model_runs_learns_and_costs_what_it_says(name):
    torch.manual_seed(0)
    shallow = re.sub(r"\b\d+\*\(", "1*(", zoo.get(name))
    model = build(shallow, facts={**zoo.entry(name).facts, "image": IMAGE, "classes": 5})
    with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter:
        logits = model(torch.randn(2, *IMAGE, 3))
    cost = model.cost((*IMAGE, 3), batch=2)
    assert logits.shape == (2, 5) and logits.isfinite().all()
    assert (2 * cost.macs, cost.params) == (counter.get_total_flops(), parameter_count(model))
    model.head.loss(logits, torch.tensor([0, 4])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("vit-s16", 4.6),
        ("poolformer-s12", 1.8),
        ("convformer-s18", 3.9),
        ("caformer-s18", 4.1),
        ("mlp-mixer-s16", 3.8),
        ("swin-t", 4.5),
        ("tnt-s", 5.2),
        ("xcit-s12", 4.8),
        ("cswin-t", 4.3),
    ],
)
def test_multiply_adds_are_those_published(name, published):
    with torch.device("meta"):
        model = build(name)
    assert model.cost((224, 224, 3)).macs / 1e9 == pytest.approx(published, abs=0.06)
