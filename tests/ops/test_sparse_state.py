"""ops.sparse_state: each form against the definition written out, states, packed sequences, choices, counted costs."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from formwright.ops import sparse_state as ops
from formwright.ops.sparse_state import sparse_state

B, H, K, V, P = 2, 3, 4, 5, 4
DECAYS = [None, "scalar", "diagonal"]


def made(n, reads=1, writes=1, decay="diagonal", batch=B, dtype=torch.float64):
    """q, k, v, choice, read, write and log_decay."""
    draw = torch.Generator().manual_seed(n + 10 * reads + 100 * writes)
    q, k, v = (torch.randn(batch, n, H, e, generator=draw, dtype=dtype) for e in (K, K, V))
    choice = torch.rand(batch, n, P, generator=draw).argsort(-1)[..., : max(reads, writes)]
    read, write = (torch.rand(batch, n, e, generator=draw, dtype=dtype) for e in (reads, writes))
    if decay is None:
        return q, k, v, choice, read, write, None
    shape = (batch, n, H, K) if decay == "diagonal" else (batch, n, H)
    return q, k, v, choice, read, write, -torch.rand(shape, generator=draw, dtype=dtype)


def first_state(rows=B):
    return torch.randn(rows, P, H, K, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_hand(q, k, v, choice, read, write, log_decay, state):
    """The definition: one token, one head, one choice after another."""
    outs = torch.zeros_like(v)
    state = state.clone()
    for b, t, h in itertools.product(range(q.shape[0]), range(q.shape[1]), range(H)):
        for e in range(write.shape[2]):
            c = choice[b, t, e]
            if log_decay is not None:
                state[b, c, h] *= log_decay[b, t, h].exp()[..., None]
            state[b, c, h] += write[b, t, e] * torch.outer(k[b, t, h], v[b, t, h])
        for e in range(read.shape[2]):
            outs[b, t, h] += 0.5 * read[b, t, e] * (q[b, t, h] @ state[b, choice[b, t, e], h])
    return outs, state


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("reads", "writes"), [(1, 1), (2, 2), (1, 3), (3, 1), (4, 4)])
def test_every_form_is_the_definition(reads, writes, decay):
    *inputs, log_decay = made(23, reads, writes, decay)
    expected = by_hand(*inputs, log_decay, first_state())
    for options in ({"backend": "reference"}, {"form": "masked"}, {"form": "sorted"}):
        found = sparse_state(*inputs, partitions=P, log_decay=log_decay, scale=0.5, state=first_state(), **options)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("n", [1, 2, 31, 64, 65, 130])
def test_gradients_of_every_form(n, stateful, decay):
    q, k, v, choice, read, write, log_decay = made(n, 1, 2, decay)
    given = q, k, v, read, write, log_decay, first_state() if stateful else None
    leaves = [t.requires_grad_() for t in given if t is not None]
    state = leaves[-1] if stateful else None
    weights = torch.randn(B, n, H, V, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = {}
    for form in ("reference", "masked", "sorted", *(["step"] if n == 1 and stateful else [])):
        options = {"backend": "reference"} if form == "reference" else {"form": form}
        o, last = sparse_state(q, k, v, choice, read, write, partitions=P, log_decay=log_decay, state=state, **options)
        found[form] = [o, last, *torch.autograd.grad((o * weights).sum() + last.square().sum(), leaves)]
    for form in found:
        for fast, slow in zip(found[form], found["reference"], strict=True):
            torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", ["masked", "sorted", "auto"])
@pytest.mark.parametrize("decay", DECAYS)
def test_packed_is_alone(form, decay):
    bounds = (0, 1, 5, 5, 70)
    q, k, v, choice, read, write, log_decay = made(70, 2, 2, decay, batch=1)
    state = first_state(4)
    options = {"partitions": P, "log_decay": log_decay, "offsets": torch.tensor(bounds), "form": form}
    o, last = sparse_state(q, k, v, choice, read, write, state=state, **options)
    for number, (a, b) in enumerate(itertools.pairwise(bounds)):
        if a == b:
            torch.testing.assert_close(last[number], state[number])
            continue
        inputs = (t[:, a:b] for t in (q, k, v, choice, read, write))
        decays = None if log_decay is None else log_decay[:, a:b]
        alone = ops.reference(*inputs, partitions=P, log_decay=decays, state=state[number : number + 1])
        torch.testing.assert_close((o[:, a:b], last[number : number + 1]), alone)


@pytest.mark.parametrize("form", ["masked", "sorted"])
def test_strong_decay_and_unused_partitions(form):
    q, k, v, _, read, write, log_decay = made(130)
    log_decay = 300 * log_decay
    log_decay[:, ::7] = float("-inf")
    choice = torch.full((B, 130, 1), 2)
    found = sparse_state(
        q, k, v, choice, read, write, partitions=P, log_decay=log_decay, state=first_state(), form=form
    )
    slow = ops.reference(q, k, v, choice, read, write, partitions=P, log_decay=log_decay, state=first_state())
    torch.testing.assert_close(found, slow)
    torch.testing.assert_close(found[1][:, :2], first_state()[:, :2])


@pytest.mark.parametrize("form", ["step", "masked", "sorted"])
def test_half_precision_keeps_the_states_dtype(form):
    q, k, v, choice, read, write, log_decay = made(1, dtype=torch.bfloat16)
    options = {"partitions": P, "log_decay": log_decay, "form": form}
    o, last = sparse_state(q, k, v, choice, read, write, state=first_state().float(), **options)
    assert o.dtype == torch.bfloat16 and last.dtype == torch.float32
    q, k, v, read, write, log_decay = (t.double() for t in (q, k, v, read, write, log_decay))
    slow = ops.reference(q, k, v, choice, read, write, partitions=P, log_decay=log_decay, state=first_state())
    torch.testing.assert_close((o.double(), last.double()), slow, rtol=2e-2, atol=2e-2)


SIZES = [(form, n, stateful) for form in ("auto", "masked", "sorted") for n in (1, 7, 65, 200) for stateful in (0, 1)]


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("form", "n", "stateful"), [*SIZES, ("step", 1, 1)])
def test_counted_costs(form, n, stateful, decay):
    *inputs, log_decay = made(n, 2, 1, decay)
    options = {"partitions": P, "form": form}
    state = first_state() if stateful else None
    with FlopCounterMode(display=False) as counter:
        sparse_state(*inputs, log_decay=log_decay, state=state, last=bool(stateful), **options)
    sizes = {"chosen": 2, "log_decay": decay, "state": bool(stateful), "last": bool(stateful)}
    assert ops.macs(B, n, H, K, V, **sizes, **options) == counter.get_total_flops() // 2


def test_auto_is_the_cheapest_form():
    sizes = {"heads": 4, "key": 64, "value": 64, "partitions": 8, "chosen": 1, "log_decay": "diagonal"}
    assert ops.explain(1, 4096, **sizes, state=True, last=True).startswith("sorted")
    assert ops.explain(1, 8, **sizes, state=True, last=True).startswith("masked")
    assert ops.explain(1, 1, **sizes, state=True, last=True).startswith("step")
    assert ops.explain(1, 4096, **{**sizes, "chosen": 8}).startswith("masked")
    apart = {p: ops.macs(1, 4096, **{**sizes, "partitions": p}) for p in (2, 32)}
    assert apart[2] == apart[32]


def test_what_does_not_fit_is_refused():
    q, k, v, choice, read, write, _ = made(6, 2, 2)
    for message, change in {
        "form is one of": {"form": "dense"},
        "backend is one of": {"backend": "numpy"},
        "state must be": {"state": first_state()[:, :2]},
        "form='step' takes one token": {"form": "step", "state": first_state()},
    }.items():
        with pytest.raises(ValueError, match=message):
            sparse_state(q, k, v, choice, read, write, **{"partitions": P, **change})
    with pytest.raises(ValueError, match="the 1 choices of a token"):
        sparse_state(q, k, v, choice[..., :1], read, write, partitions=P)
    with pytest.raises(ValueError, match="choice, read and write must be"):
        sparse_state(q, k, v, choice[:, :3], read, write, partitions=P)
