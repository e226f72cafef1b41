import pytest
import torch
from torch import nn

from formwright.contract import Layout, Unsupported
from formwright.mixers.attention import Attention
from formwright.mixers.complex_attention import ComplexAttention, with_angles
from formwright.positions.alibi import Alibi
from formwright.positions.rope import Rope


def make(causal=True, **options):
    torch.manual_seed(0)
    mixer = ComplexAttention(32, causal=causal, heads=2, **options).double()
    nn.init.normal_(mixer.shift)
    return mixer


@pytest.mark.parametrize("position", [Rope, None])
@pytest.mark.parametrize("causal", [False, True])
def test_scores_are_those_of_angles_between(causal, position):
    mixer, x = make(causal=causal, position=position), torch.randn(2, 9, 32).double()
    q, k, v = (f(x).unflatten(-1, (2, 16)).transpose(1, 2) for f in (mixer.query, mixer.key, mixer.value))
    q, k = (torch.complex(t[..., :8], t[..., 8:]) for t in (q, k))
    semantic = q.angle()[:, :, :, None] - k.angle()[:, :, None]  # (B, H, N, N, K/2)
    angle = mixer.delta[:, None, None] * semantic + mixer.shift[:, None, None]
    if position is not None:
        at = torch.arange(9).double()
        angle = angle + (at[:, None] - at)[..., None] * 10000 ** (-torch.arange(8).double() / 8)
    scores = (q.abs()[:, :, :, None] * k.abs()[:, :, None] * angle.cos()).sum(-1) / 4
    if causal:
        scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    expected = mixer.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    assert (mixer(x, Layout((9,))) - expected).abs().max() < 1e-12


def test_angles_left_as_they_are_give_attention_with_rope():
    mixer, x = make(), torch.randn(2, 30, 32).double()
    nn.init.ones_(mixer.delta)
    nn.init.zeros_(mixer.shift)
    plain = Attention(32, causal=True, heads=2, position=Rope).double()
    plain.load_state_dict({n: p for n, p in mixer.state_dict().items() if n not in ("delta", "shift")})
    assert (mixer(x, Layout((30,))) - plain(x, Layout((30,)))).abs().max() < 1e-12


def test_extend_and_packing():
    mixer, x = make(), torch.randn(2, 23, 32).double()
    y, state, out = mixer(x, Layout((23,))), mixer.empty(2, like=x), []
    for piece in x.split([9, 1, 1, 12], 1):
        o, state = mixer.extend(piece, state)
        out.append(o)
    assert (torch.cat(out, 1) - y).abs().max() < 1e-12
    packed = mixer(x.reshape(1, 46, 32), Layout((46,), offsets=torch.tensor([0, 23, 46])))
    assert (packed.view_as(y) - y).abs().max() < 1e-12


def test_zero_has_no_angle_and_no_gradient():
    x = torch.tensor([[0.0, 3.0, 0.0, 4.0], [0.0, 0.0, 0.0, -1e-30]], requires_grad=True)
    y = with_angles(x, torch.tensor([0.7, 2.0]), torch.tensor([0.1, 0.0]))
    squared = (3 + 4j) ** 2 / 5
    assert torch.allclose(y[0], torch.tensor([0, squared.real, 0, squared.imag]))
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert y[1].abs().max() < 1e-20


def test_refusals():
    with pytest.raises(Unsupported, match="complex_attention does not support position=alibi"):
        make(position=Alibi)
    with pytest.raises(ValueError, match="head_dim is 5"):
        make(head_dim=5)
