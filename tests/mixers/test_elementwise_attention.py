import pytest
import torch
from torch import nn
from torch.nn.functional import silu

from formwright.contract import Layout, state_bytes
from formwright.mixers.elementwise_attention import ElementwiseAttention


def make(causal=True, **options):
    torch.manual_seed(0)
    return ElementwiseAttention(32, causal=causal, heads=4, **options).double()


@pytest.mark.parametrize("causal", [False, True])
def test_every_token_weighs_itself(causal):
    mixer, x = make(causal=causal), torch.randn(2, 40, 32).double()
    q, k, v = (f(x).unflatten(-1, (4, 8)) for f in (mixer.query, mixer.key, mixer.value))
    raised = ((silu(q) * k).sum(-1) / 8**0.5).exp()
    out = []
    for i in range(40):
        seen = slice(0, i + 1 if causal else 40)
        total = raised[:, seen].sum(1)
        out.append(((raised[:, seen, :, None] * v[:, seen]).sum(1) / total[..., None]).flatten(1))
    expected = mixer.out(torch.stack(out, 1))
    y = mixer(x, Layout((40,)))
    assert (y - expected).abs().max() < 1e-12
    for a, b in zip(
        *(torch.autograd.grad(o.square().sum(), list(mixer.parameters())) for o in (y, expected)), strict=True
    ):
        assert (a - b).abs().max() < 1e-9


def test_extend_and_a_state_of_two_sums():
    mixer, x = make(), torch.randn(2, 23, 32).double()
    y, state, out = mixer(x, Layout((23,))), mixer.empty(2, like=x), []
    size = state_bytes(state)
    for piece in x.split([9, 1, 1, 12], 1):
        o, state = mixer.extend(piece, state)
        out.append(o)
    assert (torch.cat(out, 1) - y).abs().max() < 1e-12
    assert state_bytes(state) == size == 2 * 4 * (8 + 2) * 8 == mixer.cost(Layout((23,)), 2).state_bytes


def test_scores_of_any_size_are_finite():
    mixer = make().float()
    for linear in (mixer.query, mixer.key):
        nn.init.normal_(linear.weight, std=30)
    x = torch.randn(1, 200, 32)
    y = mixer(x, Layout((200,)))
    assert y.isfinite().all()
    q, k = (f(x).unflatten(-1, (4, 8)) for f in (mixer.query, mixer.key))
    assert ((silu(q) * k).sum(-1) / 8**0.5).max() > 1e3


@pytest.mark.parametrize("causal", [False, True])
def test_packed_and_padded_are_each_alone(causal):
    mixer, x = make(causal=causal), torch.randn(2, 23, 32).double()
    alone = mixer(x[:1, :9], Layout((9,))), mixer(x[1:], Layout((23,)))
    packed = mixer(torch.cat([x[:1, :9], x[1:]], 1), Layout((32,), offsets=torch.tensor([0, 9, 32])))
    assert (packed - torch.cat(alone, 1)).abs().max() < 1e-12
    padded = mixer(x, Layout((23,), lengths=torch.tensor([9, 23])))
    assert (padded[:1, :9] - alone[0]).abs().max() < 1e-12
    assert (padded[1:] - alone[1]).abs().max() < 1e-12
