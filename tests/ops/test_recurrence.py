"""ops.linear_recurrence: all forms against the definition, forward and backward."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from formwright.ops import recurrence
from formwright.ops.recurrence import explain, linear_recurrence, macs

KINDS = list(itertools.product((None, "scalar", "diagonal"), (False, True)))
NAMES = ("q", "k", "v", "log_decay", "beta", "state")


def make(batch, tokens, heads, key, value, decay, delta, *, dtype=torch.float64, strength=2.0, states=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, tokens, heads, key, generator=g, dtype=dtype) for _ in range(2))
    v = torch.randn(batch, tokens, heads, value, generator=g, dtype=dtype)
    shape = {None: None, "scalar": (batch, tokens, heads), "diagonal": (batch, tokens, heads, key)}[decay]
    log_decay = None if shape is None else -strength * torch.rand(shape, generator=g, dtype=dtype)
    beta = 2 * torch.rand(batch, tokens, heads, generator=g, dtype=dtype) if delta else None
    state = torch.randn(states or batch, heads, key, value, generator=g, dtype=dtype)
    return {"q": q, "k": F.normalize(k, dim=-1), "v": v, "log_decay": log_decay, "beta": beta, "state": state}


def run(inputs, **options):
    """(o, last state, gradients by name) for a loss that weighs both results."""
    leaves = {n: None if t is None else t.clone().requires_grad_() for n, t in inputs.items()}
    o, s = linear_recurrence(leaves["q"], leaves["k"], leaves["v"], **{n: leaves[n] for n in NAMES[3:]}, **options)
    weigh = [torch.randn(t.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64) for t in (o, s)]
    sum((t.double() * w).sum() for t, w in zip((o, s), weigh, strict=True)).backward()
    return [o.detach(), s.detach(), *(t.grad for t in leaves.values() if t is not None)]


def worst(found, expected):
    return max(
        ((a - b).abs().max() / b.abs().max().clamp(min=1e-6)).item() for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize(("decay", "delta"), KINDS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 37, 63, 64, 65, 130])
def test_forms_equal_the_definition(decay, delta, tokens):
    inputs = make(2, tokens, 3, 5, 4, decay, delta)
    expected = run(inputs, backend="reference", scale=0.3)
    for form in ("auto", "chunked", "parallel", "recurrent"):
        assert worst(run(inputs, form=form, scale=0.3), expected) < 1e-10, form


@pytest.mark.parametrize(("decay", "delta"), KINDS)
def test_gradcheck(decay, delta):
    inputs = {n: t for n, t in make(1, 7, 2, 3, 2, decay, delta).items() if t is not None}
    names = list(inputs)

    def call(*tensors):
        given = dict(zip(names, tensors, strict=True))
        return linear_recurrence(given.pop("q"), given.pop("k"), given.pop("v"), form="chunked", **given)

    assert torch.autograd.gradcheck(call, [t.requires_grad_() for t in inputs.values()])


@pytest.mark.parametrize(("decay", "delta"), KINDS)
def test_packed_equals_alone(decay, delta):
    bounds = [0, 1, 66, 66, 70, 150]
    inputs = make(1, 150, 2, 4, 3, decay, delta, states=5)
    together = run(inputs, offsets=torch.tensor(bounds))
    assert worst(together, run(inputs, offsets=torch.tensor(bounds), backend="reference")) < 1e-10
    for number, (a, b) in enumerate(itertools.pairwise(bounds)):
        if a == b:
            assert torch.equal(together[1][number], inputs["state"][number])
            continue
        piece = {n: None if t is None else t[:, a:b] for n, t in inputs.items()} | {
            "state": inputs["state"][number : number + 1]
        }
        o, s = linear_recurrence(piece["q"], piece["k"], piece["v"], **{n: piece[n] for n in NAMES[3:]})
        assert (o - together[0][:, a:b]).abs().max() < 1e-10
        assert (s - together[1][number]).abs().max() < 1e-10


@pytest.mark.parametrize(("decay", "delta"), KINDS)
def test_pieces_join(decay, delta):
    inputs = make(2, 140, 2, 4, 4, decay, delta)
    whole = linear_recurrence(inputs["q"], inputs["k"], inputs["v"], **{n: inputs[n] for n in NAMES[3:]})
    state, outs = inputs["state"], []
    for a, b in ((0, 1), (1, 65), (65, 66), (66, 140)):
        part = {n: None if t is None else t[:, a:b] for n, t in inputs.items() if n != "state"}
        o, state = linear_recurrence(part.pop("q"), part.pop("k"), part.pop("v"), state=state, **part)
        outs.append(o)
    assert (torch.cat(outs, 1) - whole[0]).abs().max() < 1e-10
    assert (state - whole[1]).abs().max() < 1e-10


def test_groups_of_rows_join(monkeypatch):
    inputs = make(5, 70, 2, 4, 4, "diagonal", True)
    expected = run(inputs, backend="reference")
    monkeypatch.setattr(recurrence, "CACHED_ELEMENTS", 2 * 64 * 4 * 2)
    assert worst(run(inputs), expected) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("decay", "delta"), KINDS)
def test_tiles_of_several_chunks_join(monkeypatch, decay, delta, dtype):
    inputs = make(2, 7 * 64 + 21, 2, 5, 8, decay, delta, dtype=dtype, strength=0.3)
    whole = run(inputs, scale=0.3)
    for chunks in (1, 2, 3):
        monkeypatch.setattr(recurrence, "CACHED_ELEMENTS", chunks * 2 * 2 * 64 * 8)
        assert worst(run(inputs, scale=0.3), whole) < (2e-5 if dtype == torch.float32 else 2e-2), chunks
    monkeypatch.setattr(recurrence, "CACHED_ELEMENTS", 2 * 64 * 8 * 3)  # rows apart, chunks together
    packed = make(1, 500, 2, 5, 8, decay, delta, states=3)
    offsets = torch.tensor([0, 200, 201, 500])
    assert worst(run(packed, offsets=offsets), run(packed, offsets=offsets, backend="reference")) < 1e-10


@pytest.mark.parametrize(("decay", "delta"), [k for k in KINDS if k[0]])
@pytest.mark.parametrize("strength", [1e-3, 20.0, 300.0, float("inf")])
def test_strong_decay_is_safe_in_float32(decay, delta, strength):
    inputs = make(2, 130, 2, 6, 5, decay, delta, strength=min(strength, 1.0) if strength == float("inf") else strength)
    if strength == float("inf"):
        inputs["log_decay"][:, ::3] = -float("inf")
    expected = run(inputs, backend="reference")
    found = run({n: None if t is None else t.float() for n, t in inputs.items()})
    assert all(t.isfinite().all() for t in found)
    for name, a, b in zip(("o", "s", *(n for n in NAMES if inputs[n] is not None)), found, expected, strict=True):
        scale = b.abs().max().clamp(min=1e-3)
        assert ((a - b).abs().max() / scale).item() < 3e-4, name
    exact = run(inputs)
    assert worst(exact[:2], expected[:2]) < 1e-9


def test_half_precision_computes_in_float32():
    inputs = {n: None if t is None else t.bfloat16() for n, t in make(1, 100, 2, 8, 8, "scalar", False).items()}
    exact = linear_recurrence(
        *(inputs[n].double() for n in "qkv"), **{n: inputs[n].double() for n in ("log_decay", "state")}
    )
    o, s = linear_recurrence(*(inputs[n] for n in "qkv"), log_decay=inputs["log_decay"], state=inputs["state"])
    assert o.dtype == s.dtype == torch.bfloat16
    assert ((o - exact[0]).abs().max() / exact[0].abs().max()).item() < 4e-3
    assert linear_recurrence(*(inputs[n] for n in "qkv"), state=inputs["state"].float())[1].dtype == torch.float32


def test_wide_heads_and_expanded_gradients():
    inputs = make(1, 65, 1, 256, 256, "diagonal", True, strength=0.1)
    q, k, v = (inputs[n].clone().requires_grad_() for n in "qkv")
    options = {n: inputs[n] for n in NAMES[3:]}
    found, expected = (
        torch.autograd.grad(linear_recurrence(q, k, v, backend=b, **options)[0].sum(), (q, k, v))
        for b in ("auto", "reference")
    )
    assert worst(found, expected) < 1e-10


@pytest.mark.parametrize(("decay", "delta"), KINDS)
@pytest.mark.parametrize("form", ["auto", "parallel"])
def test_macs_are_those_counted(decay, delta, form):
    for tokens in (1, 33, 64, 130):
        inputs = make(2, tokens, 3, 5, 4, decay, delta)
        with FlopCounterMode(display=False) as counter:
            linear_recurrence(inputs["q"], inputs["k"], inputs["v"], form=form, **{n: inputs[n] for n in NAMES[3:]})
        stated = macs(2, tokens, 3, 5, 4, log_decay=decay, beta=delta, form=form)
        assert stated * 2 == counter.get_total_flops()


def test_memory_is_linear_in_tokens():
    def kept(tokens):
        total = 0

        def pack(t):
            nonlocal total
            total += t.numel()
            return t

        inputs = make(1, tokens, 1, 8, 8, "scalar", False)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            linear_recurrence(inputs["q"].requires_grad_(), inputs["k"], inputs["v"], log_decay=inputs["log_decay"])
        return total

    assert kept(2048) < 2.1 * kept(1024)


def test_compile_and_export():
    inputs = make(2, 70, 2, 4, 4, "diagonal", False)
    q, k, v = (inputs[n].requires_grad_() for n in "qkv")
    options = {n: inputs[n] for n in NAMES[3:]}

    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return linear_recurrence(q, k, v, **options)

    torch._dynamo.reset()
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(f(q, k, v)[0].sin().sum(), (q, k, v)) for f in (compiled, Module()))
    assert worst(found, expected) < 1e-10
    exported = torch.export.export(Module(), (q.detach(), k.detach(), v.detach())).module()
    assert (exported(q, k, v)[0] - Module()(q, k, v)[0]).abs().max() < 1e-10


def test_explain_says_what_runs():
    assert explain(1).startswith("recurrent")
    assert explain(500, log_decay="diagonal", beta=True).startswith("chunked (a decay per key channel, the delta rule")
    assert "asked for" in explain(500, form="parallel")
    assert explain(500, backend="reference").startswith("recurrent")


def test_mistakes_are_told():
    q = torch.zeros(2, 4, 3, 5)
    for options, word in (
        ({"form": "fast"}, "form"),
        ({"backend": "cuda"}, "backend"),
        ({"log_decay": torch.zeros(2, 4)}, "log_decay"),
        ({"beta": torch.zeros(2, 4, 3, 5)}, "beta"),
        ({"state": torch.zeros(2, 3, 5, 4)}, "state"),
        ({"offsets": torch.tensor([0, 4])}, "one row"),
    ):
        with pytest.raises(ValueError, match=word):
            linear_recurrence(q, q, q, **options)
    with pytest.raises(ValueError, match="offsets must rise"):
        linear_recurrence(q[:1], q[:1], q[:1], offsets=torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="q and k"):
        linear_recurrence(q, q[:, :2], q)
