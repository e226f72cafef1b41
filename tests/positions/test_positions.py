import math

import pytest
import torch

from formwright import parts
from formwright.check.subject import Subject
from formwright.check.symmetry import moved_scores
from formwright.contract import Layout, Unsupported
from formwright.positions.alibi import Alibi, slopes
from formwright.positions.learned import Learned
from formwright.positions.rope import Rope
from formwright.positions.sinusoidal import Sinusoidal

EXTRAPOLATING = {"alibi", "carope", "lepe", "t5_bias"}
SCORED = [name for name in parts.names("position") if parts.get(name).role != "value"]


@pytest.mark.parametrize("places", ["line", "plane", "space", "reals"])
@pytest.mark.parametrize("name", SCORED)
def test_scores_are_blind_to_translation_where_the_card_says_so_and_nowhere_else(name, places):
    subject = Subject(name, parts.get(name), dim=48)
    if "axes" in subject.parameters and places in ("plane", "space"):
        subject.arguments["axes"] = 2 if places == "plane" else 3
    module = subject.module()
    if module.contextual and places != "line":
        pytest.skip("it is told no places")
    if places == "reals":
        at = 9 * torch.rand(20, 1, dtype=torch.float64)
    else:
        at = Layout({"line": (20,), "plane": (4, 5), "space": (2, 5, 2)}[places]).positions()
    try:
        gaps = [moved_scores(subject, module, at, by) for by in (1, 37)]
    except Unsupported as error:
        assert places == "reals" and "whole" in str(error)
        return
    if name == "learned" and places in ("plane", "space"):
        assert max(gaps) == 0  # on a grid it goes by the order of tokens
    elif "shift" in parts.card(name).symmetries:
        assert max(gaps) < 1e-10
    else:
        assert max(gaps) > 1e-3


@pytest.mark.parametrize("name", parts.names("position"))
def test_each_position_says_whether_it_extrapolates(name):
    card = parts.card(name)
    assert card.extrapolates is (name in EXTRAPOLATING)
    text = parts.describe(parts.get(name))
    assert ("not made for longer inputs" in text) is (name not in EXTRAPOLATING)
    assert f"role      {parts.get(name).role}" in text


@pytest.mark.parametrize("name", sorted(EXTRAPOLATING))
def test_positions_that_extrapolate_take_any_length(name):
    subject = Subject(name, parts.get(name))
    out = subject.run(subject.module(), *subject.inputs("", 3000, batch=1))
    assert out.isfinite().all()
    assert subject.limit > 3000


def test_rope_is_a_rotation_of_complex_pairs():
    x, places = torch.randn(2, 7, 3, 8, dtype=torch.float64), torch.arange(7)[:, None]
    pairs = torch.complex(x[..., :4], x[..., 4:])
    angles = places * 10000.0 ** (-2 * torch.arange(4, dtype=torch.float64) / 8)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    assert (Rope(8).rotate(x, places) - torch.cat([turned.real, turned.imag], -1)).abs().max() < 1e-12


@pytest.mark.parametrize(("axes", "fraction"), [(1, 1.0), (2, 1.0), (3, 1.0), (1, 0.5), (2, 0.75)])
def test_rope_sees_differences_alone(axes, fraction):
    rope = Rope(24, fraction=fraction)
    q, k = torch.randn(2, 1, 5, 2, 24, dtype=torch.float64)
    places, moved = torch.rand(5, axes, dtype=torch.float64) * 9, torch.rand(axes, dtype=torch.float64) * 50
    scores = [torch.einsum("bnhk,bmhk->bhnm", rope.rotate(q, p), rope.rotate(k, p)) for p in (places, places + moved)]
    assert (scores[0] - scores[1]).abs().max() < 1e-10
    assert (scores[0] - torch.einsum("bnhk,bmhk->bhnm", q, k)).abs().max() > 0.1
    kept = 24 - int(24 * fraction)
    assert kept == 0 or torch.equal(rope.rotate(q, places)[..., -kept:], q[..., -kept:])


def test_rope_turns_each_axis_by_its_own_place_and_rows_by_their_own_coordinates():
    rope, x = Rope(8), torch.randn(2, 6, 1, 8)
    grid = Layout((2, 3)).positions()
    turned = rope.rotate(x, grid)
    assert torch.allclose(turned[..., :4], Rope(4).rotate(x[..., :4], grid[:, :1]))
    assert torch.allclose(turned[..., 4:], Rope(4).rotate(x[..., 4:], grid[:, 1:]))
    coords = torch.rand(2, 6, 1)
    assert torch.allclose(rope.rotate(x, coords)[1:], rope.rotate(x[1:], coords[1]))
    with pytest.raises(ValueError, match="can't be shared by 5 axes"):
        rope.rotate(x, torch.zeros(6, 5))
    with pytest.raises(ValueError, match="base must be above 0"):
        Rope(8, base=-1.0)


def test_alibi_has_the_papers_slopes():
    assert slopes(8) == [2.0**-h for h in range(1, 9)]
    assert slopes(12) == [2.0**-h for h in range(1, 9)] + [2 ** -(h + 0.5) for h in range(4)]
    bias = Alibi(heads=8).bias(torch.arange(5)[:, None], torch.arange(5)[:, None])
    assert bias.shape == (8, 5, 5)
    assert bias[2, 4, 1] == -3 / 8
    grid = Layout((3, 4)).positions()
    assert Alibi(heads=1).bias(grid, grid)[0, 0, -1] == pytest.approx(-math.hypot(2, 3) / 256)


def test_sinusoidal_is_the_papers_table():
    places = torch.arange(6)[:, None]
    table = Sinusoidal(8).embed(torch.zeros(1, 6, 8, dtype=torch.float64), places)[0]
    for p in range(6):
        for f in range(4):
            angle = p / 10000 ** (2 * f / 8)
            assert table[p, 2 * f].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert table[p, 2 * f + 1].item() == pytest.approx(math.cos(angle), abs=1e-12)
    grid = Layout((2, 3)).positions()
    both = Sinusoidal(9).embed(torch.zeros(1, 6, 9), grid)[0]
    assert torch.allclose(both[:, :4], Sinusoidal(4).embed(torch.zeros(1, 6, 4), grid[:, :1])[0])
    assert torch.allclose(both[:, 4:8], Sinusoidal(4).embed(torch.zeros(1, 6, 4), grid[:, 1:])[0])
    assert (both[:, 8] == 0).all()


def test_learned_gives_each_place_its_vector():
    learned, x = Learned(4, length=6), torch.zeros(1, 6, 4)
    assert torch.equal(learned.embed(x, torch.arange(6)[:, None])[0], learned.table)
    packed = Layout((6,), offsets=torch.tensor([0, 2, 6]))
    assert torch.equal(learned.embed(x, packed.positions())[0], learned.table[[0, 1, 0, 1, 2, 3]])
    assert torch.equal(learned.embed(x, Layout((2, 2), prefix=2).positions())[0], learned.table)
    assert torch.equal(learned.embed(x[:, :1], torch.tensor([[5]]))[0], learned.table[5:])
    with pytest.raises(ValueError, match=r"learned\(length=7\)"):
        learned.embed(x[:, :1], torch.tensor([[6]]))
    with pytest.raises(ValueError, match="but there are 6 places"):
        learned.embed(torch.zeros(1, 8, 4), Layout((2, 4)).positions())
    with pytest.raises(Unsupported, match="whole numbers"):
        learned.embed(x, torch.rand(6, 1))
