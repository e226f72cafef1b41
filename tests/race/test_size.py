"""Names, widths and what is held equal."""

from __future__ import annotations

import pytest
import torch
from small import MINE, source

from formwright.build import build
from formwright.contract import parameter_count, state_bytes
from formwright.lang import SyntaxProblem, parse
from formwright.race.contenders import RaceProblem, build_unfilled, check_words, keep_files, read_contenders
from formwright.race.equal_time import equal_time
from formwright.race.narrowing import divisor, narrowed
from formwright.race.size import choose, equalise, not_too_far, parse_size


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return source(tmp_path_factory.mktemp("data"))


def test_sizes_as_people_write_them():
    assert [parse_size(s) for s in ("500k", "2M", "1.5e6", ".5M", 1000, "1B")] == [
        500_000, 2_000_000, 1_500_000, 500_000, 1000, 10**9,
    ]  # fmt: skip
    for wrong in ("", "big", "-1", "0", "2 M M"):
        with pytest.raises(RaceProblem, match="is no size"):
            parse_size(wrong)


def test_names_and_folders(tmp_path):
    long = "tokens >> 3*(attention(heads=4, position=rope) + swiglu) >> attention(heads=4, position=rope) + mlp >> lm"
    entries = read_contenders(["attention", "attention", " pooling  +  mlp", long, "pooling+mlp"], depth=2)
    names = [e.name for e in entries]
    assert names[:3] == ["attention", "attention (2)", "pooling + mlp"]
    assert names[3] == "3*(attention + swiglu) >> attention + …" or len(names[3]) <= 40
    assert len(set(names)) == 5 and len({e.folder for e in entries}) == 5
    assert str(entries[0].tree) == "2*(attention(position=rope) + swiglu)"
    with pytest.raises(RaceProblem, match="at least one contender"):
        read_contenders([])


def test_a_users_file_is_copied_and_names_that_clash_are_told(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    (tmp_path / "a/mine.py").write_text(MINE)
    (tmp_path / "b/mine.py").write_text(MINE + "\n# another\n")
    first, second = read_contenders([f"{tmp_path}/a/mine.py:Mine", f"2*({tmp_path}/b/mine.py:Mine + mlp)"])
    assert first.name == "4*(mine + swiglu)" or first.name == "mine"
    assert first.error is None and "another name" in second.error
    (kept,) = keep_files([first], tmp_path / "parts")
    assert kept.files == {"mine": f"{tmp_path}/parts/mine.py:Mine"}
    assert (tmp_path / "parts/mine.py").read_text() == MINE


def test_a_misspelt_word_is_pointed_at(text):
    (entry,) = read_contenders(["2*(atention + mlp)"])
    with pytest.raises(SyntaxProblem, match=r"attention[\s\S]*\^"):
        check_words(entry, text)
    (entry,) = read_contenders(["attention(hads=2)"])
    with pytest.raises(SyntaxProblem, match="heads"):
        check_words(entry, text)


@pytest.mark.parametrize("match", ["params", "macs"])
@pytest.mark.parametrize("size", ["60k", "500k"])
def test_all_come_within_three_percent(text, match, size):
    texts = [
        "attention",
        "2*(pooling + mlp)",
        "pooling",
        "attention(heads=6)",
        "2*(attention(kv_heads=1, heads=2) + relu2)",
    ]
    entries, notes = equalise(read_contenders(texts), text, size=parse_size(size), match=match)
    figures = [e.macs if match == "macs" else e.params for e in entries]
    assert max(figures) / min(figures) <= 1.03, (figures, notes)
    assert abs(entries[0].params / parse_size(size) - 1) <= 0.03
    assert not notes
    for entry in entries:
        model = build_unfilled(entry.expression, text, None)
        assert parameter_count(model) == entry.params and model.dim == entry.dim
        assert model.cost(text.shape).macs == pytest.approx(entry.macs * 32, rel=0.01)


def test_without_a_size_the_first_contender_has_width_128(text):
    first, second = equalise(read_contenders(["attention", "pooling"]), text)[0]
    assert first.dim == 128 and abs(second.params / first.params - 1) <= 0.03


def test_a_width_in_the_text_is_kept_and_told(text):
    entries, notes = equalise(
        read_contenders(["pooling", "tokens(dim=48) >> 2*(pooling + mlp) >> lm"]), text, size=400_000
    )
    assert entries[1].dim == 48
    assert len(notes) == 1 and "keeps the width dim=48" in notes[0] and "400,000" in notes[0]


def test_one_that_cannot_be_built_is_reported_and_the_rest_go_on(text):
    entries, _ = equalise(read_contenders(["fourier", "pooling"]), text, size=60_000)
    assert "causal" in entries[0].error and entries[1].error is None
    assert all(entry.error for entry in equalise(read_contenders(["fourier"]), text)[0])


def test_equal_decode_states(text):
    entries, notes = equalise(
        read_contenders(["linear_attention", "attention", "hyena", "identity", "pooling"], depth=1), text, match="state"
    )
    states = [entry.state_bytes for entry in entries[:3]]
    assert entries[0].dim == 128 and max(states) / min(states) <= 1.2, states
    assert "no decode state" in entries[3].error
    assert entries[4].dim < 1200 and any("pooling comes no nearer" in note for note in notes)
    for entry, state in zip(entries, states, strict=False):
        model = build(entry.expression, text)
        reached = model.extend(torch.zeros(1, 32, dtype=torch.long), model.empty(1, capacity=32))[1]
        assert state_bytes(reached) == state


def test_a_mixer_stands_where_the_stack_says(text):
    (entry,) = read_contenders(["attention"], stack="MIXER + bidirectional(MIXER) >> 2*(MIXER + mlp)")
    assert entry.name == "attention"
    rope = "attention(position=rope)"
    assert str(entry.tree) == f"{rope} + bidirectional({rope}) >> 2*({rope} + mlp)"


def test_one_without_weights_of_its_own_does_not_become_a_giant(text):
    asked = read_contenders(["attention", "gla", "pooling"], data=text, stack="2*MIXER")
    sized, notes = equalise(asked, text, size=800_000)
    usual = sized[0].dim
    assert sized[2].dim > 4 * usual
    near, said = not_too_far(sized, [*notes, "pooling comes no nearer"], asked, text, "params", usual)
    assert [e.dim for e in near] == [usual, sized[1].dim, usual] and near[2].params < 200_000
    (words,) = [s for s in said if s.startswith("pooling ")]
    assert f"would need the width {sized[2].dim} for equal params: it has the others', {usual}" in words


def test_a_size_out_of_reach_is_told(text):
    entries, notes = equalise(read_contenders(["pooling"]), text, size=100)
    assert entries[0].params > 103 and "comes no nearer to 100 parameters" in notes[0]


def test_the_search_leaves_out_refused_widths_and_tunes_a_coarse_grid():
    def figure(dim, stretch):
        return None if dim % 24 else dim**2 * (1 + 2 * stretch)

    dim, stretch, reached = choose(figure, 100_000, tunable=True)
    assert dim % 24 == 0 and stretch != 1 and abs(reached / 100_000 - 1) < 0.015
    assert choose(lambda dim, stretch: None, 1000, tunable=False)[0] == 0


def test_equal_time_follows_the_measurements(text):
    entries, _ = equalise(read_contenders(["attention", "pooling"]), text, size=200_000)
    slope = {"attention": 2e-6, "pooling": 5e-7}

    def seconds(entries):
        return [slope[e.name] * e.dim**1.7 for e in entries]

    done, notes = equal_time(entries, text, seconds)
    a, b = seconds(done)
    assert done[0] == entries[0] and done[1].dim > entries[1].dim
    assert abs(b / a - 1) < 0.06 and (abs(b / a - 1) < 0.03 or "no width tried" in notes[0])


@pytest.mark.parametrize("name", ["gpt2-small", "samba-421m", "kimi-linear", "falcon-h1-0.5b"])
def test_a_published_width_gives_way_to_a_size(text, name):
    entries, notes = equalise(read_contenders([name, "attention"], sized=True), text, size=3_000_000)
    assert [entry.name for entry in entries] == [name, "attention"]
    assert all(abs(entry.params / 3e6 - 1) <= 0.03 for entry in entries), notes


def test_without_a_size_a_published_width_stays(text):
    (own,), _ = equalise(read_contenders(["gpt2-small"]), text)
    assert own.dim == 768


def test_narrowed_has_fewer_heads_as_wide():
    tree = parse("tokens >> attention(heads=32, kv_heads=8) + mamba2(heads=128, head_dim=64, groups=8) >> lm")
    half, tiny = narrowed(tree, 4096, 2048), narrowed(tree, 4096, 96)
    assert half == parse("tokens >> attention(heads=16, kv_heads=4) + mamba2(heads=64, head_dim=64, groups=4) >> lm")
    assert tiny == parse("tokens >> attention(heads=1, kv_heads=1) + mamba2(heads=3, head_dim=64, groups=1) >> lm")
    assert [divisor(12, wanted) for wanted in (0.2, 2.1, 4.8, 5.5, 100)] == [1, 2, 4, 6, 12]
