import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from formwright.contract import Layout, Unsupported, state_bytes
from formwright.mixers.mla import MultiHeadLatentAttention
from formwright.ops.attention import SDPA_FLOPS
from formwright.positions.alibi import Alibi
from formwright.positions.rope import Rope

OPTIONS = [
    {},
    {"heads": 4, "kv_rank": 20, "rope_dim": 6, "q_rank": 12},
    {"heads": 4, "value_dim": 5, "position": None, "bias": True},
    {"heads": 2, "rope_dim": 0},
]


def make(causal=True, **options):
    torch.manual_seed(0)
    return MultiHeadLatentAttention(32, causal=causal, **options).double()


def run(mixer, pieces, x):
    state, out, start = mixer.empty(len(x), x.shape[1], like=x), [], 0
    for size in pieces:
        with torch.no_grad():
            o, state = mixer.extend(x[:, start : start + size], state)
        out.append(o)
        start += size
    return torch.cat(out, 1), state


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_head_by_head(causal, options):
    mixer, x = make(causal=causal, **options), torch.randn(2, 9, 32).double()
    h, own, shared = mixer.heads, mixer.head_dim, mixer.rope_dim
    turn = Rope(shared).rotate if mixer.position is not None else lambda t, at: t
    at = torch.arange(9)[:, None]
    latent = mixer.norm(mixer.down(x)[..., : mixer.kv_rank])
    r = turn(mixer.down(x)[..., mixer.kv_rank :].unsqueeze(2), at)[:, :, 0] if shared else x.new_zeros(2, 9, 0)
    out = []
    for head in range(h):
        up = mixer.up.weight.unflatten(0, (h, -1))[head]
        query = mixer.query(x).unflatten(-1, (h, -1))[:, :, head : head + 1]
        a, b = query[..., :own], query[..., own:]
        b = turn(b, at) if shared else b
        scores = a[:, :, 0] @ (latent @ up[:own].T).mT + b[:, :, 0] @ r.mT
        scores = scores / (own + shared) ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
        out.append(scores.softmax(-1) @ (latent @ up[own:].T))
    expected = mixer.out(torch.cat(out, -1))
    assert (mixer(x, Layout((9,))) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_absorbed_and_plain_are_equal(options, monkeypatch):
    mixer, x = make(**options), torch.randn(2, 40, 32).double()
    y = mixer(x, Layout((40,)))
    for absorbs in (True, False):
        monkeypatch.setattr(mixer, "_absorbs", lambda t, m, absorbs=absorbs: absorbs)
        for pieces in ([40], [1] * 40, [17, 1, 22]):
            assert (run(mixer, pieces, x)[0] - y).abs().max() < 1e-12


def test_a_few_tokens_are_absorbed_and_many_are_not():
    mixer = make(heads=4, kv_rank=16)
    assert mixer._absorbs(1, 40)
    assert mixer._absorbs(1, 4000)
    assert not mixer._absorbs(512, 512)
    with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter:
        run(mixer, [64] + [1] * 8, torch.randn(1, 72, 32).double())
    # a step never makes 64 tokens' keys and values again
    again = 64 * 16 * 4 * 2 * mixer.head_dim
    assert counter.get_total_flops() / 2 < mixer.cost(Layout((64,))).macs + 8 * again


def test_gradients_flow_through_absorbed_steps():
    mixer, x = make(heads=4), torch.randn(1, 8, 32).double()
    expected = torch.autograd.grad(mixer(x, Layout((8,))).square().sum(), list(mixer.parameters()))
    state, out = mixer.empty(1, 8, like=x), []
    for t in range(8):
        o, state = mixer.extend(x[:, t : t + 1], state)
        out.append(o)
    found = torch.autograd.grad(torch.cat(out, 1).square().sum(), list(mixer.parameters()))
    for a, b in zip(expected, found, strict=True):
        assert (a - b).abs().max() < 1e-10


def test_the_state_is_the_latent_and_the_shared_key():
    mixer = make(heads=8, kv_rank=16, rope_dim=4)
    assert state_bytes(mixer.empty(3, 50)) == 3 * 50 * (16 + 4) * 8
    assert mixer.cost(Layout((50,)), 3).state_bytes == 3 * 50 * 20 * 8


def test_refusals():
    with pytest.raises(Unsupported, match="mla does not support position=alibi"):
        make(position=Alibi)
    with pytest.raises(ValueError, match="rank, value_dim and q_rank must be at least 1"):
        make(kv_rank=0)
    with pytest.raises(Unsupported, match="extend"):
        make(causal=False).empty(1)
