"""URPE attention: its equation; attention with factors of one; a function that relative positions alone can't be."""

import pytest
import torch

from formwright import parts
from formwright.contract import Layout, Unsupported
from formwright.mixers.attention import Attention
from formwright.mixers.urpe_attention import URPEAttention


@pytest.mark.parametrize("causal", [True, False])
def test_equals_its_definition(causal):
    torch.manual_seed(0)
    n = 10
    mixer = URPEAttention(12, heads=3, length=12, causal=causal, position=parts.get("alibi")).double()
    torch.nn.init.normal_(mixer.factors)
    x = torch.randn(2, n, 12, dtype=torch.float64)
    q, k, v = mixer.inputs(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    slope = torch.tensor([2.0**-4, 2.0**-8, 2.0**-2], dtype=torch.float64)[:, None, None]
    scores = q @ k.mT / 2 - slope * (i - j).abs()
    scores = scores.masked_fill(j > i, -torch.inf) if causal else scores
    factors = mixer.factors[:, (i - j).clamp_min(0) if causal else i - j + 11]
    expected = mixer.out(((scores.softmax(-1) * factors) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x, Layout((n,))), expected, rtol=1e-10, atol=1e-10)


def test_begins_as_attention():
    torch.manual_seed(0)
    rope = parts.get("rope")
    mixer = URPEAttention(16, heads=2, length=16, causal=True, position=rope)
    plain = Attention(16, heads=2, causal=True, position=rope)
    with torch.no_grad():
        for target, rows in zip((plain.query, plain.key, plain.value), mixer.inputs.weight.chunk(3), strict=True):
            target.weight.copy_(rows)
        plain.out.weight.copy_(mixer.out.weight)
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(mixer(x, Layout((9,))), plain(x, Layout((9,))), rtol=1e-4, atol=1e-6)


def test_learns_what_relative_positions_can_not():
    """The paper's case: from equal tokens, tell the places apart. Attention gives one output for all of them."""
    torch.manual_seed(0)
    n = 12
    x, layout = torch.ones(1, n, 8), Layout((n,))
    target = torch.randn(1, n, 8)
    target = target - target.mean(1, keepdim=True)
    losses = {}
    for name, mixer in {
        "urpe": URPEAttention(8, heads=8, head_dim=4, length=n),
        "attention": Attention(8, heads=8, head_dim=4, position=parts.get("alibi"), bias=True),
    }.items():
        optimiser = torch.optim.Adam(mixer.parameters(), lr=0.05)
        for _ in range(120):
            loss = (mixer(x, layout) - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses[name] = float(loss.detach())
    best_constant = float(target.square().mean())
    assert losses["attention"] > 0.999 * best_constant
    assert losses["urpe"] < 0.05 * best_constant


def test_more_tokens_than_factors_are_refused():
    mixer = URPEAttention(8, heads=1, length=4, causal=True)
    with pytest.raises(ValueError, match="length=5"):
        mixer(torch.randn(1, 5, 8), Layout((5,)))
    _, state = mixer.extend(torch.randn(1, 4, 8), mixer.empty(1))
    with pytest.raises(ValueError, match="length=5"):
        mixer.extend(torch.randn(1, 1, 8), state)
    with pytest.raises(Unsupported, match="sinusoidal"):
        URPEAttention(8, heads=1, position=parts.get("sinusoidal"))
