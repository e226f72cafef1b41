import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from formwright.contract import Layout, state_bytes
from formwright.mixers.fixed_attention import FixedAttention
from formwright.ops.attention import SDPA_FLOPS


def make(causal=True, length=64, **options):
    torch.manual_seed(0)
    return FixedAttention(32, causal=causal, heads=4, length=length, **options).double()


@pytest.mark.parametrize("causal", [False, True])
def test_weights_are_of_places_alone(causal):
    mixer, x = make(causal=causal), torch.randn(3, 9, 32).double()
    q, k = (f(mixer.embeddings[:9]).unflatten(-1, (4, 8)).transpose(0, 1) for f in (mixer.query, mixer.key))
    scores = q @ k.mT / 8**0.5
    if causal:
        scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    v = mixer.value(x).unflatten(-1, (4, 8)).transpose(1, 2)
    expected = mixer.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    y = mixer(x, Layout((9,)))
    assert (y - expected).abs().max() < 1e-12
    assert (mixer(2 * x, Layout((9,))) - 2 * y).abs().max() < 1e-12  # linear in the input
    assert "embeddings" in mixer.state_dict()
    assert "embeddings" not in dict(mixer.named_parameters())


@pytest.mark.parametrize("batch", [1, 3])
def test_scores_are_made_once_for_a_batch(batch):
    mixer, x = make(), torch.randn(batch, 40, 32).double()
    with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter, torch.no_grad():
        mixer(x, Layout((40,)))
    pairs = 40 * 40 * 32
    assert counter.get_total_flops() == 2 * (2 * (1 + batch) * 40 * 32 * 32 + (1 + batch) * pairs)
    assert counter.get_total_flops() == 2 * mixer.cost(Layout((40,)), batch).macs


@pytest.mark.parametrize("causal", [False, True])
def test_packed_and_padded_are_each_alone(causal):
    mixer, x = make(causal=causal), torch.randn(2, 23, 32).double()
    alone = mixer(x[:1, :9], Layout((9,))), mixer(x[1:], Layout((23,)))
    packed = mixer(torch.cat([x[:1, :9], x[1:]], 1), Layout((32,), offsets=torch.tensor([0, 9, 32])))
    assert (packed - torch.cat(alone, 1)).abs().max() < 1e-12
    padded = mixer(x, Layout((23,), lengths=torch.tensor([9, 23])))
    assert (padded[:1, :9] - alone[0]).abs().max() < 1e-12
    assert (padded[1:] - alone[1]).abs().max() < 1e-12


def test_extend_keeps_keys_once():
    mixer, x = make(), torch.randn(3, 23, 32).double()
    y, state, out = mixer(x, Layout((23,))), mixer.empty(3, 23, like=x), []
    for piece in x.split([9, 1, 1, 12], 1):
        o, state = mixer.extend(piece, state)
        out.append(o)
    assert (torch.cat(out, 1) - y).abs().max() < 1e-12
    assert state_bytes(state) == (3 + 1) * 23 * 32 * 8


def test_too_many_tokens_are_refused():
    mixer, x = make(length=8), torch.randn(1, 9, 32).double()
    with pytest.raises(ValueError, match="9 tokens, but it has embeddings of length=8 places; set length=9"):
        mixer(x, Layout((9,)))
    _, state = mixer.extend(x[:, :8], mixer.empty(1))
    with pytest.raises(ValueError, match="length=8"):
        mixer.extend(x[:, 8:], state)
    packed = Layout((9,), offsets=torch.tensor([0, 5, 9]))
    assert mixer(x, packed).isfinite().all()
