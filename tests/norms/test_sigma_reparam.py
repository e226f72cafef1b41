"""sigmaReparam: spectral norms, gradients, whole models, what remains after training."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import formwright
from formwright.model import load, save
from formwright.norms.sigma_reparam import reparametrise, settle
from formwright.ops.attention import SDPA_FLOPS

TEXT = "tokens(dim=16, vocab=11) >> sigma_reparam(2*(attention(heads=2) + swiglu)) >> lm"


def spectral(weight):
    return torch.linalg.matrix_norm(weight, 2)


def test_the_spectral_norm_is_gamma():
    linear = reparametrise(nn.Linear(9, 5).double())
    (sigma,) = linear.parametrizations.weight
    before = linear.parametrizations.weight.original.detach().clone()
    torch.testing.assert_close(linear.eval().weight, before / spectral(before))
    sigma.gamma.data.fill_(2.5)
    assert spectral(linear.weight).item() == pytest.approx(2.5)


def test_power_iteration_follows_the_weights_in_training_alone():
    linear = reparametrise(nn.Linear(9, 5).double())
    linear.parametrizations.weight.original.data.normal_()
    linear.eval()
    assert spectral(linear.weight).item() == spectral(linear.weight).item() != pytest.approx(1, abs=1e-3)
    linear.train()
    for _ in range(200):
        weight = linear.weight
    assert spectral(weight).item() == pytest.approx(1, abs=1e-6)


def test_the_gradient_goes_through_sigma():
    linear, x = reparametrise(nn.Linear(4, 3).double()).eval(), torch.randn(2, 4, dtype=torch.float64)
    original = linear.parametrizations.weight.original
    w = torch.randn(2, 3, dtype=torch.float64)
    (linear(x) * w).sum().backward()
    torch.testing.assert_close((original.grad * original).sum(), torch.zeros((), dtype=torch.float64))  # scale is free
    exact = original.detach().clone().requires_grad_()
    ((x @ (exact / spectral(exact)).T + linear.bias) * w).sum().backward()
    torch.testing.assert_close(original.grad, exact.grad)


def test_zero_maps_stay_as_they_are():
    linear = nn.Linear(4, 3)
    nn.init.zeros_(linear.weight)
    assert isinstance(reparametrise(nn.Sequential(linear))[0].weight, nn.Parameter)


def test_a_stack_trains_saves_decodes_and_settles(tmp_path):
    model, plain = (
        formwright.build(TEXT),
        formwright.build(TEXT.replace("sigma_reparam", "loop").replace("))", "), times=1)")),
    )
    linears = sum(isinstance(m, nn.Linear) for m in model.stack.modules())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters()) + linears
    inputs = torch.randint(11, (2, 12))
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs)[:, :-1].flatten(0, 1), inputs[:, 1:].flatten())
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    out = model(inputs)
    first, state = model.extend(inputs[:, :5], model.empty(2))
    rest, _ = model.extend(inputs[:, 5:], state)
    torch.testing.assert_close(torch.cat([first, rest], 1), out, rtol=1e-4, atol=1e-5)
    save(model, tmp_path / "model.safetensors")
    torch.testing.assert_close(load(tmp_path / "model.safetensors")(inputs), out)
    with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter, torch.no_grad():
        model(inputs)
    cost = model.cost((12,), batch=2)
    assert 2 * cost.macs == counter.get_total_flops()
    assert cost.params == sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in settle(model).parameters()) == sum(p.numel() for p in plain.parameters())
    torch.testing.assert_close(model(inputs), out)
