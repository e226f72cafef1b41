"""Learned first states (initial_state=True) of every mixer that has the option: zero to begin with, the same for every
sequence, carried by extend, and reached by gradients. The laws run over the mixers without options."""

from __future__ import annotations

import pytest
import torch

from formwright import parts
from formwright.contract import Layout, Unsupported

D = 12
MIXERS = [name for name in parts.names("mixer") if "initial_state" in parts.options(parts.get(name))]
BOTH_WAYS = [name for name in MIXERS if "self" in parts.card(name).patterns]


def built(name, **options):
    """In float64, every parameter moved from where it begins; the first state by positive numbers, since a sum of
    scores is among it in linear attention."""
    torch.manual_seed(0)
    mixer = parts.get(name)(D, causal=True, **options).double()
    with torch.no_grad():
        for key, p in mixer.named_parameters():
            p += 0.2 * (torch.rand_like(p) if key == "initial" else torch.randn_like(p))
    return mixer


def tokens(*shape):
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_recurrent_mixers_have_it():
    listed = "based deltanet gated_deltanet gla hgrn2 kda lightning linear_attention lmu lru mamba mamba2 min_gru mlstm"
    assert {*listed.split(), "retention", "rg_lru", "rwkv7", "s4d"} <= set(MIXERS)


@pytest.mark.parametrize("name", [name for name in MIXERS if name != "rg_lru"])  # its first token begins at full size
def test_at_first_it_changes_nothing(name):
    torch.manual_seed(0)
    plain = parts.get(name)(D, causal=True).double()
    torch.manual_seed(0)
    tuned = parts.get(name)(D, causal=True, initial_state=True).double()
    missing, unexpected = tuned.load_state_dict(plain.state_dict(), strict=False)
    assert missing == ["initial"] and not unexpected and not tuned.initial.any()
    x = tokens(2, 9)
    torch.testing.assert_close(tuned(x, Layout((9,))), plain(x, Layout((9,))))


@pytest.mark.parametrize("name", MIXERS)
def test_it_reaches_every_sequence_and_extend(name):
    mixer, x = built(name, initial_state=True), tokens(1, 70)
    whole = mixer(x, Layout((70,)))
    packed = mixer(torch.cat([x[:, :5], x], 1), Layout((75,), offsets=torch.tensor([0, 5, 75])))
    torch.testing.assert_close(packed[:, :5], whole[:, :5])
    torch.testing.assert_close(packed[:, 5:], whole)
    padded = mixer(torch.cat([x, x.flip(1)]), Layout((70,), lengths=torch.tensor([70, 3])))
    torch.testing.assert_close(padded[:1], whole)
    for split in ([1, 1, 68], [64, 6]):
        state, outs = mixer.empty(1, capacity=70), []
        for piece in x.split(split, 1):
            y, state = mixer.extend(piece, state)
            outs.append(y)
        torch.testing.assert_close(torch.cat(outs, 1), whole)
    with torch.no_grad():
        mixer.initial.zero_()
    assert (mixer(x, Layout((70,))) - whole)[:, 0].abs().max() > 1e-6


@pytest.mark.parametrize("name", MIXERS)
def test_its_gradient_is_the_derivative(name):
    mixer, x = built(name, initial_state=True), tokens(2, 3)
    direction = torch.rand_like(mixer.initial)

    def along(step):
        moved = {"initial": mixer.initial.detach() + step * direction}
        return torch.func.functional_call(mixer, moved, (x, Layout((3,))))

    assert torch.autograd.gradcheck(along, torch.zeros((), dtype=torch.float64, requires_grad=True))
    mixer(x, Layout((3,))).square().sum().backward()
    assert mixer.initial.grad.abs().max() > 0


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_a_reading_in_both_directions_has_no_first_state(name):
    with pytest.raises(Unsupported, match=r"initial_state=True.*both directions"):
        parts.get(name)(D, initial_state=True)


def test_a_context_is_read_from_no_state():
    mixer = built("linear_attention", initial_state=True)
    with pytest.raises(Unsupported, match="context"):
        mixer(tokens(1, 4), Layout((4,)), tokens(1, 4))
