"""Local linear attention: the definition written out three ways, limits, and what it is for: values that a local line
tells better than a local constant or one global line."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from formwright.ops import local_linear_blocks
from formwright.ops.attention import attention
from formwright.ops.local_linear import explain, local_linear_attention, macs
from formwright.ops.masks import Causal

H = 2


def drawn(n, m, width=8, value=5, batch=2, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = (batch, n, H, width), (batch, m, H, width), (batch, m, H, value), (batch, n, H)
    return [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def with_gradients(tensors, **options):
    o = local_linear_attention(*tensors, **options)
    weights = torch.cos(torch.arange(o.numel(), dtype=o.dtype)).view_as(o)
    return [o.detach(), *torch.autograd.grad((o * weights).sum(), tensors)]


def assert_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))


def by_the_paper(q, k, v, log_ridge):
    """The closed form of one query, all keys (M, K) and values (M, V) that it sees: rho, then the intercept."""
    w = torch.exp(k @ q / math.sqrt(len(q)))
    d = k - q
    sigma = (w[:, None] * d).T @ d + log_ridge.exp() * torch.eye(len(q), dtype=q.dtype)
    mu = w @ d
    rho = torch.linalg.solve(sigma, mu)
    return ((w * (1 - d @ rho)) @ v) / (w.sum() - mu @ rho)


@pytest.mark.parametrize("backend", ["reference", "cholesky", "cg"])
def test_the_papers_closed_form(backend):
    q, k, v, ridge = drawn(9, 12)
    o = local_linear_attention(q, k, v, ridge, causal=True, iterations=20, backend=backend)
    for b in range(2):
        for i in range(9):
            for h in range(H):
                expected = by_the_paper(q[b, i, h], k[b, : i + 4, h], v[b, : i + 4, h], ridge[b, i, h])
                torch.testing.assert_close(o[b, i, h], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "n, m, causal", [(1, 1, True), (2, 2, True), (130, 130, True), (17, 150, True), (129, 3, False)]
)
@pytest.mark.parametrize("width", [8, 21, 40])
def test_fast_is_reference_with_gradients(n, m, causal, width):
    tensors = drawn(n, m, width)
    found, expected = (with_gradients(tensors, causal=causal, backend=each) for each in ("auto", "reference"))
    assert_close(found, expected, 1e-10)


def test_conjugate_gradients_converge_to_the_same():
    tensors = drawn(70, 70, 16)
    exact = with_gradients(tensors, causal=True)
    gaps = []
    for steps in (4, 16, 32):
        found = with_gradients(tensors, causal=True, backend="cg", iterations=steps)
        gaps.append(float((found[0] - exact[0]).norm() / exact[0].norm()))
    assert gaps[0] > 1e-1 > 1e-2 > gaps[1] > 1e-5 > 1e-10 > gaps[2]
    assert_close(found, exact, 1e-8)


def test_factors_formed_again_give_the_same_gradients(monkeypatch):
    tensors = drawn(140, 140, 16)
    kept = with_gradients(tensors, causal=True)
    monkeypatch.setattr(local_linear_blocks, "KEPT_BYTES", 0)
    assert_close(with_gradients(tensors, causal=True), kept, 1e-13)


def test_gradcheck():
    tensors = drawn(5, 7, 3, 2, batch=1)
    assert torch.autograd.gradcheck(lambda *t: local_linear_attention(*t, causal=True), tensors)


def test_a_large_ridge_gives_softmax_attention():
    q, k, v, ridge = drawn(30, 30)
    found = local_linear_attention(q, k, v, ridge * 0 + 40)
    torch.testing.assert_close(found, attention(q, k, v), rtol=1e-5, atol=1e-5)


def test_without_weights_it_is_the_global_line():
    """scale = 0, hardly a ridge, values that are affine in the keys: every query gets its affine value."""
    q, k, _, ridge = drawn(20, 60)
    slope, intercept = torch.randn(8, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    found = local_linear_attention(q, k, k @ slope + intercept, ridge * 0 - 40, scale=0.0)
    torch.testing.assert_close(found, q @ slope + intercept, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_packed_and_padded_are_each_alone(causal):
    q, k, v, ridge = (t.detach() for t in drawn(40, 40, batch=1))
    bounds = [0, 1, 1, 20, 40]
    found = local_linear_attention(q, k, v, ridge, causal=causal, offsets=torch.tensor(bounds))
    for a, b in itertools.pairwise(bounds):
        alone = [t[:, a:b] for t in (q, k, v, ridge)]
        if b > a:
            torch.testing.assert_close(
                found[:, a:b], local_linear_attention(*alone, causal=causal), rtol=1e-11, atol=1e-11
            )
    lengths = torch.tensor([25])
    padded = local_linear_attention(q, k, v, ridge, causal=causal, lengths=(lengths, lengths))
    alone = local_linear_attention(*(t[:, :25] for t in (q, k, v, ridge)), causal=causal)
    torch.testing.assert_close(padded[:, :25], alone, rtol=1e-11, atol=1e-11)
    assert (padded[:, 25:] == 0).all()


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_hard_keys_stay_finite_in_float32(scale):
    """Equal keys, keys on a line, keys far from the origin, large keys: finite, and about the size of the values."""
    g = torch.Generator().manual_seed(3)
    line = torch.randn(1, 200, H, 1, generator=g) * torch.randn(64, generator=g)
    for k in (line, line * 0 + 1, line + 100, torch.sign(line) * 50):
        k = scale * k
        tensors = [k.roll(1, 1), k, torch.randn(1, 200, H, 64, generator=g), torch.zeros(1, 200, H)]
        tensors = [t.clone().requires_grad_() for t in tensors]
        o, *gradients = with_gradients(tensors, causal=True)
        assert o.isfinite().all() and o.abs().max() < 1e3
        assert all(t.isfinite().all() for t in gradients)


def test_float32_is_near_float64():
    *tensors, ridge = (t.detach() for t in drawn(300, 300, 64, 64, batch=1))
    tensors.append(0 * ridge)
    exact = local_linear_attention(*tensors, causal=True)
    found = local_linear_attention(*(t.float() for t in tensors), causal=True)
    assert (found - exact).norm() < 2e-5 * exact.norm()


def test_non_stationary_regression_at_test_time():
    """Tokens wander from one region to the next, and in each the values are another linear map of the keys. Of the
    pairs so far, who tells the next value? Local lines beat local constants (softmax attention) and the global line
    (linear attention with the keys' covariance undone, by recursive least squares), each at its best setting."""
    g = torch.Generator().manual_seed(0)
    regions, each = 6, 20
    maps = torch.randn(regions, regions, 3, generator=g, dtype=torch.float64)
    visits = torch.cat([torch.randperm(regions, generator=g) for _ in range(2)]).repeat_interleave(each)
    places = torch.eye(regions, dtype=torch.float64)[visits]
    keys = places + 0.15 * torch.randn(places.shape, generator=g, dtype=torch.float64)
    keys = torch.nn.functional.normalize(keys, dim=-1)
    values = torch.einsum("nk,nkv->nv", keys, maps[visits])
    q, k, v, target = keys[1:, None][None], keys[:-1, None][None], values[:-1, None][None], values[1:]

    def error(predicted):
        return float((predicted[0, :, 0] - target)[regions * each :].square().mean())  # where regions are seen again

    ridges = [torch.full(q.shape[:3], math.log(x), dtype=torch.float64) for x in (1e-3, 1e-2, 1e-1, 1.0)]
    scales = (1.0, 3.0, 10.0, 30.0, 100.0)
    softmax = min(error(attention(q, k, v, mask=Causal(), scale=s)) for s in scales)
    line = min(error(local_linear_attention(q, k, v, r, causal=True, scale=0.0)) for r in ridges)
    local = min(error(local_linear_attention(q, k, v, r + s, causal=True, scale=s)) for r in ridges for s in scales)
    print(f"mean squared errors: local line {local:.4f}, softmax {softmax:.4f}, global line {line:.4f}")
    assert local < 0.5 * min(softmax, line)


def test_macs_and_explanation():
    assert macs(1, 10, heads=1, key_dim=4, causal=True) == 10 * (3 * 4 + 4 + 4 * 4 + 2 * 4 + 4)
    assert macs(100, 100, heads=3, key_dim=64) == 3 * 100 * (100 * (4 * 64 + 2560 + 128) + 64)
    assert "2560" in explain(100, 100, key_dim=64) and explain(1, 100, key_dim=64).startswith("cholesky: each query")


def test_misuse_is_told():
    q, k, v, ridge = (t.detach() for t in drawn(5, 3))
    with pytest.raises(ValueError, match="the first see none"):
        local_linear_attention(q, k, v, ridge, causal=True)
    with pytest.raises(ValueError, match="no backend"):
        local_linear_attention(q, k, v, ridge, backend="flash")
    with pytest.raises(ValueError, match="log_ridge has q's"):
        local_linear_attention(q, k, v, ridge[:, :2])
    with pytest.raises(ValueError, match="at least 1"):
        local_linear_attention(q, k, v, ridge, iterations=0)
    with pytest.raises(ValueError, match="M >= 1"):
        local_linear_attention(q, k[:, :0], v[:, :0], ridge)
    with pytest.raises(ValueError, match="not both"):
        local_linear_attention(q, k, v, ridge, offsets=torch.tensor([0, 5]), lengths=(None, None))
