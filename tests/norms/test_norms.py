from __future__ import annotations

import torch

from formwright.norms.affine import Affine
from formwright.norms.batchnorm import BatchNorm
from formwright.norms.layernorm import LayerNorm
from formwright.norms.rmsnorm import RMSNorm
from formwright.norms.srmsnorm import SRMSNorm


def test_rmsnorm():
    norm, x = RMSNorm(6).double(), torch.randn(2, 3, 6, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)


def test_layernorm():
    norm, x = LayerNorm(6).double(), torch.randn(2, 3, 6, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(x), expected)
    assert LayerNorm(6, bias=False).bias is None


def test_half_precision_is_normalised_in_float32():
    x = (torch.randn(2, 512) * 300).bfloat16()
    for norm in (RMSNorm(512), LayerNorm(512)):
        y = norm(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), norm(x.float()), rtol=1e-2, atol=1e-2)


def test_srmsnorm_has_no_parameters():
    norm, x = SRMSNorm(6), torch.randn(2, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt())
    assert not list(norm.parameters())


def test_affine():
    norm, x = Affine(6).double(), torch.randn(2, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(norm(x), x)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    torch.testing.assert_close(norm(x), x * norm.weight + norm.bias)


def test_batchnorm_is_torchs():
    norm, theirs = BatchNorm(6), torch.nn.BatchNorm1d(6)
    x = torch.randn(2, 3, 6)
    for mode in (True, True, False):
        norm.train(mode), theirs.train(mode)
        torch.testing.assert_close(norm(x).flatten(0, 1), theirs(x.flatten(0, 1)))
    assert norm.train()(x[:1, :1]).isfinite().all()
