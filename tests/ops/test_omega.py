"""The Omega rule: chunks against its definition, against autograd, and as the delta rule that it generalises."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from formwright.ops import omega, polynomials
from formwright.ops.omega import omega_rule
from formwright.ops.recurrence import linear_recurrence

B, H, K, V = 2, 3, 4, 5


def made(n, degree=2, momentum=True, batch=B, dtype=torch.float64):
    """q, k, v and the rule's gates, drawn; every step small enough for errors to shrink."""
    g = torch.Generator().manual_seed(n)
    q, k = (F.normalize(torch.randn(batch, n, H, K, generator=g, dtype=torch.float64), dim=-1) for _ in range(2))
    v = torch.randn(batch, n, H, V, generator=g, dtype=torch.float64)
    alpha, eta, gamma, theta = torch.rand(4, batch, n, H, generator=g, dtype=torch.float64)
    gates = {
        "weights": torch.rand(H, degree + 1, generator=g, dtype=torch.float64),
        "log_alpha": -0.2 * alpha,
        "eta": 0.1 * eta,
        "gamma": gamma,
        "log_theta": (0.1 + 0.8 * theta).log() if momentum else None,
    }
    gates = {name: None if t is None else t.to(dtype) for name, t in gates.items()}
    return [q.to(dtype), k.to(dtype), v.to(dtype)], gates


def monomials(x, weights):
    """phi by its definition: the products of all sorted choices of n of K variables, as often as they occur."""
    found = []
    for n in range(weights.shape[-1]):
        for few in itertools.combinations_with_replacement(range(K), n):
            times = math.factorial(n) / math.prod(math.factorial(few.count(i)) for i in set(few))
            product = torch.stack([x[..., i] for i in few], -1).prod(-1) if few else torch.ones_like(x[..., 0])
            found.append(weights[:, n] * math.sqrt(times) * product)
    return torch.stack(found, -1)


CASES = [
    {"window": 1},
    {"window": 4},
    {"window": 4, "momentum": False},
    {"window": 3, "block": 5},
    {"window": 6, "block": 4, "momentum": False},
    {"window": 4, "block": 40},
    {"window": 4, "block": 1, "muon": 2},
    {"window": 3, "block": 5, "muon": 3},
    {"window": 1, "block": 4, "muon": 1, "momentum": False},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("n", [1, 7, 70])
def test_chunks_are_the_definition_with_all_gradients(n, case):
    options = {name: value for name, value in case.items() if name != "momentum"}
    qkv, gates = made(n, momentum=case.get("momentum", True))
    leaves = [t.requires_grad_() for t in (*qkv, *gates.values()) if t is not None]
    found = []
    for backend in ("reference", "auto"):
        o, state = omega_rule(*qkv, **gates, **options, backend=backend)
        ends = [t for t in state if isinstance(t, torch.Tensor)]
        total = (o * torch.cos(o.detach())).sum() + sum((t * torch.sin(t.detach())).sum() for t in ends)
        found.append([o, *ends, *torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("block", [1, 3])
def test_the_definition_descends_the_loss(block):
    """Gradients by autograd of the loss as the paper writes it, phi by its definition."""
    (q, k, v), gates = made(11)
    phi_q, phi_k = (monomials(x, gates["weights"]) for x in (q, k))
    m = torch.zeros(B, H, phi_k.shape[-1], V, dtype=torch.float64)
    s, outs = torch.zeros_like(m), []
    for t in range(11):
        if t % block == 0:
            anchor = m.detach().requires_grad_()
        loss = 0
        for i in range(max(0, t - 3), t + 1):
            error = torch.einsum("bhfv,bhf->bhv", anchor, phi_k[:, i]) - v[:, i]
            loss = loss + 0.5 * (gates["gamma"][:, i] * error.square().sum(-1)).sum()
        (slope,) = torch.autograd.grad(loss, anchor)
        s = gates["log_theta"][:, t].exp()[..., None, None] * s - gates["eta"][:, t][..., None, None] * slope
        m = gates["log_alpha"][:, t].exp()[..., None, None] * m + s
        outs.append(torch.einsum("bhfv,bhf->bhv", m, phi_q[:, t]))
    o, state = omega_rule(q, k, v, **gates, window=4, block=block)
    torch.testing.assert_close(o, torch.stack(outs, 1))
    torch.testing.assert_close((state.memory, state.momentum), (m, s))


def test_the_delta_rule_is_a_special_case():
    (q, k, v), gates = made(150, momentum=False)
    gates["weights"] = torch.tensor([0.0, 1.0]).double().expand(H, 2)
    # A decayed state is corrected by what it held before it decayed: with no decay the two are one.
    gates["log_alpha"] = torch.zeros_like(gates["log_alpha"])
    o, state = omega_rule(q, k, v, **gates)
    expected, last = linear_recurrence(q, k, v, beta=gates["eta"] * gates["gamma"], scale=1.0)
    torch.testing.assert_close((o, state.memory[:, :, 1:]), (expected, last))
    assert not state.memory[:, :, 0].any()


def test_features_are_a_power_series():
    x, y = torch.randn(2, 1, H, 1, 3, K, dtype=torch.float64)
    for degree in (1, 2, 3, 4):
        w = torch.rand(H, degree + 1, dtype=torch.float64)
        s = x @ y.mT
        expected = sum(w[:, n, None, None, None].square() * s**n for n in range(degree + 1))
        phi = [polynomials.expanded(t, w) for t in (x, y)]
        assert phi[0].shape[-1] == omega.features(K, degree)
        torch.testing.assert_close(phi[0] @ phi[1].mT, expected)
        torch.testing.assert_close(polynomials.kernel(x, y, w), expected)
        torch.testing.assert_close(phi[0][0, :, 0].transpose(0, 1), monomials(x[0, :, 0].transpose(0, 1), w))


@pytest.mark.parametrize("shape", [(3, 20, 6), (3, 6, 20), (2, 7, 7)])
def test_newton_schulz_brings_singular_values_near_one(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(omega.newton_schulz(1e-3 * x, 5))
    assert values.min() > 0.5 and values.max() < 1.3
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    turned = u.mT @ omega.newton_schulz(x, 5) @ vt.mT
    torch.testing.assert_close(turned, torch.diag_embed(turned.diagonal(dim1=-2, dim2=-1)))
    zero = torch.zeros(shape, requires_grad=True)
    omega.newton_schulz(zero, 5).sum().backward()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pieces_join(case):
    options = {name: value for name, value in case.items() if name != "momentum"}
    qkv, gates = made(80, momentum=case.get("momentum", True))
    whole, last = omega_rule(*qkv, **gates, **options)
    weights = gates.pop("weights")
    for bounds in ([0, 1, 2, 40, 80], [0, 3, 7, 8, 61, 80]):
        outs, state = [], None
        for a, b in itertools.pairwise(bounds):
            here = {name: None if t is None else t[:, a:b] for name, t in gates.items()}
            o, state = omega_rule(*(t[:, a:b] for t in qkv), weights=weights, **here, **options, state=state)
            outs.append(o)
        torch.testing.assert_close((torch.cat(outs, 1), *state), (whole, *last))


def test_float32_and_gates_that_are_shut():
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        qkv, gates = made(300, dtype=dtype)
        gates["log_alpha"][:, 50] = -math.inf
        gates["log_theta"][:, 90:93] = -math.inf
        o, state = omega_rule(*qkv, **gates, window=4)
        exact, _ = omega.reference(
            *(t.double() for t in qkv), **{name: t.double() for name, t in gates.items()}, window=4
        )
        assert o.dtype == state.memory.dtype == dtype
        assert (o.double() - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("n", [1, 33, 130])
def test_macs_are_those_counted(n, case):
    momentum = case.get("momentum", True)
    options = {name: value for name, value in case.items() if name != "momentum"}
    qkv, gates = made(n, momentum=momentum)
    with FlopCounterMode(display=False) as counter:
        omega_rule(*qkv, **gates, **options)
    stated = omega.macs(B, n, H, K, V, degree=2, momentum=momentum, **options)
    assert counter.get_total_flops() == 2 * stated


def test_muon_keeps_no_memory_of_single_tokens_for_backward():
    qkv, gates = made(64)
    qkv[2].requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.untyped_storage()) or t, lambda t: t):
        omega_rule(*qkv, **gates, window=2, block=16, muon=2)
    assert max(t.nbytes() for t in kept) < 16 * 8 * B * H * omega.features(K, 2) * V


def test_mistakes_and_explanations():
    qkv, gates = made(4)
    with pytest.raises(ValueError, match="form is one of"):
        omega_rule(*qkv, **gates, form="parallel")
    with pytest.raises(ValueError, match="backend is one of"):
        omega_rule(*qkv, **gates, backend="fast")
    with pytest.raises(ValueError, match="eta must be"):
        omega_rule(*qkv, **{**gates, "eta": gates["eta"][..., :1]})
    with pytest.raises(ValueError, match="weights must be"):
        omega_rule(*qkv, **{**gates, "weights": gates["weights"][:1]})
    with pytest.raises(ValueError, match="window=0"):
        omega_rule(*qkv, **gates, window=0)
    _, state = omega_rule(*qkv, **gates, window=3)
    with pytest.raises(ValueError, match="another window"):
        omega_rule(*qkv, **gates, window=2, state=state)
    with pytest.raises(ValueError, match="memory must be"):
        omega_rule(*(t[:1] for t in qkv), **{n: t[:1] if t.ndim == 3 else t for n, t in gates.items()}, state=state)
    assert "triangular" in omega.explain(100) and "at one memory" in omega.explain(100, block=64)
    assert "single token" in omega.explain(1)
    assert "Newton-Schulz" in omega.explain(100, block=16, muon=5)
    assert "definition" in omega.explain(9, backend="reference") and "asked" in omega.explain(9, form="recurrent")
