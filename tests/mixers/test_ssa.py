"""Subsampled attention: groups in training, the whole afterwards, under the generator's seed."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from formwright.contract import Layout
from formwright.mixers.ssa import SSA
from formwright.ops.attention import SDPA_FLOPS


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("spread", [None, 2.0])
def test_in_training_a_token_reads_its_group_alone(causal, spread):
    torch.manual_seed(0)
    n = 22
    mixer = SSA(12, heads=3, groups=4, spread=spread, causal=causal).double()
    x = torch.randn(2, n, 12, dtype=torch.float64)
    torch.manual_seed(5)
    parts = mixer.draw(n)
    same = torch.zeros(n, n, dtype=torch.bool)
    for group in (row for part in parts for row in part):
        same[group[:, None], group] = True
    assert (same.sum(0) >= n // 4).all() and same.diagonal().all()
    seen = same & torch.ones(n, n).tril().bool() if causal else same
    q, k, v = mixer.inputs(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / 2).masked_fill(~seen, -torch.inf).softmax(-1)
    expected = mixer.out((weights @ v).transpose(1, 2).flatten(2))
    torch.manual_seed(5)
    torch.testing.assert_close(mixer.train()(x, Layout((n,))), expected, rtol=1e-10, atol=1e-10)


def test_one_seed_one_sub_model_and_eval_is_whole():
    torch.manual_seed(0)
    mixer, whole = SSA(16, heads=2, causal=True), SSA(16, heads=2, groups=1, causal=True)
    whole.load_state_dict(mixer.state_dict())
    x, layout = torch.randn(1, 33, 16), Layout((33,))
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(mixer.train()(x, layout))
    assert torch.equal(outs[0], outs[1]) and not torch.allclose(outs[0], outs[2])
    assert torch.equal(mixer.eval()(x, layout), whole.train()(x, layout))


def test_the_mean_of_groups_reaches_all_pairs():
    """Uniform orders put any two tokens together alike: G groups of size s with probability (s - 1) / (N - 1)."""
    torch.manual_seed(0)
    mixer, n, draws = SSA(8, heads=1, groups=4), 16, 2000
    together = torch.zeros(n, n)
    for _ in range(draws):
        for group in mixer.draw(n)[0]:
            together[group[:, None], group] += 1
    off = together[~torch.eye(n, dtype=torch.bool)] / draws
    assert (off - 3 / 15).abs().max() < 0.05


def test_a_spread_keeps_groups_local():
    torch.manual_seed(0)
    reach = {}
    for spread in (0.0, 8.0, None):
        (part,) = SSA(8, heads=1, groups=8, spread=spread).draw(512)
        reach[spread] = float((part - part.double().mean(-1, keepdim=True)).abs().mean())
    assert reach[0.0] == 16 < reach[8.0] < 0.3 * reach[None]


def test_training_costs_a_share_of_the_attention():
    x, layout = torch.randn(1, 512, 64), Layout((512,))
    counted = {}
    for groups in (1, 4, 8):
        mixer = SSA(64, heads=1, groups=groups).train()
        with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter, torch.no_grad():
            mixer(x, layout)
        counted[groups] = counter.get_total_flops() // 2 - 4 * 512 * 64 * 64
    assert counted[1] == 4 * counted[4] == 8 * counted[8]


def test_padding_changes_nothing_in_training():
    """Right padding of a causal row, and packed sequences, each drawn by itself."""
    torch.manual_seed(0)
    mixer = SSA(8, heads=1, causal=True).double().train()
    x = torch.randn(2, 12, 8, dtype=torch.float64)
    lengths = torch.tensor([12, 7])
    torch.manual_seed(3)
    before = mixer(x, Layout((12,), lengths=lengths))
    x[1, 7:] += 5
    torch.manual_seed(3)
    after = mixer(x, Layout((12,), lengths=lengths))
    torch.testing.assert_close(after[1, :7], before[1, :7])
    packed = mixer(x[:1], Layout((12,), offsets=torch.tensor([0, 5, 12])))
    assert packed.shape == (1, 12, 8) and packed.isfinite().all()
