import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from formwright.contract import Layout, Unsupported
from formwright.mixers.attention import Attention
from formwright.mixers.block_sparse_attention import BlockSparseAttention
from formwright.ops.attention import SDPA_FLOPS
from formwright.ops.masks_grid import BlockSparse


def make(**options):
    torch.manual_seed(0)
    return BlockSparseAttention(16, heads=2, **{"block": 4, **options}).double().eval()


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_read_are_window_global_and_random(causal):
    """Counted block by block: every random block is there once, and none is global or in the window."""
    blocks, block, window, everywhere, random = 20, 3, 3, 2, 4
    mask = BlockSparse(block, window, everywhere, random, 1, 7, causal, 0 if causal else blocks)
    allowed = mask.materialize(blocks * block)
    if causal:
        assert not allowed.triu(1).any()
    for own in range(blocks):
        last = (own + 1) * block - 1  # sees all of the blocks that its block reads
        read = set((allowed[last].nonzero().flatten() // block).tolist())
        near = {own - 2, own - 1, own} if causal else {own - 1, own, own + 1}
        fixed = {n for n in near | set(range(everywhere)) if 0 <= n < blocks and (n <= own or not causal)}
        left = [n for n in range(own + 1 if causal else blocks) if n not in fixed]
        assert fixed <= read
        if not causal and own < everywhere:
            assert len(read) == blocks
        else:
            assert len(read) == len(fixed) + min(random, len(left))
        assert all(allowed[last].view(blocks, block).sum(1)[n] == block for n in read)


def test_heads_and_seeds_draw_their_own():
    drawn = {
        (head, seed): make(seed=seed, causal=True).mask(400, head).materialize(400)
        for head in (0, 1)
        for seed in (0, 1)
    }
    tables = list(drawn.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(tables) for b in tables[:i])
    assert torch.equal(make(causal=True).mask(200).materialize(200), tables[0][:200, :200])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"global_blocks": 0}, {"random_blocks": 0}, {"window_blocks": 1, "global_blocks": 3, "random_blocks": 5}],
)
def test_equals_its_mask(options, causal):
    mixer = make(causal=causal, **options)
    for n in (1, 3, 4, 5, 13, 40, 90):
        x = torch.randn(2, n, 16, dtype=torch.float64, requires_grad=True)
        found, wanted = mixer(x, Layout((n,))), mixer.reference(x, Layout((n,)))
        assert (found - wanted).abs().max() < 1e-12
        weights = torch.randn_like(found)
        a, b = (torch.autograd.grad((o * weights).sum(), x)[0] for o in (found, wanted))
        assert (a - b).abs().max() < 1e-11
        with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter, torch.no_grad():
            mixer(x, Layout((n,)))
        assert counter.get_total_flops() // 2 == mixer.cost(Layout((n,)), 2).macs


@pytest.mark.parametrize("causal", [False, True])
def test_few_blocks_are_plain_attention(causal):
    mixer, x = make(causal=causal, block=16), torch.randn(1, 60, 16, dtype=torch.float64)
    plain = Attention(16, heads=2, causal=causal).double()
    plain.load_state_dict(mixer.state_dict())
    assert (mixer(x, Layout((60,))) - plain(x, Layout((60,)))).abs().max() < 1e-12


def test_extend_is_forward():
    mixer, x = make(causal=True), torch.randn(2, 77, 16, dtype=torch.float64)
    wanted = mixer(x, Layout((77,)))
    for pieces in ([77], [30, 1, 46], [1] * 77, [3, 17, 1, 1, 28, 27]):
        state, found = mixer.empty(2), []
        for piece in x.split(pieces, 1):
            o, state = mixer.extend(piece, state)
            found.append(o)
        assert (torch.cat(found, 1) - wanted).abs().max() < 1e-12


def test_refusals():
    with pytest.raises(Unsupported, match="window_blocks=2"):
        make(window_blocks=2)
    with pytest.raises(Unsupported, match="block=0"):
        make(block=0)
