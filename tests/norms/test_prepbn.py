"""PRepBN: its schedule, its parts, its running averages, and the fused form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import formwright
from formwright import data
from formwright.model import load, save
from formwright.norms.affine import Affine
from formwright.norms.prepbn import PRepBN, fold, fuse, fused
from formwright.train import fit


def trained(dim: int = 6, steps: int = 4, passes: int = 4) -> PRepBN:
    norm = PRepBN(dim, steps=steps).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    for _ in range(passes):
        norm(3 * torch.randn(2, 9, dim, dtype=torch.float64) + 1)
    return norm


def test_it_is_layer_norm_that_becomes_batch_norm():
    norm, batch = PRepBN(6, steps=4).double(), nn.BatchNorm1d(6).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    batch.weight.data, batch.bias.data = norm.weight.data, norm.bias.data
    for step in range(1, 8):
        x = 2 * torch.randn(3, 5, 6, dtype=torch.float64) + step
        for mode in (True, False):  # what was trained is what is evaluated
            norm.train(mode)
            batch.train(mode)
            mix = max(1 - step / 4, 0)
            layer = F.layer_norm(x, (6,), norm.layer_weight, norm.layer_bias, 1e-5)
            rep = batch(x.flatten(0, 1)).view_as(x) + norm.eta * x
            torch.testing.assert_close(norm(x), mix * layer + (1 - mix) * rep)
        assert norm.step == step
    torch.testing.assert_close(norm.mean, batch.running_mean)
    torch.testing.assert_close(norm.variance, batch.running_var)


def test_gradients_of_training_are_those_of_the_statistics_too():
    norm, x = trained(passes=1).train(), torch.randn(7, 6, dtype=torch.float64, requires_grad=True)

    def again(x):
        norm.step.fill_(1)
        return norm(x)

    assert torch.autograd.gradcheck(again, (x,))


@pytest.mark.parametrize("bias", [True, False])
def test_the_fused_form_is_the_trained_one(bias):
    norm = trained().eval()
    linears = [nn.Linear(6, 5, bias=bias).double(), nn.Linear(6, 2, bias=bias).double()]
    x = torch.randn(4, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(fused(norm)(x), norm(x))
    for plain, folded in zip(linears, fold(norm, *linears), strict=True):
        torch.testing.assert_close(folded(x), plain(norm(x)))
    with pytest.raises(ValueError, match="after 3 of 4 steps"):
        fused(trained(passes=3))


def test_the_step_is_saved_and_whole_models_are_fused(tmp_path):
    text = (
        "tokens(dim=16, vocab=11) >> postnorm(attention(heads=2) + swiglu, norm=prepbn(steps=3)) >> classify(classes=2)"
    )
    model = formwright.build(text)
    norms = [m for m in model.modules() if isinstance(m, PRepBN)]
    inputs = torch.randint(11, (4, 8))
    for _ in range(2):
        model.train()(inputs)
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert {int(m.step) for m in again.modules() if isinstance(m, PRepBN)} == {2}
    torch.testing.assert_close(again(inputs), model.eval()(inputs))
    with pytest.raises(ValueError, match="after 2 of 3 steps"):
        fuse(model)
    assert sum(isinstance(m, PRepBN) for m in model.modules()) == len(norms)
    for _ in range(2):
        model.train()(inputs)
    expected = model.eval()(inputs)
    assert not any(isinstance(m, PRepBN) for m in fuse(model).modules())
    assert sum(isinstance(m, Affine) for m in model.modules()) == len(norms)
    torch.testing.assert_close(model(inputs), expected)


def test_training_counts_every_forward_once_though_it_is_interrupted(tmp_path):
    text = "prenorm(attention(heads=2) + swiglu, norm=prepbn(steps=3))"
    source = data.open("mqar(pairs=2, length=16)")

    def stop(event):
        if event["event"] == "step" and event["step"] == 4:
            raise KeyboardInterrupt

    models = [formwright.build(text, source, dim=16, seed=0) for _ in range(3)]
    how = {"steps": 7, "batch_size": 4, "lr": 1e-2, "evaluate_every": 2, "evaluation_items": 8}
    fit(models[0], source, **how)
    with pytest.raises(KeyboardInterrupt):
        fit(models[1], source, **how, folder=tmp_path, on_event=stop)
    fit(models[2], source, **how, folder=tmp_path, resume=True)
    tensors = models[0].state_dict()
    assert {int(t) for name, t in tensors.items() if name.endswith("step")} == {7}
    assert all(torch.equal(t, tensors[name]) for name, t in models[2].state_dict().items())


def test_it_refuses():
    with pytest.raises(ValueError, match="at least 1"):
        PRepBN(4, steps=0)
