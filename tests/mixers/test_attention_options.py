"""What stands in softmax's place in attention, and gates on what it gives."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from formwright.contract import Layout, Unsupported, state_bytes
from formwright.mixers.attention import Attention
from formwright.ops.attention import SDPA_FLOPS
from formwright.positions.alibi import Alibi
from formwright.positions.rope import Rope

OPTIONS = [
    {"normaliser": "sigmoid", "window": 5},
    {"normaliser": "sigmoid", "position": Alibi, "window": 7},
    {"normaliser": "clipped", "clip": (-0.02, 1.1), "kv_heads": 1},
    {"normaliser": "sink", "position": Rope},
    {"normaliser": "learned_sink", "window": 9},
    {"normaliser": "relu"},
    {"normaliser": "relu2", "gate": "head"},
    {"normaliser": "linear", "gate": "channel"},
    {"gate": "head", "bias": True},
    {"gate": "channel", "q_heads": 2, "window": 6},
]


def make(causal=True, heads=4, **options):
    torch.manual_seed(0)
    mixer = Attention(32, causal=causal, heads=heads, **options).double()
    if mixer.sink is not None:
        nn.init.normal_(mixer.sink)
    return mixer


def heads_of(mixer, x):
    """q, k, v (B, H, N, K) of a mixer without positions."""
    q, k, v = (f(x).unflatten(-1, (-1, mixer.head_dim)).transpose(1, 2) for f in (mixer.query, mixer.key, mixer.value))
    return q, *(t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_forward_is_extend_padded_is_packed_and_cost_is_counted(options):
    mixer, layout = make(**options), Layout((37,))
    x = torch.randn(2, 37, 32).double()
    with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter, torch.no_grad():
        y = mixer(x, layout)
    cost = mixer.cost(layout, 2)
    assert counter.get_total_flops() == 2 * cost.macs
    for pieces in ([37], [1] * 37, [20, 1, 1, 15]):
        state, out, start = mixer.empty(2, 37, like=x), [], 0
        for size in pieces:
            with torch.no_grad():
                o, state = mixer.extend(x[:, start : start + size], state)
            out.append(o)
            start += size
        assert (torch.cat(out, 1) - y).abs().max() < 1e-12
        assert state_bytes(state) == cost.state_bytes
    for each in (mixer, make(causal=False, **options)):
        packed = each(torch.cat([x[:1, :9], x[1:]], 1), Layout((46,), offsets=torch.tensor([0, 9, 46])))
        padded = each(x, Layout((37,), lengths=torch.tensor([9, 37])))
        alone = each(x[:1, :9], Layout((9,))), each(x[1:], layout)
        assert (packed - torch.cat(alone, 1)).abs().max() < 1e-12
        assert (padded[:1, :9] - alone[0]).abs().max() < 1e-12
        assert (padded[1:] - alone[1]).abs().max() < 1e-12


def test_gates_are_those_of_their_papers():
    x, layout = torch.randn(2, 11, 32).double(), Layout((11,))
    for gate, outputs in (("head", 4), ("channel", 32)):
        mixer, plain = make(gate=gate), make()
        assert mixer.gate.weight.shape == (outputs, 32)
        assert (mixer.gate.bias is not None) == (gate == "head")
        plain.load_state_dict({n: p for n, p in mixer.state_dict().items() if not n.startswith("gate")})
        plain.out = nn.Identity()
        opened = mixer.gate(x).sigmoid().repeat_interleave(32 // outputs, -1)
        assert (mixer.out(plain(x, layout) * opened) - mixer(x, layout)).abs().max() < 1e-12


def test_a_clipped_head_can_do_nothing_and_attend_to_one_alone():
    mixer, layout = make(causal=False, heads=1, normaliser="clipped", clip=(-0.5, 1.5)), Layout((8,))
    nn.init.zeros_(mixer.query.weight)  # all weights are 1/8, which is stretched to 2/8 - 1/2 < 0
    assert mixer(torch.randn(1, 8, 32).double(), layout).abs().max() == 0
    x = torch.eye(8, 32).double()[None]
    nn.init.eye_(mixer.query.weight)
    with torch.no_grad():
        mixer.key.weight.copy_(30 * torch.eye(32))  # softmax gives 0.966 to a token itself, which is cut to 1
    assert (mixer(x, layout) - mixer.out(mixer.value(x))).abs().max() < 1e-15
    mixer = make(causal=False, heads=1)
    assert (mixer(x, layout) - mixer.out(mixer.value(x))).abs().max() > 1e-3


def test_learned_sinks_take_weight_away():
    mixer, x = make(normaliser="learned_sink"), torch.randn(2, 13, 32).double()
    q, k, v = heads_of(mixer, x)
    scores = (q @ k.transpose(2, 3) / 8**0.5).masked_fill(torch.ones(13, 13).triu(1).bool(), -torch.inf)
    sinks = mixer.sink[None, :, None, None].expand(2, -1, 13, 1)
    weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    expected = mixer.out((weights @ v).transpose(1, 2).flatten(2))
    found = mixer(x, Layout((13,)))
    assert (found - expected).abs().max() < 1e-12
    leaves = list(mixer.parameters())
    grads = (torch.autograd.grad(y.square().sum(), leaves, retain_graph=True) for y in (found, expected))
    for a, b in zip(*grads, strict=True):
        assert b.abs().max() > 0
        assert (a - b).abs().max() < 1e-10
    nn.init.zeros_(mixer.sink)
    off_by_one = make(normaliser="sink")
    assert (off_by_one(x, Layout((13,))) - mixer(x, Layout((13,)))).abs().max() < 1e-12


def test_sigmoid_weights_each_key_for_itself():
    mixer, x = make(causal=False, normaliser="sigmoid"), torch.randn(2, 13, 32).double()
    q, k, v = heads_of(mixer, x)
    weights = torch.sigmoid(q @ k.transpose(2, 3) / 8**0.5 - torch.tensor(13.0).double().log())
    assert (mixer(x, Layout((13,))) - mixer.out((weights @ v).transpose(1, 2).flatten(2))).abs().max() < 1e-12


def test_refusals_name_part_and_option():
    for options, message in [
        ({"clip": (-0.1, 1.0)}, "attention does not support clip="),
        ({"gate": "both"}, "attention does not support gate='both'"),
    ]:
        with pytest.raises(Unsupported, match=message):
            make(**options)
    with pytest.raises(ValueError, match="'softmux' is no normaliser; there are softmax"):
        make(normaliser="softmux")
    with pytest.raises(ValueError, match="gamma must be <= 0"):
        make(normaliser="clipped", clip=(0.1, 1.0))
