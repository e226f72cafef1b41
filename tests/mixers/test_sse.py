"""Sparse State Expansion: its equations written out token by token, its choices, its first states, its costs. What all
parts promise is held by the laws."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from formwright.contract import Layout
from formwright.mixers.sse import SparseStateExpansion, largest

N, D = 70, 24


@pytest.fixture
def x():
    return torch.randn(2, N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def built(**options):
    """In float64, with every parameter moved from where it begins."""
    torch.manual_seed(0)
    mixer = SparseStateExpansion(D, causal=True, **{"heads": 2, "head_dim": 8, **options}).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p += 0.1 * torch.randn_like(p)
    return mixer


def by_hand(m, x):
    """One row, one token, one head after another, each by its own small products."""
    w = {name: p.detach() for name, p in m.named_parameters()}

    def through(name, t):
        return w[f"{name}.1.weight"] @ (w[f"{name}.0.weight"] @ t)

    def belongs(logits):
        if m.rows is not None:
            logits = torch.where(logits >= logits.sort()[0][-m.rows], logits, -math.inf)
        return logits.softmax(0)

    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        zeros = torch.zeros(1 + m.partitions, m.heads, m.head_dim, m.value_dim, dtype=x.dtype)
        state = zeros if m.initial is None else w["initial"].clone()
        for t, now in enumerate(x[b]):
            p = (w["router.weight"] @ now).softmax(0)
            wanted = p.sort(descending=True)[1]
            q, k, v = (w[f"{name}.weight"] @ now for name in ("query", "key", "value"))
            queries = [q, q + through("query_shift", now)]
            keys = [k, k + through("key_shift", now)]
            decays = [torch.sigmoid(through(f"forget.{i}", now) + w[f"forget.{i}.1.bias"]) ** (1 / 16) for i in (0, 1)]
            queries, keys, decays = (torch.stack(s).unflatten(1, (m.heads, -1)) for s in (queries, keys, decays))
            heads = []
            for h, value in enumerate(F.silu(v).unflatten(0, (m.heads, -1))):
                state[0, h] = decays[0, h, :, None] * state[0, h] + torch.outer(belongs(keys[0, h]), value)
                for c in wanted[: m.writers]:
                    write = p[c] * torch.outer(belongs(keys[1, h]), value)
                    state[1 + c, h] = decays[1, h, :, None] * state[1 + c, h] + write
                o = F.silu(queries[0, h]) @ state[0, h]
                for c in wanted[: m.readers]:
                    o = o + p[c] * F.silu(queries[1, h]) @ state[1 + c, h]
                o = o / math.sqrt(m.head_dim)
                heads.append(o / torch.sqrt(o.square().mean() + 1e-5) * w["norm.weight"])
            out[b, t] = w["out.weight"] @ (torch.cat(heads) * F.silu(through("gate", now)))
    return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"partitions": 3, "writers": 2, "readers": 2},
        {"writers": 1, "readers": 3, "expansion": 2.0},
        {"writers": 2, "readers": 1, "rows": 3, "low_rank": 5},
        {"initial_state": True, "gate_rank": 3},
        {"partitions": 1},
    ],
)
def test_step_by_step(options, x):
    m = built(**options)
    expected = by_hand(m, x[:, :40])
    torch.testing.assert_close(m(x[:, :40], Layout((40,))), expected, rtol=1e-9, atol=1e-9)
    whole, state = [], m.empty(2)
    for piece in x[:, :40].split([30, 1, 2, 7], 1):
        y, state = m.extend(piece, state)
        whole.append(y)
    torch.testing.assert_close(torch.cat(whole, 1), expected, rtol=1e-9, atol=1e-9)


def test_partitions_not_chosen_keep_their_state(x):
    m = built(partitions=5, writers=2)
    choice, _ = m.route(x[:, :1])
    state = tuple(t + 1 for t in m.empty(2))
    _, (shared, held) = m.extend(x[:, :1], state)
    for b in range(2):
        touched = {c for c in range(5) if (held[b, c] != 1).any()}
        assert touched == set(choice[b, 0].tolist())
    assert (shared != 1).all()


def test_of_equal_scores_the_earlier_are_chosen(x):
    assert largest(torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]]), 2).tolist() == [[1, 2], [0, 1]]
    m = built(writers=2)
    assert (m.route(0 * x)[0] == torch.tensor([0, 1])).all()


def test_keys_keep_their_largest_rows(x):
    m = built(rows=3)
    for keys in m._keys(x):
        assert ((keys > 0).sum(-1) == 3).all()
        torch.testing.assert_close(keys.sum(-1), torch.ones_like(keys[..., 0]))


@pytest.mark.parametrize("bounds", [[0, 3, N], [0, 1, 2, 3, 4, 5, N]])
def test_learned_first_states_are_every_sequences(bounds, x):
    m = built(initial_state=True, partitions=6)
    whole = m(x[:1], Layout((N,), offsets=torch.tensor(bounds)))
    torch.testing.assert_close(whole[:, bounds[-2] :], m(x[:1, bounds[-2] :], Layout((N - bounds[-2],))))
    whole.sum().backward()
    assert m.initial.grad[0].abs().max() > 0 and m.initial.grad[1:].abs().max() > 0


def test_work_does_not_grow_with_the_partitions():
    few, many = (built(partitions=p).cost(Layout((512,))) for p in (2, 64))
    assert many.macs - few.macs == 512 * D * 62  # the router's
    assert many.params - few.params == D * 62
    assert many.state_bytes > 20 * few.state_bytes


def test_balance(x):
    m = built(partitions=4, writers=2)
    choice, p = m.route(x)
    written = F.one_hot(choice, 4).double().sum(2).mean((0, 1)) / 2
    torch.testing.assert_close(m.balance(x), 4 * (written * p.mean((0, 1))).sum())
    with torch.no_grad():
        m.router.weight.zero_()
    torch.testing.assert_close(m.balance(x), torch.tensor(1.0, dtype=torch.float64))
    m = built(partitions=4, writers=1)
    with torch.no_grad():
        m.router.weight.zero_()[1] = 1000.0
    assert m.balance(x.abs()) == 4


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("writers=5", {"writers": 5}),
        ("readers=0", {"readers": 0}),
        ("rows=9", {"rows": 9}),
        ("low_rank=0", {"low_rank": 0}),
    ],
)
def test_counts_that_do_not_fit_are_refused(message, options):
    with pytest.raises(ValueError, match=message):
        built(**options)
