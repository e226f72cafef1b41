import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from formwright.contract import Layout, Position, Unsupported, state_bytes
from formwright.mixers.attention import Attention
from formwright.ops.attention import SDPA_FLOPS
from formwright.positions.alibi import Alibi
from formwright.positions.learned import Learned
from formwright.positions.rope import Rope

OPTIONS = [
    {},
    {"window": 5},
    {"position": Rope, "heads": 4, "kv_heads": 1, "qk_norm": True},
    {"position": Rope, "window": 40},
    {"position": Alibi, "heads": 3, "head_dim": 8},
    {"position": Alibi, "window": 7},
    {"heads": 4, "q_heads": 2, "kv_heads": 1, "bias": True},
]


class Buckets(Position):
    """A learned bias of clipped distance."""

    card = Alibi.card
    role = "bias"

    def __init__(self, heads):
        super().__init__()
        self.table = nn.Parameter(torch.randn(heads, 9))

    def bias(self, queries, keys):
        distance = (queries[..., :, None, 0] - keys[..., None, :, 0]).clamp(-4, 4)
        return self.table[:, distance.long() + 4]


class RelativeBuckets(Buckets):
    relative = True


LEARNED = [{"position": Buckets}, {"position": RelativeBuckets, "window": 6}]


def make(causal=True, dim=32, **options):
    torch.manual_seed(0)
    return Attention(dim, causal=causal, **options).double()


def run(mixer, pieces, x, capacity=None):
    state, start, out = mixer.empty(x.shape[0], capacity, like=x), 0, []
    for size in pieces:
        o, state = mixer.extend(x[:, start : start + size], state)
        out.append(o)
        start += size
    return torch.cat(out, 1), state


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_parity_with_multihead_attention(causal, bias):
    ours = make(causal=causal, heads=4, bias=bias)
    theirs = nn.MultiheadAttention(32, 4, bias=bias, batch_first=True).double()
    parts = ours.query, ours.key, ours.value
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        if bias:
            theirs.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
            theirs.out_proj.bias.copy_(ours.out.bias)
    x, context = torch.randn(2, 50, 32).double(), torch.randn(2, 20, 32).double()
    hidden = torch.ones(50, 50, dtype=torch.bool).triu(1) if causal else None
    assert (ours(x, Layout((50,))) - theirs(x, x, x, attn_mask=hidden)[0]).abs().max() < 1e-12
    assert (ours(x, Layout((50,)), context) - theirs(x, context, context)[0]).abs().max() < 1e-12
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_fewer_query_heads_are_sqa():
    mixer = make(dim=64, heads=8, q_heads=2, kv_heads=1)
    assert mixer.query.weight.shape == (16, 64)
    assert mixer.key.weight.shape == (8, 64)
    assert mixer.out.weight.shape == (64, 16)
    full = make(dim=64, heads=8)
    layout = Layout((256,))
    linear = 256 * 64 * 2 * 8 * 3
    assert (full.cost(layout).macs - 4 * 256 * 64 * 64) == 4 * (mixer.cost(layout).macs - linear)


@pytest.mark.parametrize("options", OPTIONS + LEARNED, ids=str)
def test_forward_is_extend_and_cost_is_counted(options):
    mixer = make(**options)
    for n in (1, 37, 150):
        x, layout = torch.randn(2, n, 32).double(), Layout((n,))
        with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter, torch.no_grad():
            y = mixer(x, layout)
        cost = mixer.cost(layout, 2)
        if options.get("position") is not Buckets:  # a dense bias runs as the same products
            assert counter.get_total_flops() == 2 * cost.macs
        splits = [[n], [1] * n, [n // 2, n - n // 2], [n - 1, 1], [1, n - 1], [n // 3, 1, 1, 1, n - n // 3 - 3]]
        for pieces in splits:
            pieces = [size for size in pieces if size > 0] if sum(pieces) == n and min(pieces) >= 0 else [n]
            for capacity in (n, None, n + 9):
                with torch.no_grad():
                    out, state = run(mixer, pieces, x, capacity)
                assert (out - y).abs().max() < 1e-12, (pieces, capacity)
                assert capacity != n or state_bytes(state) == cost.state_bytes


def test_decode_writes_in_place():
    for window in (None, 4):
        mixer = make(window=window)
        state = mixer.empty(1, 10)
        with torch.no_grad():
            for _ in range(10):
                _, after = mixer.extend(torch.randn(1, 1, 32).double(), state)
                assert after["keys"].data_ptr() == state["keys"].data_ptr()
                state = after
        assert state["keys"].shape[2] == (window or 10)


def test_gradients_flow_through_extend():
    mixer, x = make(window=3, position=Rope), torch.randn(1, 8, 32).double()
    expected = torch.autograd.grad(mixer(x, Layout((8,))).square().sum(), list(mixer.parameters()))
    found = torch.autograd.grad(run(mixer, [3, 1, 1, 3], x, 8)[0].square().sum(), list(mixer.parameters()))
    for a, b in zip(expected, found, strict=True):
        assert (a - b).abs().max() < 1e-10


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", OPTIONS + LEARNED, ids=str)
def test_padded_and_packed_are_each_alone(causal, options):
    mixer = make(causal=causal, **options)
    x = torch.randn(2, 23, 32).double()
    padded = mixer(x, Layout((23,), lengths=torch.tensor([9, 23])))
    assert padded.isfinite().all()
    assert (padded[:1, :9] - mixer(x[:1, :9], Layout((9,)))).abs().max() < 1e-12
    assert (padded[1:] - mixer(x[1:], Layout((23,)))).abs().max() < 1e-12
    packed = mixer(torch.cat([x[:1, :9], x[1:]], 1), Layout((32,), offsets=torch.tensor([0, 9, 32])))
    assert (packed[:, :9] - padded[:1, :9]).abs().max() < 1e-12
    assert (packed[:, 9:] - padded[1:]).abs().max() < 1e-12


def test_cross_reads_all_valid_context():
    for causal in (False, True):
        mixer = make(causal=causal, heads=4, kv_heads=2)
        x, context = torch.randn(2, 5, 32).double(), torch.randn(2, 9, 32).double()
        whole = mixer(x, Layout((5,)), context)
        assert (mixer(x[:, 2:4], Layout((2,)), context) - whole[:, 2:4]).abs().max() < 1e-12
        lengths = mixer(x, Layout((5,)), context, Layout((9,), lengths=torch.tensor([4, 9])))
        assert (lengths[:1] - mixer(x[:1], Layout((5,)), context[:1, :4])).abs().max() < 1e-12
        assert (lengths[1:] - whole[1:]).abs().max() < 1e-12
        packed = [Layout((10,), offsets=torch.tensor([0, 5, 10])), Layout((18,), offsets=torch.tensor([0, 9, 18]))]
        found = mixer(x.reshape(1, 10, 32), packed[0], context.reshape(1, 18, 32), packed[1])
        assert (found.view(2, 5, 32) - whole).abs().max() < 1e-12


def test_grids_and_coordinates():
    for position in (Rope, Alibi):
        mixer = make(causal=False, position=position)
        x = torch.randn(2, 13, 32).double()
        layout = Layout((3, 4), prefix=1)
        y = mixer(x, layout)
        mixer.backend = "reference"
        assert (mixer(x, layout) - y).abs().max() < 1e-12
        coords = Layout((13,), coords=layout.positions()[None].double().expand(2, -1, -1))
        assert (mixer(x, coords) - y).abs().max() < 1e-12
        turned = Layout((4, 3), prefix=1)
        assert (mixer(x, turned) - y).abs().max() > 1e-3


def test_refusals_name_part_and_option():
    cases = [
        ({"position": Learned}, "attention does not support position=learned: it is added to embedded tokens"),
        ({"heads": 4, "kv_heads": 3}, "attention does not support kv_heads=3"),
        ({"heads": 4, "q_heads": 5}, "attention does not support q_heads=5"),
        ({"window": 0}, "attention does not support window=0"),
    ]
    for options, message in cases:
        with pytest.raises(Unsupported, match=message):
            make(**options)
    x, context = torch.randn(1, 12, 32).double(), torch.randn(1, 5, 32).double()
    with pytest.raises(Unsupported, match="window: it counts places along one axis"):
        make(window=3)(x, Layout((3, 4)))
    with pytest.raises(Unsupported, match="a context"):
        make(window=3)(x, Layout((12,)), context)
    with pytest.raises(Unsupported, match="a context"):
        make(position=Rope)(x, Layout((12,)), context)
    with pytest.raises(Unsupported, match="extend"):
        make(causal=False).empty(1)
    with pytest.raises(ValueError, match="no multiple of heads=5"):
        make(heads=5)


def test_places_narrow_the_card():
    assert make().card.patterns == ("self", "causal", "cross", "causal_cross")
    assert make(window=3).card.patterns == make(position=Rope).card.patterns == ("self", "causal")
    assert Attention.card.symmetries == ("permutation",)
    assert make(window=3).card.symmetries == ()


def test_a_bias_of_the_output_map_alone():
    mixer = Attention(8, heads=2, bias="out")
    assert [name for name, _ in mixer.named_parameters() if name.endswith("bias")] == ["out.bias"]
    with pytest.raises(Unsupported, match="bias='in'"):
        Attention(8, bias="in")
