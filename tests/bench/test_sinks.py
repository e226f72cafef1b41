"""Attention weights taken from a model, and the share that one token draws."""

from __future__ import annotations

import pytest
import torch

import formwright
from formwright.bench.sinks import attention_weights, sink_share
from formwright.contract import Layout, Unsupported

N = 7


def model(mixer):
    return formwright.build(f"tokens(dim=16) >> {mixer}", facts={"vocab": 9, "length": N}, seed=1)


@pytest.mark.parametrize(
    "options",
    ["heads=2", "heads=4, kv_heads=2", "heads=2, position=rope", "heads=2, window=3", "heads=2, normaliser='relu'",
     "heads=2, normaliser='linear'", "heads=2, qk_norm=True", "heads=2, normaliser='learned_sink'"],
)  # fmt: skip
def test_weights_are_those_that_make_the_output(options):
    built = model(f"attention({options})")
    mixer = next(m for m in built.modules() if type(m).__name__ == "Attention")
    inputs = torch.randint(0, 9, (3, N), generator=torch.Generator().manual_seed(0))
    (weights,) = attention_weights(built, inputs)
    seen = {}
    hook = mixer.register_forward_hook(lambda m, args, out: seen.update(x=args[0], y=out))
    built(inputs)
    hook.remove()
    values = mixer.value(seen["x"]).unflatten(-1, (mixer.kv_heads, mixer.head_dim))
    values = values.repeat_interleave(mixer.heads // mixer.kv_heads, 2)
    o = torch.einsum("bhnm,bmhv->bnhv", weights, values)
    torch.testing.assert_close(mixer.out(o.flatten(2)), seen["y"], rtol=1e-4, atol=1e-5)
    assert not weights.triu(1).any()


def test_every_layer_in_turn_and_what_is_refused():
    inputs = torch.zeros(2, N, dtype=torch.long)
    weights = attention_weights(model("3*(attention(heads=2) + swiglu)"), inputs)
    assert [w.shape for w in weights] == [(2, 2, N, N)] * 3
    with pytest.raises(Unsupported, match="no layer of `attention`"):
        attention_weights(model("gla(heads=2)"), inputs)
    with pytest.raises(Unsupported, match="bias positions"):
        attention_weights(model("attention(heads=2, position=alibi)"), inputs)
    built = model("attention(heads=2)")
    with pytest.raises(Unsupported, match="padded"):
        attention_weights(built, inputs, Layout((N,), lengths=torch.tensor([3, N])))
    assert not any(m._forward_hooks for m in built.modules())


def test_the_share_of_a_sink():
    weights = torch.tensor([[[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]]])
    queries = torch.tensor([[False, True, True]])
    found = sink_share(weights, queries)
    assert found == pytest.approx({"share": 0.5, "total": 0.5, "idle": 0.5})
    assert sink_share(weights, queries, place=2)["share"] == 0
    idle = torch.tensor([[False, False, True]])
    assert sink_share(weights, idle) == pytest.approx({"share": 0.0, "total": 0.0, "idle": 1.0})
    with pytest.raises(ValueError, match="no query counts"):
        sink_share(weights, ~queries & queries)
