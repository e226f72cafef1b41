"""Curves by the number of examples, and linear self-attention against its closed form."""

import numpy as np
import pytest
import torch

import formwright
from formwright.bench import in_context, linear_self_attention
from formwright.bench.linear_self_attention import LinearSelfAttention, error, expected_error, optimum
from formwright.data import DataError
from formwright.data.tasks.in_context import gradient_step
from formwright.ops.attention import attention

C = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.5]], dtype=torch.float64)


@pytest.mark.parametrize("noise", [0.0, 0.7])
@pytest.mark.parametrize("points", [4, 25])
def test_the_optimum_is_one(points, noise):
    a = optimum(C, points, noise).requires_grad_()
    spread = (C.trace() + noise**2) / points * C
    second = (1 + 1 / points) * C @ C + spread
    loss = C.trace() - 2 * (a @ C @ C).trace() + (a @ second @ a.T @ C).trace()
    (slope,) = torch.autograd.grad(loss, a)
    assert slope.abs().max() < 1e-12
    gamma = torch.linalg.inv(a.detach())
    assert loss.item() == pytest.approx(expected_error(a.detach(), C, points, noise=noise))
    assert loss.item() == pytest.approx((C.trace() - (C @ C @ torch.linalg.inv(gamma)).trace()).item())
    assert loss.item() < min(expected_error(f * a.detach(), C, points, noise=noise) for f in (0.9, 1.1))


def test_isotropic_error_is_the_papers():
    dim, points = 5, 20
    a = optimum(torch.eye(dim), points)
    assert expected_error(a, torch.eye(dim), points) == pytest.approx(dim * (dim + 1) / (points + dim + 1))


@pytest.mark.parametrize(
    ("noise", "examples", "query"),
    [(0.0, C, None), (0.7, C, None), (0.0, 4 * C, 4 * C), (0.3, C, torch.eye(3).double()), (0.0, C.flip(0, 1), None)],
)
def test_foretold_errors_are_those_simulated(noise, examples, query):
    layer = LinearSelfAttention.at_optimum(C, 8, 0.3)
    foretold = expected_error(optimum(C, 8, 0.3), examples, 12, noise=noise, query=query)
    simulated = error(layer, examples, 12, noise=noise, query=query, rows=150_000)
    assert simulated == pytest.approx(foretold, rel=0.03)


def test_the_layer_is_attention_without_softmax():
    torch.manual_seed(0)
    layer, generator = LinearSelfAttention(3).double(), torch.Generator().manual_seed(0)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight)
    x, y, asked, _ = linear_self_attention.draw(4, 6, C, generator)
    tokens = torch.cat([torch.cat([x, y[..., None]], -1), torch.cat([asked, asked.new_zeros(4, 1)], -1)[:, None]], 1)
    q, k, v = tokens[:, -1:] @ layer.kq.T, tokens, tokens @ layer.pv.T
    mixed = attention(q[:, :, None], k[:, :, None], v[:, :, None], normaliser="linear", scale=1.0)
    torch.testing.assert_close(layer(x, y, asked), mixed[:, 0, 0, -1] * 7 / 6)


def test_the_optimum_is_one_gradient_step():
    layer = LinearSelfAttention.at_optimum(torch.eye(3).double(), 6)
    x, y, asked, value = linear_self_attention.draw(5, 6, C, torch.Generator().manual_seed(0))
    whole = torch.cat([x, asked[:, None]], 1).numpy(), torch.cat([y, value[:, None]], 1).numpy()
    np.testing.assert_allclose(gradient_step(*whole)[:, -1], layer(x, y, asked).detach(), rtol=1e-9)


def test_training_finds_the_closed_form_and_is_brittle():
    covariance, points = C.float(), 8
    layer = linear_self_attention.train(covariance, points, steps=500, rows=256)
    best = expected_error(optimum(covariance, points), covariance, points)
    assert error(layer, covariance, points, rows=50_000) == pytest.approx(best, rel=0.04)
    found = {row["shift"]: row for row in linear_self_attention.brittleness(layer, covariance, points)}
    for row in found.values():
        assert row["trained"] == pytest.approx(row["formula"], rel=0.2)
    assert found["all x times 3"]["trained"] > 10 > 1 > found["the query times 3"]["trained"]
    assert found["the query times 3"]["trained"] == pytest.approx(found["all x times 1"]["trained"], rel=0.05)


@pytest.mark.parametrize(
    ("spec", "best", "worse"),
    [
        ("linear_regression(dim=3, points=8)", "least squares", "always zero"),
        ("linear_regression(dim=3, points=8, noise=0.5, apart=True)", "ridge", "least squares"),
        ("boolean_functions(family='conjunctions', dim=8, points=40)", "Find-S", "the nearest neighbour"),
        ("boolean_functions(family='sparse_parities', dim=8, points=20)", "elimination", "Gaussian elimination"),
    ],
)
def test_curves_by_the_number_of_examples(spec, best, worse):
    source = formwright.data.open(spec)
    model = formwright.build("attention", data=source, dim=16)
    found = in_context.curves(spec, {"untrained": model}, items=500)
    assert {"untrained", best, worse} <= set(found) and len({len(curve) for curve in found.values()}) == 1
    means = {name: sum(curve) / len(curve) for name, curve in found.items()}
    if source.lower_is_better:
        means = {name: -mean for name, mean in means.items()}
    assert means[best] > means[worse] and means[best] > means["untrained"]
    # the curve of a model adds up to its score
    (batch,) = source.evaluation("test", 500, 500)
    total, number = model.scores(batch)["mse" if source.head == "values" else "accuracy"]
    size = 3 if source.head == "values" else 1
    assert sum(found["untrained"]) / len(found["untrained"]) == pytest.approx(total.item() / number / size, rel=1e-4)


def test_a_model_that_is_a_learner_differs_from_none_but_others():
    class Step(torch.nn.Module):
        """One gradient step, as a model."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, inputs):
            x, y = inputs[:, 0::2].double(), inputs[:, 1::2, 0].double()
            out = torch.zeros(*inputs.shape[:2], 1, dtype=torch.float64)
            out[:, 0::2, 0] = torch.from_numpy(gradient_step(x.numpy(), y.numpy()))
            return out

    found = in_context.differences("linear_regression(dim=3, points=6)", Step(), items=100)
    assert max(found["one gradient step"]) < 1e-9
    assert all(max(curve) > 0.05 for name, curve in found.items() if name != "one gradient step")


def test_other_tasks_are_refused():
    with pytest.raises(DataError, match="not learnt in context"):
        in_context.curves("mqar()")
