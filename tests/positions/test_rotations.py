"""Rotary positions besides plain rope: scaled frequencies, grid cells, learned angles, phases that tokens move on."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import formwright
from formwright.build import BuildProblem
from formwright.contract import Layout
from formwright.mixers.attention import Attention
from formwright.positions.carope import Carope
from formwright.positions.gridpe import GridPE, directions
from formwright.positions.lrpe import Lrpe
from formwright.positions.rope import Rope
from formwright.positions.rope_scaling import frequencies

ONE = torch.ones(1, dtype=torch.float64)


def theta(scaling, factor=4.0, trained=64, fast=8.0, slow=1.0, d=16, base=100.0):
    return frequencies(d, base, scaling, factor, trained, fast, slow, ONE)


def test_scaled_frequencies_keep_the_fast_and_slow_the_slow():
    plain, one = theta(None)
    assert one == 1
    assert torch.equal(theta("linear")[0], plain / 4)
    ntk, _ = theta("ntk")
    assert ntk[0] == plain[0] and ntk[-1].item() == pytest.approx(plain[-1].item() / 4)
    turns = 64 * plain / (2 * math.pi)
    for scaling in ("yarn", "llama3"):
        scaled, magnitude = theta(scaling)
        ratio = plain / scaled
        assert (ratio[turns > 8] == 1).all() and (turns > 8).any()
        assert torch.allclose(ratio[turns < 1], torch.full_like(ratio[turns < 1], 4)) and (turns < 1).any()
        assert (ratio.diff() >= 0).all() and ((ratio > 1) & (ratio < 4)).any()
        assert magnitude == pytest.approx(0.1 * math.log(4) + 1 if scaling == "yarn" else 1)
        assert torch.allclose(theta(scaling, factor=1.0)[0], plain)


def test_scaled_rope_turns_by_scaled_angles():
    x, places = torch.randn(1, 5, 2, 16, dtype=torch.float64), torch.arange(5)[:, None]
    assert torch.allclose(Rope(16, scaling="linear", factor=2.0).rotate(x, 2 * places), Rope(16).rotate(x, places))
    scaled = Rope(16, scaling="yarn", factor=4.0, trained=64)
    assert scaled.rotate(x, places).norm().item() == pytest.approx((0.1 * math.log(4) + 1) * x.norm().item())
    assert scaled.card.extrapolates and not Rope(16).card.extrapolates
    for options, sentence in (
        ({"scaling": "linear"}, "say together"),
        ({"factor": 2.0}, "say together"),
        ({"scaling": "linear", "factor": 0.5}, "at least 1"),
        ({"scaling": "dynamic", "factor": 2.0}, "linear, ntk, yarn, llama3"),
        ({"scaling": "linear", "factor": 2.0, "fast": 3.0}, "yarn and llama3"),
        ({"scaling": "yarn", "factor": 2.0, "slow": 40.0}, "slow must lie"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Rope(16, **options)


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_grid_cells_see_along_the_corners_of_a_simplex(axes):
    corners = torch.tensor(directions(axes), dtype=torch.float64)
    expected = torch.full((axes + 1, axes + 1), -1 / axes, dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(corners @ corners.T, expected)
    assert corners.sum(0).abs().max() < 1e-12


def test_gridpe_is_rope_on_one_axis():
    x, places = torch.randn(2, 7, 3, 8, dtype=torch.float64), torch.arange(7)[:, None]
    torch.testing.assert_close(GridPE(8, ratio=10000.0 ** (2 / 8)).rotate(x, places), Rope(8).rotate(x, places))


def test_gridpe_scores_are_sums_of_plane_waves():
    q, k, places = (
        torch.randn(2, 24, dtype=torch.float64)[0],
        torch.randn(24, dtype=torch.float64),
        torch.rand(2, 2) * 9,
    )
    places = places.double()
    rotated = [GridPE(24).rotate(x.view(1, 1, 1, 24), at[None])[0, 0, 0] for x, at in zip((q, k), places, strict=True)]
    apart, score = places[0] - places[1], 0.0
    for j, direction in enumerate(torch.tensor(directions(2), dtype=torch.float64)):
        for s in range(4):
            c, angle = 4 * j + s, math.exp(-s / 2) * direction @ apart
            a, b = torch.complex(q[c], q[c + 12]), torch.complex(k[c], k[c + 12])
            score = score + (a * b.conj() * torch.polar(ONE[0], angle)).real
    assert (rotated[0] @ rotated[1]).item() == pytest.approx(score.item(), abs=1e-12)
    with pytest.raises(ValueError, match="heads of 6 channels"):
        GridPE(4).rotate(torch.zeros(1, 1, 1, 4), torch.zeros(1, 2))


def test_lrpe_is_a_unitary_map_that_moves_on():
    lrpe, x = Lrpe(8).double(), torch.eye(8, dtype=torch.float64).view(1, 1, 8, 8)
    w = [lrpe.rotate(x, torch.tensor([[p]]))[0, 0].T for p in range(6)]
    for s in range(6):
        torch.testing.assert_close(w[s].T @ w[s], x[0, 0])
    torch.testing.assert_close(w[1].T @ w[4], w[2].T @ w[5])
    plain = Lrpe(8, reflection="identity")
    places, y = torch.arange(5)[:, None], torch.randn(1, 5, 2, 8)
    torch.testing.assert_close(plain.rotate(y, places), Rope(8).rotate(y, places))
    assert [n for n, _ in plain.named_parameters()] == ["theta"]
    with pytest.raises(ValueError, match="make head_dim even"):
        Lrpe(7)


def test_carope_begins_as_rope():
    made = Attention(16, heads=2, causal=True, position=Carope).double()
    plain = Attention(16, heads=2, causal=True, position=Rope).double()
    plain.load_state_dict({n: t for n, t in made.state_dict().items() if "position" not in n})
    x, layout = torch.randn(2, 9, 16, dtype=torch.float64), Layout((9,))
    made.position.speed.bias.data = made.position.speed.bias.data.double()
    torch.testing.assert_close(made(x, layout), plain(x, layout), rtol=1e-5, atol=1e-6)


def test_carope_is_the_papers_sum():
    carope = Carope(8, heads=2, width=6).double()
    torch.nn.init.normal_(carope.speed.weight)
    x, q = torch.randn(1, 5, 6, dtype=torch.float64), torch.randn(1, 5, 4, 8, dtype=torch.float64)
    turned = carope.rotate(q, carope.coordinates(x)[0])
    f = 1 / (F.softplus(x @ carope.speed.weight.T + carope.speed.bias) + 1)
    for n in range(5):
        for head in range(4):
            for i in range(4):
                phase = (f[0, : n + 1, head // 2] ** i).sum()
                pair = torch.complex(q[0, n, head, i], q[0, n, head, i + 4]) * torch.polar(ONE[0], phase)
                torch.testing.assert_close(torch.complex(turned[0, n, head, i], turned[0, n, head, i + 4]), pair)


def test_carope_is_refused_where_a_mixer_gives_places_alone():
    with pytest.raises(BuildProblem, match="lla does not support position=carope"):
        formwright.build("tokens(dim=16, vocab=11) >> lla(heads=2, position=carope) >> lm")


def test_carope_decodes_in_a_model():
    text = "tokens(dim=16, vocab=11) >> 2*(attention(heads=4, kv_heads=2, window=5, position=carope) + swiglu) >> lm"
    model = formwright.build(text).double().eval()
    assert model.expression.count("carope") == 1
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    inputs = torch.randint(11, (2, 20))
    whole, state, outs = model(inputs), model.empty(2, 20), []
    for size in (1, 7, 1, 1, 10):
        out, state = model.extend(inputs[:, sum(o.shape[1] for o in outs) :][:, :size], state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole)
