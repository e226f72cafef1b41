"""bigram_backcopy and inverse_permutation: their rules recomputed in plain Python, and what needs no model."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

import formwright
from formwright.data import DataError
from formwright.data.tasks import TASKS
from formwright.data.tasks.bigram_backcopy import bigrams, zen
from formwright.train import fit


def made(name, rows=400, seed=0, **options):
    return TASKS[name](**options).make(np.random.Generator(np.random.PCG64(seed)), rows)


def test_bigrams_are_those_of_the_text():
    counts, follow = bigrams("abracadabra")
    assert counts.tolist() == [5, 2, 2, 1, 1]  # a b r c d
    # after a: b twice, c, d, and the first a, for the text is a circle; a fifth is the letters at large
    expected = [1 / 5, 2 / 5, 0, 1 / 5, 1 / 5]
    np.testing.assert_allclose(follow[0], 0.8 * np.array(expected) + 0.2 * counts / 11)
    np.testing.assert_allclose(follow.sum(1), 1)
    assert zen().startswith("the zen of python, by tim peters")


@pytest.mark.parametrize("triggers", [1, 3])
def test_after_a_trigger_comes_the_token_before_it(triggers):
    inputs, targets = made("bigram_backcopy", length=40, triggers=triggers)
    assert (inputs[:, 0] == 0).all() and (inputs[:, 1:] == targets[:, :-1]).all()
    copies = 0
    for row, answer in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert row[1] > triggers
        for t in range(1, 40):
            if 1 <= row[t] <= triggers:
                assert answer[t] == row[t - 1]
                copies += 1
    assert copies > 1000


def test_all_else_follows_the_texts_bigrams():
    text = zen()
    names = [c for c, _ in sorted(Counter(text).items(), key=lambda item: (-item[1], item[0]))]
    inputs, targets = made("bigram_backcopy", rows=4000, length=30)
    here = 1 + names.index("h")
    followers = Counter(targets[inputs == here].tolist())
    after = Counter(b for a, b in zip(text, text[1:] + text[0], strict=True) if a == "h")
    total = sum(followers.values())
    assert total > 2000
    for number, name in enumerate(names, 1):
        expected = 0.8 * after[name] / text.count("h") + 0.2 * text.count(name) / len(text)
        error = math.sqrt(expected * (1 - expected) / total)
        assert abs(followers[number] / total - expected) < 5 * error + 1e-9


def test_the_rule_costs_less_than_the_last_token_alone():
    source = formwright.data.open("bigram_backcopy(length=32)")
    counts, follow = bigrams(zen())
    assert source.facts == {"vocab": 33, "length": 32} and source.metric == "loss" and source.lower_is_better
    rule, alone = source.baselines["its own rule"], source.baselines["the last token alone"]
    entropy = -(counts / counts.sum() * (follow * np.log(follow)).sum(1)).sum()
    assert rule < alone - 0.3 and rule < entropy < alone + 0.5
    with pytest.raises(DataError, match="30 can be triggers, not 31"):
        made("bigram_backcopy", triggers=31)


def undone(given, size):
    order, permuted = given[:size], given[size : 2 * size]
    string = [None] * size
    for i in range(size):
        string[order[i] - 1] = permuted[i]
    return string


@pytest.mark.parametrize("form", ["decoder", "scratch", "encoder_decoder"])
def test_the_string_comes_back(form):
    inputs, targets = made("inverse_permutation", rows=200, size=5, letters=7, form=form)
    given = inputs[0] if form == "encoder_decoder" else inputs
    for row, answer in zip(given.tolist(), targets.tolist(), strict=True):
        assert sorted(row[:5]) == [1, 2, 3, 4, 5] and all(6 <= y < 13 for y in row[5:10])
        assert answer[-5:] == undone(row, 5) and set(answer[:-5]) <= {-100}
    assert targets.shape[1] == {"decoder": 10, "scratch": 15, "encoder_decoder": 5}[form]
    rest = inputs[1] if form == "encoder_decoder" else inputs[:, 10:]
    assert not rest.any()


def test_what_a_causal_model_can_see():
    task = TASKS["inverse_permutation"](size=4, letters=5)
    inputs, targets = made("inverse_permutation", size=4, letters=5)
    chances = []
    for row in inputs.tolist():
        hidden = sum(
            row[i] <= i for i in range(4)
        )  # x_j stands at y_i, and is asked for at place j: hidden where i > j
        chances.append(5.0**-hidden)
    (found,) = task.baselines(inputs, targets, inputs, targets).values()
    assert found == pytest.approx(np.mean(chances)) and found < 0.2
    with pytest.raises(DataError, match="form is one of"):
        made("inverse_permutation", form="both")


@pytest.mark.parametrize(
    "text",
    ["bigram_backcopy(length=12)", "inverse_permutation(size=4, form='scratch')", "inverse_permutation(size=4)"],
)
def test_they_train(text):
    source = formwright.data.open(text)
    model = formwright.build("2*(attention + swiglu)", data=source, dim=16)
    run = fit(model, source, steps=3, batch_size=4, evaluation_items=8)
    assert math.isfinite(run.scores[source.metric])


def test_the_encoder_decoder_form_trains():
    source = formwright.data.open("inverse_permutation(size=4, form='encoder_decoder')")
    stack = "encoder_decoder(attention + swiglu, attention + cross(attention) + swiglu)"
    model = formwright.build(f"tokens(dim=16, position=learned(length=8)) >> {stack}", data=source)
    batch = source.batch("train", 0, 4)
    model.loss(batch).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
