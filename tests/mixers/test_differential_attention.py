import math

import pytest
import torch
from torch import nn

from formwright.contract import Layout, Unsupported, parameter_count
from formwright.mixers.attention import Attention
from formwright.mixers.differential_attention import DifferentialAttention
from formwright.positions.alibi import Alibi
from formwright.positions.rope import Rope

OPTIONS = [{}, {"kv_heads": 1, "bias": True}, {"position": Rope, "lambda_init": 0.3, "scaled_norm": False}]


def make(causal=True, heads=2, **options):
    torch.manual_seed(0)
    mixer = DifferentialAttention(32, causal=causal, heads=heads, **options).double()
    for vector in (mixer.lambda_query, mixer.lambda_key):
        nn.init.normal_(vector)
    return mixer


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_head_by_head(causal, options):
    mixer, x, k = make(causal=causal, **options), torch.randn(2, 9, 32).double(), 8
    turn = (lambda t: t) if mixer.position is None else (lambda t: Rope(k).rotate(t, torch.arange(9)[:, None]))
    q, keys = turn(mixer.query(x).unflatten(-1, (-1, k))), turn(mixer.key(x).unflatten(-1, (-1, k)))
    v, groups = mixer.value(x).unflatten(-1, (-1, 2 * k)), mixer.kv_heads
    a, b = mixer.lambda_query.detach(), mixer.lambda_key.detach()
    lam = math.exp(a[0] @ b[0]) - math.exp(a[1] @ b[1]) + mixer.lambda_init
    out = []
    for head in range(2):
        group = head * groups // 2
        maps = []
        for which in range(2):
            s = q[:, :, 2 * which + head] @ keys[:, :, groups * which + group].mT / k**0.5
            s = s.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf) if causal else s
            maps.append(s.softmax(-1))
        o = (maps[0] - lam * maps[1]) @ v[:, :, group]
        o = o * (o.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        out.append((1 - mixer.lambda_init) * o)
    expected = mixer.out(torch.cat(out, -1))
    assert (mixer(x, Layout((9,))) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_extend_and_packing(options):
    mixer, x = make(**options), torch.randn(2, 23, 32).double()
    y, state, out = mixer(x, Layout((23,))), mixer.empty(2, like=x), []
    for piece in x.split([9, 1, 1, 12], 1):
        o, state = mixer.extend(piece, state)
        out.append(o)
    assert (torch.cat(out, 1) - y).abs().max() < 1e-12
    packed = mixer(x.reshape(1, 46, 32), Layout((46,), offsets=torch.tensor([0, 23, 46])))
    assert (packed.view_as(y) - y).abs().max() < 1e-12


def test_what_both_maps_give_alike_is_cancelled():
    mixer, x = make(causal=False), torch.randn(1, 9, 32).double()
    with torch.no_grad():
        for vectors in (mixer.lambda_query, mixer.lambda_key):
            vectors.zero_()[0, 0] = math.log(2 - mixer.lambda_init) ** 0.5  # lambda is 1
        assert mixer(x, Layout((9,))).abs().max() > 0.1
        for linear in (mixer.query, mixer.key):
            linear.weight[16:] = linear.weight[:16]
        assert mixer(x, Layout((9,))).abs().max() < 1e-10


def test_as_many_parameters_as_attention_with_twice_the_heads():
    ours, plain = make(heads=2), Attention(32, heads=4)
    assert parameter_count(ours) == parameter_count(plain) + 4 * 8 + 16


def test_refusals():
    with pytest.raises(Unsupported, match="differential_attention does not support position=alibi"):
        make(position=Alibi)
    with pytest.raises(Unsupported, match="does not support kv_heads=3"):
        make(kv_heads=3)
    with pytest.raises(ValueError, match="no multiple of 2 x 3 heads"):
        make(heads=3)
    with pytest.raises(ValueError, match="but must lie in"):
        make(lambda_init=1.0)
