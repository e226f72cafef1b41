"""partial_attention by its definition, and what it keeps; repeated copying by its rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from formwright.contract import Layout
from formwright.data.tasks import TASKS
from formwright.mixers.partial_attention import PartialAttention

N, D = 13, 12


@pytest.mark.parametrize("source", [1, 5, 13, 40])
def test_tokens_read_the_source_and_nothing_after_it(source):
    torch.manual_seed(0)
    m = PartialAttention(D, causal=True, heads=2, source=source).double()
    x = torch.randn(2, N, D, dtype=torch.float64)
    q, (k, v) = m.query(x).unflatten(-1, (2, 6)), (t.unflatten(-1, (2, 6)) for t in m.inputs(x).chunk(2, -1))
    i, j = torch.arange(N)[:, None], torch.arange(N)
    scores = torch.einsum("bnhk,bmhk->bhnm", q, k) / 6**0.5
    weights = scores.masked_fill((j > i) | (j >= source), -torch.inf).softmax(-1)
    expected = m.out(torch.einsum("bhnm,bmhk->bnhk", weights, v).flatten(2))
    torch.testing.assert_close(m(x, Layout((N,))), expected, rtol=1e-9, atol=1e-9)
    _, state = m.extend(x, m.empty(2, capacity=N))
    assert state["keys"].shape == (2, 2, min(source, N), 6)


def test_a_source_has_tokens():
    with pytest.raises(ValueError, match="source=0"):
        PartialAttention(D, causal=True, source=0)


def test_the_source_comes_again_and_again():
    task = TASKS["repeated_copying"](size=3, repeats=4, letters=5)
    inputs, targets = task.make(np.random.Generator(np.random.PCG64(0)), 50)
    for row, answer in zip(inputs.tolist(), targets.tolist(), strict=True):
        source = row[:3]
        assert row == [*source, 0, *(4 * source)[:-1]] and answer == [-100, -100, -100, *(4 * source)]
        assert all(1 <= s <= 5 for s in source)
    assert task.facts == {"vocab": 6, "length": 15} == {"vocab": inputs.max() + 1, "length": inputs.shape[1]}
