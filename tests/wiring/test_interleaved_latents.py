"""interleaved_latents(local, across): groups, their latents, and what a model with it costs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import formwright
from formwright.build import BuildProblem
from formwright.contract import Layout, Unsupported, parameter_count
from formwright.model import load, save
from formwright.ops.attention import SDPA_FLOPS
from formwright.wiring.interleaved_latents import join_groups, split_groups

D = 16
BLOCK = "interleaved_latents(attention(heads=2) + mlp, attention(heads=2) + mlp, group=4, latents=2, heads=2)"


def make(text=BLOCK, embed="tokens(dim=16, vocab=17)", **facts):
    model = formwright.build(f"{embed} >> {text} >> classify(classes=3)", facts={"length": 64, **facts}, seed=3)
    return model.double().eval()


def wiring(model):
    return next(m for m in model.modules() if m.__class__.__name__ == "InterleavedLatents")


def tokens(*shape, seed=1):
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("grid", [(1,), (3,), (4,), (12,), (14,), (8, 4), (4, 4, 8)])
def test_groups_come_apart_and_together(grid):
    layout = Layout(grid)
    x = torch.arange(2 * layout.tokens, dtype=torch.float64).view(2, layout.tokens, 1)
    parts = split_groups(x, layout, 4)
    assert torch.equal(join_groups(parts, 2, layout, 4), x)
    if len(grid) == 2:
        first = x[0].view(grid)[:4, :4]
        assert torch.equal(parts[0][0][0].view(4, 4), first) and parts[0][1] == Layout((4, 4))


@pytest.mark.parametrize("n", [3, 8, 14])
def test_it_is_its_equations_group_by_group(n):
    m, x = wiring(make()), tokens(2, n)
    few = Layout((2,))
    with torch.no_grad():
        groups = [m.local(part, Layout((part.shape[1],)))[0] for part in x.split(4, 1)]
        z0 = m.latents.expand(2, -1, -1)
        read = [z0 + m.read(m.norm_latents(z0), few, m.norm_read(g), Layout((g.shape[1],))) for g in groups]
        z = m.norm_write(m.across(torch.cat(read, 1), Layout((2 * len(groups),)))[0]).split(2, 1)
        written = [
            g + m.write(m.norm_tokens(g), Layout((g.shape[1],)), own, few) for g, own in zip(groups, z, strict=True)
        ]
        torch.testing.assert_close(m(x, Layout((n,)))[0], torch.cat(written, 1))


def test_groups_meet_through_latents_alone():
    m, x = wiring(make()), tokens(1, 12)
    changed = x.clone()
    changed[:, 0] += 1

    def moved():
        with torch.no_grad():
            return ((m(changed, Layout((12,)))[0] - m(x, Layout((12,)))[0]).abs() > 1e-12).any(-1)[0]

    assert moved().all()
    torch.nn.init.zeros_(m.write.out.weight)
    assert moved().tolist() == [True] * 4 + [False] * 8


def test_padded_and_packed_are_each_sequence_alone():
    m, x = wiring(make()), tokens(2, 13)
    with torch.no_grad():
        padded = m(x, Layout((13,), lengths=torch.tensor([6, 13])))[0]
        torch.testing.assert_close(padded[:1, :6], m(x[:1, :6], Layout((6,)))[0])
        torch.testing.assert_close(padded[1:], m(x[1:], Layout((13,)))[0])
        packed = m(x[:1], Layout((13,), offsets=torch.tensor([0, 5, 13])))[0]
        torch.testing.assert_close(packed[:, 5:], m(x[:1, 5:], Layout((8,)))[0])


@pytest.mark.parametrize("text", [BLOCK, f"2*{BLOCK}"])
@pytest.mark.parametrize("n", [3, 8, 14])
def test_a_model_costs_what_is_counted(text, n):
    model = make(text).float()
    x = torch.randint(0, 17, (2, n), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter:
        model(x)
    cost = model.cost((n,), batch=2)
    assert cost.macs * 2 == counter.get_total_flops()
    assert cost.params == parameter_count(model)


def test_every_parameter_learns_and_it_is_saved(tmp_path):
    model = make()
    x = torch.randint(0, 17, (2, 14), generator=torch.Generator().manual_seed(0))
    model(x).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    save(model, tmp_path / "model.safetensors")
    torch.testing.assert_close(load(tmp_path / "model.safetensors").double()(x), model(x), rtol=1e-5, atol=1e-5)


def test_images_are_grouped_in_squares():
    embed = "patches(dim=16, size=2, image=(16, 8), channels=1, cls=False)"
    model = make(BLOCK, embed)
    seen = []
    wiring(model).local.register_forward_pre_hook(lambda _, given: seen.append(given[1].grid))
    assert model(torch.randn(2, 16, 8, 1, dtype=torch.float64)).shape == (2, 3)
    assert seen == [(4, 4)]


def test_with_groups_of_the_cube_root_it_grows_as_the_paper_says():
    def macs(n, group):
        block = "interleaved_latents(attention(heads=2), attention(heads=2), latents=1, heads=2, "
        return wiring(make(f"{block}group={group})", length=n)).cost(Layout((n,))).macs

    assert macs(8**5, 32) < 8 ** (4 / 3) * macs(8**4, 16)


def test_what_it_refuses():
    with pytest.raises(BuildProblem, match="causal"):
        formwright.build(f"tokens(dim=16, vocab=17) >> {BLOCK} >> lm", facts={"length": 16})
    for wrong in ("group=0", "latents=0"):
        with pytest.raises(BuildProblem, match="at least 1"):
            make(f"interleaved_latents(attention, attention, {wrong})")
    m = wiring(make())
    with pytest.raises(ValueError, match="multiples of group=4"):
        m(tokens(1, 30), Layout((5, 6)))
    with pytest.raises(Unsupported, match="prefix"):
        m(tokens(1, 17), Layout((4, 4), prefix=1))
