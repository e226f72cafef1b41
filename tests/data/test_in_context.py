"""Tasks learnt in context: labels found again by brute force, learners against definitions written apart."""

import hashlib
import itertools
import math
import time

import numpy as np
import pytest
import torch

import formwright
from formwright import data
from formwright.data import DataError
from formwright.data.tasks import TASKS, boolean_learners, in_context
from formwright.data.tasks.boolean_functions import FAMILIES, draw_functions, draw_points, lessons, values
from formwright.data.tasks.linear_regression import deviations


def items(spec, split="train", count=200):
    batch = data.open(spec).batch(split, 0, count)
    return batch.inputs.numpy(), batch.targets.numpy()


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("sparsity", [None, 2])
def test_values_are_linear_in_x(apart, sparsity):
    written = f"dim=4, points=9, apart={apart}" + (f", sparsity={sparsity}" if sparsity else "")
    inputs, targets = items(f"linear_regression({written})")
    assert inputs.shape == (200, 18, 4 + apart) and targets.shape == (200, 18, 1)
    sizes = []
    for tokens, wanted in zip(inputs, targets, strict=True):
        x, y = tokens[0::2, int(apart) :], tokens[1::2, 0]
        assert np.isnan(wanted[1::2]).all() and (wanted[0::2, 0] == y).all()
        assert (tokens[1::2, 1:] == 0).all() and (not apart or (tokens[0::2, 0] == 0).all())
        w, _, rank, _ = np.linalg.lstsq(x[:4].astype(float), y[:4].astype(float), rcond=None)
        assert rank == 4 and np.abs(x @ w - y).max() < 1e-3
        sizes.append(np.count_nonzero(np.abs(w) > 1e-3))
    assert set(sizes) == {2} if sparsity else np.mean(sizes) > 3.9


def test_laws_of_x_w_and_noise():
    make = TASKS["linear_regression"](dim=3, points=40, noise=0.5, skew=1.0).make
    inputs, targets = make(np.random.default_rng(0), 4000)
    x, y = in_context.parted(inputs, False)
    variance = np.array([1, 1 / 4, 1 / 9]) * 3 / (1 + 1 / 4 + 1 / 9)
    np.testing.assert_allclose(np.square(x).mean((0, 1)), variance, rtol=0.02)
    np.testing.assert_allclose(np.square(deviations(3, 1.0)), variance)
    fitted = [np.linalg.lstsq(a, b, rcond=None)[:2] for a, b in zip(x, y, strict=True)]
    w, left = np.array([f[0] for f in fitted]), np.array([f[1][0] for f in fitted])
    np.testing.assert_allclose(left.mean() / 37, 0.25, rtol=0.02)
    np.testing.assert_allclose(np.square(w).mean(0), 1, rtol=0.12)
    assert (targets[:, 0::2, 0] == inputs[:, 1::2, 0]).all()


def test_the_test_part_is_shifted_and_says_so():
    source = data.open("linear_regression(dim=4, scale_tested=3.0, points=6, points_tested=9)")
    seen, tested = source.batch("validation", 0, 500).inputs, source.batch("test", 0, 500).inputs
    assert seen.shape[1:] == (12, 4) and tested.shape[1:] == (18, 4) and source.facts["length"] == 18
    assert seen[:, 0::2].std() == pytest.approx(1, abs=0.05) and tested[:, 0::2].std() == pytest.approx(3, abs=0.1)
    assert any("x are distributed otherwise and its prompts have another number of points" in n for n in source.notes)
    assert source.baselines["always zero"] == pytest.approx(9, rel=0.15)


def alone(x, y, solve):
    """Each prompt and each prefix by itself."""
    out = np.zeros(y.shape)
    for r, i in itertools.product(range(len(y)), range(1, y.shape[1])):
        out[r, i] = x[r, i] @ solve(x[r, :i], y[r, :i])
    return out


def steepest(x, y, steps):
    w = np.zeros(x.shape[1])
    for _ in range(steps):
        g = x.T @ (x @ w - y)
        if g @ g < 1e-20:
            break
        w = w - g * (g @ g) / ((x @ g) @ (x @ g))
    return w


def pursued(x, y, sparsity):
    free, w = [], np.zeros(x.shape[1])
    for _ in range(min(sparsity, len(y) // 2)):
        fit = [-1 if i in free else abs(x[:, i] @ (y - x @ w)) / np.linalg.norm(x[:, i]) for i in range(x.shape[1])]
        free.append(int(np.argmax(fit)))
        w = np.zeros(x.shape[1])
        w[free] = np.linalg.lstsq(x[:, free], y, rcond=None)[0]
    return w


def test_predictors_are_what_their_definitions_say():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 9, 4)), rng.standard_normal((20, 9))
    x[0, 1], x[1, 5] = x[0, 0], 2 * x[1, 2]  # a direction seen twice
    y[0, 1] = y[0, 0]
    cases = {
        "averaging": (in_context.averaging, lambda a, b: a.T @ b / len(b)),
        "least squares": (in_context.least_squares, lambda a, b: np.linalg.lstsq(a, b, rcond=None)[0]),
        "ridge": (
            lambda a, b: in_context.ridge(a, b, penalty=0.3),
            lambda a, b: np.linalg.inv(a.T @ a + 0.3 * np.eye(4)) @ a.T @ b,
        ),
        "step": (
            lambda a, b: in_context.gradient_step(a, b, largest=2.0),
            lambda a, b: a.T @ b / (len(b) + 5) / 2,
        ),
        "descent": (lambda a, b: in_context.descent(a, b, steps=3), lambda a, b: steepest(a, b, 3)),
    }
    for name, (predict, solve) in cases.items():
        np.testing.assert_allclose(predict(x, y), alone(x, y, solve), rtol=1e-7, atol=1e-7, err_msg=name)
    pursuit = in_context.matching_pursuit(x[2:], y[2:], sparsity=2)
    np.testing.assert_allclose(pursuit, alone(x[2:], y[2:], lambda a, b: pursued(a, b, 2)), rtol=1e-5, atol=1e-5)
    near = in_context.nearest_neighbour(x, y)
    for r, i in itertools.product(range(20), range(1, 9)):
        assert near[r, i] == y[r, np.argmin([np.sum((x[r, i] - a) ** 2) for a in x[r, :i]])]
    assert (near[:, 0] == 0).all()


def test_errors_are_those_that_theory_foretells():
    make = TASKS["linear_regression"](dim=5, points=8).make
    x, y = in_context.parted(make(np.random.default_rng(0), 20000)[0], False)
    error = {
        name: np.square(predict(x, y) - y).mean(0) / 5
        for name, predict in (("least squares", in_context.least_squares), ("one step", in_context.gradient_step))
    }
    i = np.arange(8)
    np.testing.assert_allclose(error["least squares"], np.maximum(1 - i / 5, 0), atol=0.03)
    np.testing.assert_allclose(error["one step"], 6 / (i + 6), atol=0.03)


def test_baselines_of_regression_stand_in_order():
    scores = data.open("linear_regression(noise=0.5)").baselines
    assert scores["ridge"] < scores["5 steps of descent"] < scores["one gradient step"] < scores["always zero"]
    assert "ridge" not in data.open("linear_regression()").baselines
    assert "matching pursuit" in data.open("linear_regression(sparsity=2)").baselines


def test_sparse_weights_are_found_from_fewer_examples():
    make = TASKS["linear_regression"](dim=16, points=13, sparsity=2).make
    x, y = in_context.parted(make(np.random.default_rng(0), 500)[0], False)
    pursued, fitted = in_context.matching_pursuit(x, y, sparsity=2), in_context.least_squares(x, y)
    assert np.square(pursued - y)[:, 12].mean() < 0.3 * np.square(fitted - y)[:, 12].mean()


def value(family, w, bound, x):
    """One function's value at one x, as its definition reads."""

    def literals(clause):
        return [(x[i] == 1) if w_i > 0 else (x[i] == -1) for i, w_i in enumerate(clause) if w_i]

    if family in ("conjunctions", "dnf"):
        return int(any(all(literals(clause)) for clause in w))
    if family in ("disjunctions", "sparse_disjunctions", "cnf"):
        return int(all(any(literals(clause)) for clause in w))
    if "parities" in family:
        return sum(literals(w[0])) % 2
    return int(sum(int(a) * int(b) for a, b in zip(w[0], x, strict=True)) > bound)


@pytest.mark.parametrize("family", FAMILIES)
def test_boolean_labels(family):
    dim, points = 7, 30
    inputs, targets = TASKS["boolean_functions"](family=family, dim=dim, points=points).make(
        np.random.default_rng(3), 50
    )
    w, bound = draw_functions(np.random.default_rng(3), 50, family, dim, {"sparse_disjunctions": 4}.get(family, 2))
    assert inputs.shape == (50, 60, 7) and targets.shape == (50, 60) and set(np.unique(inputs)) == {-1, 0, 1}
    for r in range(50):
        for i in range(points):
            x = inputs[r, 2 * i]
            assert set(np.unique(x)) <= {-1, 1}
            wanted = value(family, w[r], bound[r, 0], x)
            assert targets[r, 2 * i] == wanted and targets[r, 2 * i + 1] == -100
            assert inputs[r, 2 * i + 1].tolist() == [2 * wanted - 1] + [0] * (dim - 1)


def test_how_often_literals_stand_and_are_set():
    rng = np.random.default_rng(0)
    w, _ = draw_functions(rng, 20000, "conjunctions", 28, 1)
    np.testing.assert_allclose([(w == v).mean() for v in (-1, 0, 1)], [0.15, 0.7, 0.15], atol=0.003)
    for family, forced, wanted in (("conjunctions", 0.3, 1), ("disjunctions", 0.3, 0), ("sparse_disjunctions", 0.3, 0)):
        w, bound = draw_functions(rng, 1000, family, 28, 4)
        y = values(family, w, bound, draw_points(rng, w, family, 50, False))
        size = np.abs(w).sum(-1)[:, 0]
        assert np.mean(y == wanted) == pytest.approx(forced + (1 - forced) * np.mean(0.5**size), abs=0.015)
    w, _ = draw_functions(rng, 3000, "dnf", 10, 1)
    assert w.shape == (3000, 3, 10) and (w != 0).mean() == pytest.approx(0.2, abs=0.01)
    w, bound = draw_functions(rng, 6000, "thresholds", 10, 1)
    assert set(bound[:, 0]) == {-2.5, -1.5, -0.5, 0.5, 1.5, 2.5}
    w, _ = draw_functions(rng, 1000, "sparse_parities", 10, 2)
    assert (np.abs(w).sum(-1) == 2).all()


@pytest.mark.parametrize("family", ["conjunctions", "disjunctions", "parities"])
def test_a_lesson_leaves_one_function_of_its_family(family):
    dim = 4
    literals = (0, 1) if family == "parities" else (-1, 0, 1)
    every = np.array(list(itertools.product(literals, repeat=dim)))[:, None]
    bound = np.zeros((len(every), 1))
    grid = np.array(list(itertools.product((-1, 1), repeat=dim)))
    table = values(family, every, bound, np.broadcast_to(grid, (len(every), *grid.shape)))
    x, number = lessons(every[:, 0], family)
    for r in range(len(every)):
        shown = x[r, : number[r]]
        said = values(family, every, bound, np.broadcast_to(shown, (len(every), *shown.shape)))
        fitting = (said == said[r]).all(1)
        assert fitting[r] and (table[fitting] == table[r]).all()


@pytest.mark.parametrize("family", ["conjunctions", "disjunctions", "parities", "sparse_parities"])
def test_whoever_was_taught_makes_no_mistake(family):
    dim = 8
    x, y = taught(f"boolean_functions(family='{family}', dim={dim}, points=40, teaching=True)")
    found = boolean_learners.learners(family, dim, 2)
    (name,) = {"Find-S", "Gaussian elimination"} & set(found)
    assert (found[name](x, y) == y)[:, dim + 2 :].all()
    x, y = taught(f"boolean_functions(family='{family}', dim={dim}, points=40)")
    assert not (found[name](x, y) == y)[:, dim + 2 :].all() or "parities" in family


def taught(spec):
    inputs, targets = items(spec)
    return inputs[:, 0::2].astype(int), targets[:, 0::2]


def test_learners_are_what_their_definitions_say():
    x, y = taught("boolean_functions(family='conjunctions', dim=6, points=25)")
    found = boolean_learners.find_s(x, y)
    for r in range(50):
        kept = {(i, s) for i in range(6) for s in (-1, 1)}
        for t in range(25):
            assert found[r, t] == all(x[r, t, i] == s for i, s in kept)
            if y[r, t]:
                kept = {(i, s) for i, s in kept if x[r, t, i] == s}
    for family, relevant in (("parities", None), ("sparse_parities", 2)):
        x, y = taught(f"boolean_functions(family='{family}', dim=5, points=12)")
        sets = [s for k in range(6) for s in itertools.combinations(range(5), k) if relevant in (None, k)]
        said = np.array([[[sum(p[i] > 0 for i in s) % 2 for p in row] for s in sets] for row in x])
        elimination = boolean_learners.elimination(x, y, relevant=2)
        gauss = boolean_learners.gaussian_elimination(x, y)
        for r, t in itertools.product(range(60), range(12)):
            votes = said[r][(said[r, :, :t] == y[r, :t]).all(1), t]
            if relevant:
                assert elimination[r, t] == int(2 * votes.sum() > len(votes))
            else:
                assert gauss[r, t] == (votes[0] if len(set(votes.tolist())) == 1 else 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_learners_beat_the_commonest_answer(family):
    dim = 10 if "parities" in family else 20
    scores = data.open(f"boolean_functions(family='{family}', dim={dim}, points=60)").baselines
    best = max(v for k, v in scores.items() if k not in ("guessing", "the commonest answer", "the nearest neighbour"))
    assert best > scores["the commonest answer"] + 0.03


def test_many_prompts_a_second():
    make = TASKS["boolean_functions"]().make
    began = time.process_time()
    make(np.random.default_rng(0), 1000)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "spec", ["linear_regression(dim=3, points=5)", "boolean_functions(dim=6, points=8, apart=True)"]
)
def test_models_train_and_decode(spec):
    source = data.open(spec)
    model = formwright.build("2*(attention + swiglu)", data=source, dim=32)
    batch = source.batch("train", 0, 16)
    assert model.causal
    model.loss(batch).backward()
    assert all(p.grad.isfinite().all() and (p.grad != 0).any() for p in model.parameters())
    totals = {k: (v.item(), n) for k, (v, n) in model.scores(batch).items()}
    report = source.report(totals, "validation")
    assert math.isfinite(report[source.metric])
    if source.head == "values":
        assert report["normalised_error"] == pytest.approx(report["mse"] / 3)
    model.eval()
    with torch.no_grad():
        whole, state, pieces = model(batch.inputs), model.empty(16, 16), []
        for piece in batch.inputs.split(3, 1):
            made, state = model.extend(piece, state)
            pieces.append(made)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-5)


def test_functions_are_the_same_on_every_machine():
    inputs, targets = items("boolean_functions(family='dnf', dim=9, points=20)")
    assert hashlib.sha256(inputs.tobytes() + targets.tobytes()).hexdigest()[:16] == "5b9b31524b6b541e"


def test_splits_and_seeds_differ():
    spec = "boolean_functions(dim=10, points=12)"
    first, again = data.open(spec).batch("train", 0, 500).inputs, data.open(spec).batch("train", 0, 500).inputs
    assert torch.equal(first, again)
    assert not torch.equal(first, data.open(spec, seed=1).batch("train", 0, 500).inputs)
    rows = {row.numpy().tobytes() for row in first}
    assert not rows & {row.numpy().tobytes() for row in data.open(spec).batch("test", 0, 500).inputs}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("linear_regression(sparsity=9)", "only dim=5"),
        ("linear_regression(noise=-1.0)", "can't be below 0"),
        ("linear_regression(scale_tested=0)", "above 0"),
        ("linear_regression(points=0)", "at least 1"),
        ("linear_regression(apart=1)", "True or False"),
        ("boolean_functions(family='xor')", "family is one of"),
        ("boolean_functions(family='cnf', teaching=True)", "teaching sequences are known for"),
        ("boolean_functions(teaching=True, points=20)", "at least 30"),
        ("boolean_functions(relevant=3)", "leave it out"),
        ("boolean_functions(family='sparse_parities', relevant=40)", "at least 40"),
    ],
)
def test_refusals(spec, says):
    with pytest.raises(DataError, match=says):
        data.open(spec)
