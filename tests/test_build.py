"""Building: what flows, what is filled from the data, and how mistakes are answered."""

import pytest
import torch

import formwright
from formwright.build import BuildProblem, complete, default_stack
from formwright.lang import SyntaxProblem, parse


def test_the_example_of_the_design_builds_and_trains():
    text = "tokens(dim=64) >> 3*(3*(gated_deltanet + swiglu) >> attention(heads=8, position=rope) + swiglu) >> lm"
    model = formwright.build(text)
    assert model.expression == text and str(parse(model.expression)) == text
    x = torch.randint(0, 256, (2, 33))
    assert model(x).shape == (2, 33, 256)
    model.head.loss(model(x), x).backward()


def test_embedding_and_head_are_filled_in():
    assert str(complete("attention + mlp", dim=32)) == "tokens(dim=32) >> attention + mlp >> lm"
    model = formwright.build("attention + mlp", dim=32, facts={"vocab": 50})
    assert model(torch.randint(0, 50, (1, 5))).shape == (1, 5, 50)


def test_same_seed_same_weights():
    one, two, other = (formwright.build("gla + swiglu", dim=32, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_building_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    formwright.build("mlp", dim=16)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_head_decides_causality_and_a_part_overrides():
    def mixers(text):
        return [m.causal for m in formwright.build(text).modules() if hasattr(m, "empty") and hasattr(m, "causal")]

    assert all(c for c in mixers("tokens(dim=32) >> 2*attention >> lm"))
    assert formwright.build("tokens(dim=32) >> attention >> classify(classes=2)").causal is False
    model = formwright.build("tokens(dim=32) >> attention(causal=False) >> lm")
    x = torch.randint(0, 256, (1, 6))
    assert not torch.equal(model(x)[:, 0], model(x.flip(1))[:, 0]) or x[0, 0] == x[0, -1]


@pytest.mark.parametrize(
    "text, words, at",
    [
        ("tokens(dim=32) >> atention + mlp >> lm", "did you mean 'attention'", "atention"),
        ("tokens(dim=32) >> attention(head=2) >> lm", "did you mean 'heads'", "attention(head=2)"),
        ("tokens(dim=32) >> attention(heads='two') >> lm", "a whole number", "attention(heads='two')"),
        ("tokens(dim=32) >> attention(heads=2.0) >> lm", "a whole number", "attention(heads=2.0)"),
        ("tokens(dim=32) >> attention(position=3) >> lm", "", "attention(position=3)"),
        ("tokens(dim=32) >> mlp(1, 2, 3, 4, 5, 6) >> lm", "at most", "mlp(1, 2, 3, 4, 5, 6)"),
        ("tokens(dim=32) >> loop(mlp, mlp, times=2) >> lm", "twice", "loop(mlp, mlp, times=2)"),
        ("tokens(dim=32) >> classify(classes=2) >> lm", "stands last", "classify(classes=2)"),
        ("tokens(dim=32) >> attention(heads=5) >> lm", "no multiple", "attention(heads=5)"),
        ("tokens(dim=32) >> rope >> lm", "position", "rope"),
        ("tokens(dim=32) >> lm", "a stack", None),
        ("tokens(dim=32) >> mlp >> classify", "classes", "classify"),
        ("tokens(dim=32) >> latent(attention, tokens=4) >> lm", "causal", "latent(attention, tokens=4)"),
        ("tokens(dim=32) >> loop(attention >> downsample(2), times=2) >> classify(classes=2)", "width", None),
        ("tokens(dim=32) >> postnorm >> lm", "around a stack", "postnorm"),
        ("tokens(dim=32) >> fourier >> lm", "fourier", "fourier"),
    ],
)
def test_a_mistake_is_answered_with_place_and_reason(text, words, at):
    with pytest.raises((SyntaxProblem, BuildProblem)) as caught:
        formwright.build(text)
    message = str(caught.value)
    assert words in message
    if at is not None:
        shown, carets = message.splitlines()[-2:]
        assert shown[carets.index("^") : carets.rindex("^") + 1].startswith(at[: carets.count("^")])


def test_all_refusals_come_in_one_list():
    with pytest.raises(BuildProblem) as caught:
        formwright.build("tokens(dim=32) >> fourier + mlp >> attention(heads=5) >> latent(mlp) >> lm")
    assert len(caught.value.reasons) == 3


def test_default_stack_gives_attention_its_positions():
    assert str(default_stack("attention", depth=2)) == "2*(attention(position=rope) + swiglu)"
    assert str(default_stack("gla(heads=2)", depth=2)) == "2*(gla(heads=2) + swiglu)"


def test_a_user_s_mixer_stands_in_an_expression(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "from formwright.contract import Card, Cost, TokenMixer\n"
        "class Mine(TokenMixer):\n"
        "    card = Card(name='mine_in_test_build', patterns=('self', 'causal'))\n"
        "    def __init__(self, dim, *, causal=False, gain=1.0):\n"
        "        super().__init__(dim, causal=causal)\n"
        "        self.scale = torch.nn.Parameter(torch.full((dim,), gain))\n"
        "    def forward(self, x, layout, context=None, context_layout=None):\n"
        "        return x * self.scale\n"
        "    def cost(self, layout, batch=1):\n"
        "        return Cost(params=self.dim)\n"
    )
    model = formwright.build(f"tokens(dim=16) >> 2*({file}:Mine(gain=0.5) + mlp) >> lm")
    assert "mine_in_test_build(gain=0.5)" in model.expression
    assert model(torch.randint(0, 256, (1, 5))).shape == (1, 5, 256)


def test_the_grids_rank_is_no_width_of_a_mixer():
    """A fact fills any option of its name: none of a mixer's own may be called like one."""
    model = formwright.build("tokens(dim=64) >> mla + sse >> lm", facts={"vocab": 16})
    widths = {
        name: getattr(module, name)
        for module in model.modules()
        for name in ("kv_rank", "low_rank")
        if hasattr(module, name)
    }
    assert widths == {"kv_rank": 64, "low_rank": 64}
