"""Primer's attention: its equations, attention as a special case, and what it adds in parameters."""

import pytest
import torch
import torch.nn.functional as F

import formwright
from formwright.contract import Layout, Unsupported, parameter_count
from formwright.mixers.attention import Attention
from formwright.mixers.primer_attention import PrimerAttention


@pytest.mark.parametrize("causal", [True, False])
def test_equals_a_convolution_of_every_head(causal):
    """Heads one by one, each with torch's own grouped convolution."""
    torch.manual_seed(0)
    n, heads, width = 11, 3, 4
    mixer = PrimerAttention(12, heads=heads, causal=causal).double()
    torch.nn.init.normal_(mixer.filters)
    x = torch.randn(2, n, 12, dtype=torch.float64)
    projected = x @ mixer.inputs.weight.T
    out = []
    for h in range(heads):
        parts = []
        for part in range(3):
            rows = slice(part * 12 + h * width, part * 12 + (h + 1) * width)
            padding = (2, 0) if causal else (1, 1)
            u = F.pad(projected[..., rows].mT, padding)
            parts.append(F.conv1d(u, mixer.filters[rows, None], groups=width).mT)
        q, k, v = parts
        scores = q @ k.mT / width**0.5
        if causal:
            scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
        out.append(scores.softmax(-1) @ v)
    expected = torch.cat(out, -1) @ mixer.out.weight.T
    torch.testing.assert_close(mixer(x, Layout((n,))), expected, rtol=1e-10, atol=1e-10)


def test_with_filters_that_see_the_token_alone_it_is_attention():
    torch.manual_seed(0)
    rope = formwright.parts.get("rope")
    mixer, plain = (
        PrimerAttention(16, heads=2, causal=True, position=rope),
        Attention(16, heads=2, causal=True, position=rope),
    )
    with torch.no_grad():
        mixer.filters.zero_()[:, -1] = 1
        for target, rows in zip((plain.query, plain.key, plain.value), mixer.inputs.weight.chunk(3), strict=True):
            target.weight.copy_(rows)
        plain.out.weight.copy_(mixer.out.weight)
    x, layout = torch.randn(2, 9, 16), Layout((9,))
    torch.testing.assert_close(mixer(x, layout), plain(x, layout))
    assert parameter_count(mixer) - parameter_count(plain) == 3 * 3 * 16  # three taps for every channel of q, k and v


def test_filters_begin_as_published():
    filters = PrimerAttention(8, heads=1, causal=True).filters
    assert torch.equal(filters[:, -1], torch.full((24,), 0.5))
    assert torch.equal(filters[:, :-1], torch.full((24, 2), 0.5 / 3))


def test_refuses_a_position_that_adds_to_scores():
    with pytest.raises(Unsupported, match="alibi"):
        PrimerAttention(16, heads=2, position=formwright.parts.get("alibi"))
