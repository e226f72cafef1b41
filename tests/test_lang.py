"""The architecture language: text and Python operators give equal trees, canonical text round-trips, errors point."""

import random

import pytest

from formwright import lang
from formwright.lang import Chain, Parallel, Part, Repeat, Sum, SyntaxProblem, parse

EXAMPLE = "tokens(dim=256) >> 3*(3*(gated_deltanet + swiglu) >> attention(heads=8, position=rope) + swiglu) >> lm"


def p(name, **options):
    return Part(name, options)


@pytest.mark.parametrize(
    "text, tree",
    [
        ("a", p("a")),
        ("a + b + c", Sum((p("a"), p("b"), p("c")))),
        ("a + (b + c)", p("a") + p("b") + p("c")),
        ("a >> b + c >> d", Chain((p("a"), Sum((p("b"), p("c"))), p("d")))),
        ("2*a + b", Sum((Repeat(2, p("a")), p("b")))),
        ("a*2", Repeat(2, p("a"))),
        ("2*3*a", Repeat(6, p("a"))),
        ("2*(3*a)", Repeat(2, Repeat(3, p("a")))),
        ("(a | b) + c", Sum((Parallel((p("a"), p("b"))), p("c")))),
        ("a | b >> c", Parallel((p("a"), Chain((p("b"), p("c")))))),
        (
            "f(2, x=-1.5, y=(1, 2), z='q', t=True, n=None)",
            Part("f", {"x": -1.5, "y": (1, 2), "z": "q", "t": True, "n": None}, (2,)),
        ),
        ("f(position=rope(base=500.0))", Part("f", {"position": p("rope", base=500.0)})),
        ("loop(a + b, times=3)", Part("loop", {"times": 3}, (p("a") + p("b"),))),
    ],
)
def test_text_means_what_the_operators_mean(text, tree):
    assert parse(text) == tree
    assert parse(str(tree)) == tree
    assert hash(parse(text)) == hash(tree)


def test_text_equals_python_operators():
    tokens, gated_deltanet, swiglu, attention, rope, lm = map(
        Part, ("tokens", "gated_deltanet", "swiglu", "attention", "rope", "lm")
    )
    tree = tokens(dim=256) >> 3 * (3 * (gated_deltanet + swiglu) >> attention(heads=8, position=rope) + swiglu) >> lm
    assert parse(EXAMPLE) == tree
    assert str(tree) == EXAMPLE


def test_python_precedence_is_the_language_s():
    a, b, c, d = map(Part, "abcd")
    names = {"a": a, "b": b, "c": c, "d": d}
    for text in ("a + 2*b >> c | d", "a*2 + b*3 >> c", "(a | b) >> c + d", "2*(a >> b) + c", "a >> (b >> c) >> d"):
        assert parse(text) == eval(text, {}, names)


def test_random_trees_round_trip():
    draw = random.Random(0)

    def tree(depth):
        if depth == 0:
            return Part(draw.choice("abc"), {"x": draw.randint(0, 9)} if draw.random() < 0.3 else {})
        left, right = tree(depth - 1), tree(draw.randint(0, depth - 1))
        kind = draw.randrange(5)
        if kind == 0:
            return left + right
        if kind == 1:
            return left >> right
        if kind == 2:
            return left | right
        if kind == 3:
            return draw.randint(1, 5) * left
        return Part("wrap", {"n": 2}, (left,))

    for _ in range(300):
        made = tree(draw.randint(0, 5))
        assert parse(str(made)) == made
        assert str(parse(str(made))) == str(made)


def test_line_breaks_and_spaces_do_not_matter():
    assert parse("tokens(dim=8)\n  >> 2*(\n a + b)\n >> lm") == parse("tokens(dim=8)>>2*(a+b)>>lm")


@pytest.mark.parametrize(
    "text, place, words",
    [
        ("a + 3", "3", "must stand a part"),
        ("a - b", "a - b", "'-' is no operator here"),
        ("1.5*a", "1.5", "whole number of copies"),
        ("0*a", "0", "at least 1"),
        ("True*a", "True", "whole number"),
        ("a(", "(", "never closed"),
        ("a[0]", "a[0]", "must stand a part"),
        ("f(**x)", "x", "name=value"),
        ("f(lambda: 3)", "lambda: 3", "a value is"),
        ("f(x=[1])", "[1]", "a value is"),
        ("a b", "a", "no expression"),
        ("é + 3", "3", "must stand a part"),
        ("a.b + c", "a.b", "must stand a part"),
        ("__import__('os').system('true')", None, "only a part's name"),
    ],
)
def test_a_mistake_is_answered_with_its_place(text, place, words):
    with pytest.raises(SyntaxProblem, match=words.replace("(", r"\(")) as caught:
        parse(text)
    if place is not None:
        start, end = caught.value.place
        assert text[start:end].startswith(place[:1]) and "^" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "   ", "\n", "()", "a +", "+", ">>", "a >> >> b", "\x00", "(" * 300 + "a" + ")" * 300]
)
def test_broken_text_is_a_sentence_never_a_crash(text):
    with pytest.raises(SyntaxProblem):
        parse(text)


def test_nothing_is_evaluated(tmp_path):
    with pytest.raises(SyntaxProblem):
        parse(f"open({str(tmp_path / 'x')!r}, 'w').close()")
    assert not (tmp_path / "x").exists()


def test_rewrite_reaches_parts_inside_options():
    tree = parse("2*(attention(position=rope(base=10.0)) + mlp)")
    grown = lang.rewrite(tree, lambda part: part(base=20.0) if part.name == "rope" else part)
    assert str(grown) == "2*(attention(position=rope(base=20.0)) + mlp)"
    assert [n.name for n in lang.walk(tree) if isinstance(n, Part)] == ["attention", "rope", "mlp"]


def test_operators_refuse_what_is_no_part():
    with pytest.raises(SyntaxProblem, match="joins parts"):
        Part("a") + 3
    with pytest.raises(SyntaxProblem, match="whole number"):
        1.5 * Part("a")
