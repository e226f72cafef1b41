import pytest
import torch
from torch import nn

from formwright import build
from formwright.contract import Layout, Unsupported, parameter_count, state_bytes
from formwright.mixers.attention import Attention
from formwright.mixers.minimal_attention import MinimalAttention
from formwright.positions.alibi import Alibi
from formwright.positions.rope import Rope

OPTIONS = [{}, {"symmetric": True}, {"values": False, "position": Rope}, {"heads": 4, "symmetric": True}, {"heads": 2}]


def make(causal=False, **options):
    torch.manual_seed(0)
    return MinimalAttention(16, causal=causal, **options).double()


@pytest.mark.parametrize("causal", [False, True])
def test_one_head_is_attention_with_its_matrices_multiplied(causal):
    plain = Attention(16, causal=causal, heads=1).double()
    mixer, x = make(causal=causal), torch.randn(2, 11, 16).double()
    with torch.no_grad():
        mixer.similarity.copy_(plain.query.weight.T @ plain.key.weight)
        mixer.out.weight.copy_(plain.out.weight @ plain.value.weight)
    assert (mixer(x, Layout((11,))) - plain(x, Layout((11,)))).abs().max() < 1e-12
    assert parameter_count(plain) == 2 * parameter_count(mixer)


def test_parameters_are_the_papers():
    assert parameter_count(make()) == 2 * 16 * 16
    assert parameter_count(make(values=False)) == 16 * 16
    assert parameter_count(make(values=False, symmetric=True)) == 16 * 17 // 2
    assert parameter_count(make(heads=4, symmetric=True)) == 2 * 16 * 16


@pytest.mark.parametrize("heads", [1, 4])
def test_symmetric_similarities_are_the_same_from_both_sides(heads):
    mixer, x = make(heads=heads, symmetric=True), torch.randn(1, 7, 16).double()
    q = mixer._queries(x, torch.arange(7)[:, None])
    scores = torch.einsum("bnhk,bmhk->hnm", q, mixer._keys(x, q, torch.arange(7)[:, None]))
    assert (scores - scores.mT).abs().max() < 1e-12
    assert (torch.linalg.eigvalsh(scores) > -1e-12).all()
    if heads == 1:
        t = mixer._matrix()
        assert torch.equal(t, t.tril())
        assert torch.allclose(scores[0], x[0] @ t @ t.T @ x[0].T)


def test_without_values_outputs_are_means_of_tokens():
    for heads in (1, 4):
        mixer, x = make(heads=heads, values=False), torch.randn(2, 9, 16).double()
        y = mixer(x, Layout((9,)))
        assert (y <= x.amax(1, keepdim=True)).all()
        assert (y >= x.amin(1, keepdim=True)).all()
        nn.init.zeros_(mixer.similarity)
        assert torch.allclose(mixer(x, Layout((9,))), x.mean(1, keepdim=True).expand_as(x))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_extend_packing_and_state(options):
    mixer, x = make(causal=True, **options), torch.randn(2, 23, 16).double()
    y, state, out = mixer(x, Layout((23,))), mixer.empty(2, 23, like=x), []
    for piece in x.split([9, 1, 1, 12], 1):
        o, state = mixer.extend(piece, state)
        out.append(o)
    assert (torch.cat(out, 1) - y).abs().max() < 1e-12
    assert state_bytes(state) == mixer.cost(Layout((23,)), 2).state_bytes
    tokens_alone = not options.get("symmetric") and "position" not in options
    assert state_bytes(state) == 2 * 23 * 16 * 8 * (1 if tokens_alone else 2)
    packed = mixer(x.reshape(1, 46, 16), Layout((46,), offsets=torch.tensor([0, 23, 46])))
    assert (packed.view_as(y) - y).abs().max() < 1e-12


def test_a_model_of_nothing_else():
    facts = {"image": (8, 8), "channels": 1, "classes": 10}
    text = "patches(size=2, dim=32) >> 3*({}) >> classify"
    small = build(text.format("minimal_attention(values=False)"), facts=facts)
    large = build(text.format("attention(heads=1) + mlp"), facts=facts)
    inputs = torch.randn(2, 8, 8, 1)
    assert small(inputs).shape == large(inputs).shape == (2, 10)
    stacks = [parameter_count(m) - parameter_count(m.embed) - parameter_count(m.head) for m in (small, large)]
    assert stacks[0] < 0.1 * stacks[1]


def test_refusals():
    with pytest.raises(Unsupported, match="minimal_attention does not support position=alibi"):
        make(position=Alibi)
    with pytest.raises(ValueError, match="heads must divide the width 16"):
        make(heads=3)
