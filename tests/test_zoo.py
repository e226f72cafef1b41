from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from formwright import build, lang, parts, zoo
from formwright.build import BuildProblem
from formwright.contract import parameter_count
from formwright.lang import Chain, Part, Repeat, SyntaxProblem
from formwright.model import Model
from formwright.show import example
from formwright.unfilled import Unfilled

ROOT = Path(__file__).parent.parent
PUBLISHED = 0.01


@pytest.mark.parametrize("name", zoo.names())
def test_published_parameters(name):
    with torch.device("meta"):
        model = build(name)
    assert parameter_count(model) == pytest.approx(zoo.entry(name).parameters, rel=PUBLISHED)


def narrow(name: str) -> Model:
    """The entry with one copy of each repeated stack, narrow heads, a width that they divide, 11 tokens to know."""

    def once(tree):
        if isinstance(tree, Repeat):
            return once(tree.body)
        if isinstance(tree, Part):
            options = {k: once(v) if isinstance(v, lang.Expr) else v for k, v in tree.options.items()}
            options |= {"head_dim": 16} if "head_dim" in options else {}
            return Part(tree.name, options, tuple(once(a) if isinstance(a, lang.Expr) else a for a in tree.arguments))
        return type(tree)(tuple(once(item) for item in tree.items)) if hasattr(tree, "items") else tree

    tree = once(lang.parse(name))
    parts_inside = [node for node in lang.walk(tree) if isinstance(node, Part)]
    heads = [n.options["heads"] for n in parts_inside if "heads" in n.options and "head_dim" not in n.options]
    first = Part(tree.items[0].name, {**tree.items[0].options, "dim": 8 * max(heads, default=4)})
    return build(Chain((first, *tree.items[1:])), facts={**zoo.entry(name).facts, "vocab": 11}).eval()


@pytest.mark.parametrize("name", [n for n in zoo.names() if "vocab" in zoo.entry(n).facts])
def test_every_text_model_runs_and_decodes(name):
    model, tokens = narrow(name), torch.randint(11, (2, 9))
    reads_source = "encoder_decoder" in zoo.get(name)
    source = torch.randint(11, (2, 5)) if reads_source else None
    with torch.no_grad():
        whole = model((source, tokens) if reads_source else tokens)
        assert whole.isfinite().all()
        if model.causal:
            state = model.empty(2, 9, source) if reads_source else model.empty(2, 9)
            first, state = model.extend(tokens[:, :4], state)
            rest = [first]
            for t in range(4, 9):
                step, state = model.extend(tokens[:, t : t + 1], state)
                rest.append(step)
            torch.testing.assert_close(torch.cat(rest, 1), whole, rtol=1e-4, atol=1e-4)


def test_names_are_no_parts():
    assert not set(zoo.names()) & set(parts.names())


def test_a_name_stands_for_its_expression():
    assert lang.parse(" gpt2-small ") == lang.parse(zoo.get("gpt2-small"))
    with Unfilled():
        published, mine = build("gpt2-small"), build("gpt2-small", facts={"vocab": 11})
    assert published.embed.vocab == 50257 and mine.embed.vocab == 11
    assert lang.parse(published.expression) == lang.parse("gpt2-small")


class Bytes:
    facts = {"vocab": 256, "length": 32}
    embed, head = "tokens", "lm"


@pytest.mark.parametrize("name", ["bert-base", "all-minilm-l6-v2"])
def test_who_sees_both_sides_is_not_asked_for_the_next_token(name):
    with Unfilled(), pytest.raises(BuildProblem, match="these data ask for the next one; end with lm"):
        build(name, Bytes())


def test_a_source_is_not_made_up():
    with Unfilled(), pytest.raises(BuildProblem, match=r"reads pairs \(source, target\), and these data give single"):
        build("t5-small", Bytes())


def test_data_come_before_the_published_facts():
    with Unfilled():
        assert build("gpt2-small", Bytes()).head.weight.shape == (256, 768)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("gpt2-smal", "did you mean 'gpt2-small'"),
        ("samba-421", "did you mean 'samba-421m'"),
        ("masforme", "'masformer-1.3b'"),
        ("no-such-thing", "formwright list zoo"),
    ],
)
def test_nearest_names(text, hint):
    with pytest.raises((SyntaxProblem, zoo.UnknownEntry), match=hint):
        build(text)


def test_a_broken_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text('expression = "tokens >> mlp >> lm"\nwidth = 3\n')
    monkeypatch.setattr(zoo, "_folder", lambda: tmp_path)
    monkeypatch.setattr(zoo, "names", lambda: ("mine",))
    with pytest.raises(ValueError, match=r"zoo/mine\.toml: .*missing: width, parameters, source"):
        zoo.entry("mine")


def test_figures_of_a_large_model_need_no_memory():
    model, shape = example("mistral-7b", length=64)
    assert shape == (64,) and model.cost(shape).params == parameter_count(model)


def test_describe_says_what_it_is():
    text = zoo.describe("bert-base")
    assert "109,514,298" in text and "1810.04805" in text and "vocab=30522" in text


def test_mamba_hybrid_shares_of_layers():
    names = [node.name for node in walk_copies(lang.parse("mamba2-hybrid"))]
    layers = [n for n in names if n in ("mamba2", "attention", "relu2")]
    assert [layers.count(n) for n in ("mamba2", "attention", "relu2")] == [24, 4, 28]


def walk_copies(tree):
    """Parts in the order of their work, copies as often as they stand there."""
    if isinstance(tree, Repeat):
        for _ in range(tree.times):
            yield from walk_copies(tree.body)
    elif isinstance(tree, Part):
        yield tree
        for value in tree.arguments:
            if isinstance(value, lang.Expr):
                yield from walk_copies(value)
    else:
        for item in tree.items:
            yield from walk_copies(item)


def test_wide_attention_is_about_half_as_large_as_deep():
    wide = zoo.get("wide-attention")
    deep = wide.replace("attention(heads=48, head_dim=64) + mlp", "6*(attention(heads=8, head_dim=64) + mlp)")
    assert deep != wide
    with Unfilled():
        sizes = [parameter_count(build(text, facts=zoo.entry("wide-attention").facts)) for text in (wide, deep)]
    assert 0.4 < sizes[0] / sizes[1] < 0.6


def test_an_installed_package_holds_the_zoo(tmp_path):
    pytest.importorskip("setuptools")
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "egg_info",
        "--egg-base",
        tmp_path,
        "build_py",
        "--build-lib",
        tmp_path,
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    shipped = {path.stem for path in (tmp_path / "formwright" / "published").glob("*.toml")}
    assert shipped == {path.stem for path in (ROOT / "zoo").glob("*.toml")}
    assert (tmp_path / "formwright" / "mixers" / "attention.py").is_file()
