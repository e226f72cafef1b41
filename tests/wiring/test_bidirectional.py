"""bidirectional(mixer): two copies read from both ends."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import formwright
from formwright import parts
from formwright.build import BuildProblem, default_stack, is_bare_mixer
from formwright.contract import Layout, Unsupported
from formwright.data.source import Batch
from formwright.model import load, save

D = 16
MIXERS = [
    "gla(heads=2)",
    "mamba",
    "rwkv7(heads=2)",
    "min_gru",
    "lmu",
    "mlstm(heads=2)",
    "retention",
    "attention(heads=2)",
]


def make(text, head="classify(classes=3)", embed="tokens(dim=16, vocab=17)", **facts):
    return formwright.build(f"{embed} >> {text} >> {head}", facts={"length": 64, **facts}, seed=3)


def wiring(mixer, merge="sum"):
    """The wiring alone, in float64."""
    model = make(f"plain(bidirectional({mixer}, merge='{merge}'))").double().eval()
    return next(m for m in model.modules() if m.__class__.__name__ == "Bidirectional")


def tokens(*shape, seed=1):
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("mixer", MIXERS)
def test_it_is_two_copies_and_a_flip(mixer):
    both, x, layout = wiring(mixer), tokens(2, 21), Layout((21,))
    ahead, back = both.ahead.part, both.back.part
    assert ahead.causal
    assert any(not torch.equal(a, b) for a, b in zip(ahead.parameters(), back.parameters(), strict=True))
    expected = ahead(x, layout) + back(x.flip(1), layout).flip(1)
    torch.testing.assert_close(both(x, layout)[0], expected)


def test_concat_is_joined_by_a_matrix():
    both, x, layout = wiring("gla(heads=2)", "concat"), tokens(2, 9), Layout((9,))
    sides = both.ahead.part(x, layout), both.back.part(x.flip(1), layout).flip(1)
    torch.testing.assert_close(both(x, layout)[0], torch.cat(sides, -1) @ both.join.weight.T)


def test_every_output_reads_every_token():
    both, x = wiring("gla(heads=2)"), tokens(1, 12)
    before = both(x, Layout((12,)))[0]
    for at in range(12):
        changed = x.clone()
        changed[:, at] += 1
        assert ((both(changed, Layout((12,)))[0] - before).abs().amax((0, 2)) > 1e-9).all()


@pytest.mark.parametrize("mixer", MIXERS)
def test_padded_is_packed_is_alone(mixer):
    both, x = wiring(mixer), tokens(3, 70)
    lengths, bounds = [70, 1, 33], [0, 70, 71, 104]
    alone = [both(x[row : row + 1, :n], Layout((n,)))[0] for row, n in enumerate(lengths)]
    filled = torch.where(torch.arange(70)[:, None] >= torch.tensor(lengths)[:, None, None], 20 * x.flip(0), x)
    padded = both(filled, Layout((70,), lengths=torch.tensor(lengths)))[0]
    joined = torch.cat([x[row : row + 1, :n] for row, n in enumerate(lengths)], 1)
    packed = both(joined, Layout((104,), offsets=torch.tensor(bounds)))[0]
    for row, n in enumerate(lengths):
        torch.testing.assert_close(padded[row : row + 1, :n], alone[row])
        torch.testing.assert_close(packed[:, bounds[row] : bounds[row + 1]], alone[row])
    assert padded.isfinite().all()


def test_a_grid_is_one_line_and_its_class_token_reads_all_of_it():
    both, x = wiring("gla(heads=2)"), tokens(2, 13)
    found, after = both(x, Layout((3, 4), prefix=1))
    assert after == Layout((3, 4), prefix=1)
    torch.testing.assert_close(found, both(x, Layout((13,)))[0])
    padded = both(x, Layout((12,), prefix=1, lengths=torch.tensor([6, 13])))[0]
    torch.testing.assert_close(padded[:1, :6], both(x[:1, :6], Layout((5,), prefix=1))[0])
    changed = x.clone()
    changed[:, -1] += 1
    assert not torch.allclose(both(changed, Layout((3, 4), prefix=1))[0][:, 0], found[:, 0])


def test_coordinates_are_turned_with_their_tokens():
    both, x = wiring("attention(heads=2, position=rope)"), tokens(2, 9)
    coords = torch.rand(2, 9, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 20
    ahead = both.ahead.part(x, Layout((9,), coords=coords))
    back = both.back.part(x.flip(1), Layout((9,), coords=coords.flip(1))).flip(1)
    torch.testing.assert_close(both(x, Layout((9,), coords=coords))[0], ahead + back)


@pytest.mark.parametrize("merge", ["sum", "concat"])
def test_its_cost_is_what_is_counted(merge):
    model = make(f"2*(bidirectional(gla(heads=2), merge='{merge}') + swiglu)")
    for count in (1, 13, 65):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(2, count, dtype=torch.long))
        cost = model.cost((count,), batch=2)
        assert cost.macs * 2 == counter.get_total_flops()
        assert cost.params == sum(p.numel() for p in model.parameters())
        assert cost.state_bytes == 0


def test_saved_and_loaded_it_computes_the_same(tmp_path):
    model = make("2*(bidirectional(gla(heads=2), merge='concat') + swiglu)").eval()
    save(model, tmp_path / "model.safetensors")
    again, x = load(tmp_path / "model.safetensors"), torch.arange(14).view(2, 7)
    assert again.expression == model.expression and "bidirectional(gla(heads=2), merge='concat')" in again.expression
    torch.testing.assert_close(again(x), model(x))


def test_images_are_learned_from():
    model = make(
        "2*(bidirectional(gla) + swiglu)",
        "classify",
        "patches(dim=16, size=2, cls=True)",
        classes=2,
        channels=1,
        image=(4, 4),
    )
    images = torch.randn(16, 4, 4, 1, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, (images[:, -1, -1, 0] > 0).long(), items=16, tokens=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    before = model.loss(batch).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    assert loss.item() < 0.5 * before


def test_it_stands_as_a_mixer_does():
    assert is_bare_mixer("bidirectional(gla)")
    assert str(default_stack("bidirectional(gla)", 2)) == "2*(bidirectional(gla) + swiglu)"
    assert str(parts.bidirectional(parts.gla)) == "bidirectional(gla)"
    model = make("(bidirectional(gla) | attention) + swiglu")
    assert model(torch.zeros(1, 5, dtype=torch.long)).shape == (1, 3)


def test_what_it_refuses():
    with pytest.raises(BuildProblem, match=r"write bidirectional\(gla\) to read tokens from both ends"):
        make("gla + swiglu")
    with pytest.raises(BuildProblem, match="write the mixer alone"):
        make("bidirectional(gla) + swiglu", "lm")
    for inside in ("swiglu", "gla + swiglu", "retention(causal=False)", "2*gla"):
        with pytest.raises(BuildProblem, match="one causal token mixer"):
            make(f"bidirectional({inside})")
    with pytest.raises(BuildProblem, match="sum, concat"):
        make("bidirectional(gla, merge='mean')")
    with pytest.raises(BuildProblem, match="self pattern alone"):
        make("bidirectional(fourier)")
    with pytest.raises(Unsupported, match="extend"):
        wiring("gla").empty(1)


def test_it_compiles_in_one_graph():
    both, x = wiring("min_gru").float(), tokens(2, 9).float()
    graph = torch.compile(lambda x: both(x, Layout((9,)))[0], fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(graph(x), both(x, Layout((9,)))[0])
