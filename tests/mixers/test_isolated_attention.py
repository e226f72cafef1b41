"""Attention without attention among a group: what is read, what is spared."""

import pytest
import torch

from formwright import parts
from formwright.contract import Layout
from formwright.mixers.attention import Attention
from formwright.mixers.isolated_attention import IsolatedAttention


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("start", "stop"), [(0, 300), (20, 270), (150, 400), (0, 7), (299, 300), (310, 320)])
def test_equals_masked_attention(start, stop, causal):
    torch.manual_seed(0)
    n = 300
    mixer = IsolatedAttention(16, heads=4, kv_heads=2, start=start, stop=stop, causal=causal).double()
    x = torch.randn(1, n, 16, dtype=torch.float64)
    q = mixer.query(x).view(n, 4, 4).transpose(0, 1)
    k, v = (each(x).view(n, 2, 4).transpose(0, 1).repeat_interleave(2, 0) for each in (mixer.key, mixer.value))
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    hidden = (causal & (j > i)) | ((i >= start) & (i < stop) & (j >= start) & (j < stop) & (i != j))
    weights = (q @ k.mT / 2).masked_fill(hidden, -torch.inf).softmax(-1)
    expected = mixer.out((weights @ v).transpose(0, 1).flatten(1)[None])
    torch.testing.assert_close(mixer(x, Layout((n,))), expected, rtol=1e-10, atol=1e-10)


def test_tokens_of_the_group_change_nothing_in_one_another():
    torch.manual_seed(0)
    mixer = IsolatedAttention(16, heads=2, start=3, stop=8, causal=True, position=parts.get("rope"))
    x = torch.randn(1, 12, 16)
    moved = x.clone()
    moved[:, 4] += 1
    with torch.no_grad():
        changed = (mixer(moved, Layout((12,))) - mixer(x, Layout((12,)))).abs().amax(-1)[0] > 0
    assert changed.tolist() == [n == 4 or n >= 8 for n in range(12)]


def test_an_empty_group_is_attention():
    torch.manual_seed(0)
    mixer, plain = IsolatedAttention(16, heads=2, start=0, stop=0, causal=True), Attention(16, heads=2, causal=True)
    plain.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(mixer(x, Layout((9,))), plain(x, Layout((9,))))


def test_multiply_adds_of_an_image_before_text():
    """576 image tokens after 32 of text, before 160: most of the pairs are spared."""
    n, layout = 768, Layout((768,))
    isolated = IsolatedAttention(64, heads=1, start=32, stop=608)
    spared = 1 - (isolated.cost(layout).macs - 4 * n * 64**2) / (2 * n * n * 64)
    pairs = (576**2 - 576) / n**2
    assert 0.78 * pairs < spared <= pairs
