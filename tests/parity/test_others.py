"""Packages beside which ours is to be compared can be imported and run in this environment, without CUDA."""

from __future__ import annotations

import pytest
import torch
from others import naive


def test_vision_transformers_run():
    timm = pytest.importorskip("timm", reason="needs timm; run make parity")
    model = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 224, 224)).isfinite().all()


def test_x_transformers_run():
    x_transformers = pytest.importorskip("x_transformers", reason="needs x-transformers; run make parity")
    model = x_transformers.Encoder(dim=32, depth=1, heads=2)
    assert model(torch.randn(2, 7, 32)).shape == (2, 7, 32)


def test_a_naive_form_that_is_not_there():
    pytest.importorskip("einops", reason="needs fla-core and einops; run make parity")
    with pytest.raises(FileNotFoundError):
        naive("no such op")
