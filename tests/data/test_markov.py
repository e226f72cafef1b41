"""Markov sources: contexts counted one by one, entropies by brute force, bits by what the tokens spell."""

import itertools
import math

import numpy as np
import pytest
import torch

import formwright
from formwright import data
from formwright.data import DataError
from formwright.data.tasks import TASKS
from formwright.data.tasks.markov import dictionary, entropy_rate, random_law, stationary, switching
from formwright.data.tasks.merges import spelled
from formwright.train.evaluation import evaluate


def strings(options, rows, seed=0):
    """The rows' symbols, read back from inputs and last target."""
    chosen = {"law": "switching", "order": 2, "symbols": 2, "switch": 0.8, "concentration": 0.5, "table": 0}
    chosen |= {"merges": 0} | {k: v for k, v in options.items() if k != "length"}
    words = spelled(chosen["symbols"], dictionary(**chosen)[0])
    x, y = TASKS["markov"](**options).make(np.random.default_rng(seed), rows)
    assert (x[:, 1:] == y[:, :-1]).all()
    return [
        [s for t in [*row, last] for s in words[t]] for row, last in zip(x.tolist(), y[:, -1].tolist(), strict=True)
    ]


@pytest.mark.parametrize("merges", [0, 6])
@pytest.mark.parametrize(("order", "symbols", "switch"), [(1, 2, 0.9), (2, 2, 0.8), (3, 3, 0.5)])
def test_switching_sources_switch(order, symbols, switch, merges):
    options = {"order": order, "symbols": symbols, "switch": switch, "merges": merges, "length": 60}
    switched, alone, number = 0, np.zeros(symbols), 0
    for row in strings(options, 400):
        for before, after in zip(row, row[order:], strict=False):
            switched += before != after
            number += 1
        alone += np.bincount(row, minlength=symbols)
    assert abs(switched / number - switch) < 0.01
    assert abs(alone / alone.sum() - 1 / symbols).max() < 0.02


@pytest.mark.parametrize("merges", [0, 10])
def test_random_sources_follow_their_table(merges):
    options = {"law": "random", "order": 2, "symbols": 3, "table": 5, "length": 100, "merges": merges}
    rule = random_law(2, 3, 0.5, 5)
    times, first = np.zeros((9, 3)), np.zeros(9)
    for row in strings(options, 1500):
        first[3 * row[0] + row[1]] += 1
        for a, b, c in zip(row, row[1:], row[2:], strict=False):
            times[3 * a + b, c] += 1
    share = stationary(rule)
    # a part of the contexts is rare: compare with the error that its count allows
    spread = np.sqrt(rule * (1 - rule) / times.sum(1, keepdims=True))
    assert (np.abs(times / times.sum(1, keepdims=True) - rule) < 5 * spread + 0.003).all()
    assert np.abs(times.sum(1) / times.sum() - share).max() < 0.01
    assert np.abs(first / first.sum() - share).max() < 0.05  # rows begin as they go on


def test_entropy_rates_and_stationary_shares():
    for order, symbols, switch in ((1, 2, 0.8), (3, 2, 0.3), (2, 4, 0.6)):
        rule = switching(order, symbols, switch)
        expected = -(1 - switch) * math.log2(1 - switch) - switch * math.log2(switch / (symbols - 1))
        assert entropy_rate(rule, stationary(rule)) == pytest.approx(expected)
    rule = random_law(2, 3, 0.5, 1)
    share = stationary(rule)
    step = np.zeros((9, 9))
    for context in range(9):
        for symbol in range(3):
            step[context, context % 3 * 3 + symbol] = rule[context, symbol]
    assert np.abs(share @ step - share).max() < 1e-12
    # H(x1..xn+1) - H(x1..xn) is the rate once n reaches the order
    plain = sum(-share[c] * p * math.log2(p) for c in range(9) for p in rule[c])
    assert entropy_rate(rule, share) == pytest.approx(plain)


def test_tokens_alone_come_near_the_entropy_rate():
    """The theory's claim: a unigram of enough tokens is near the floor at which one of symbols can't be."""
    found = {}
    for merges in (0, 4, 30):
        baselines = data.open(f"markov(order=2, merges={merges})").baselines
        found[merges] = baselines.get("one distribution of tokens", baselines["one distribution of symbols"])
        assert baselines["the entropy rate"] == pytest.approx(0.7219, abs=1e-4)
    assert found[0] == pytest.approx(1) and found[0] > found[4] > found[30] and found[30] < 0.78


@pytest.mark.parametrize("merges", [0, 12])
def test_scores_are_bits_per_symbol(merges):
    torch.manual_seed(0)
    source = data.open(f"markov(merges={merges}, length=24, tests=40)")
    assert source.metric == "bits_per_symbol" and source.lower_is_better
    model = formwright.build("attention(heads=2) + swiglu", data=source, dim=16)
    model.loss(source.batch("train", 0, 8)).backward()
    with torch.no_grad():
        model.head.weight.zero_()  # every token equally likely
    bits, number = 0.0, 0
    words = spelled(2, dictionary("switching", 2, 2, 0.8, 0.5, 0, merges)[0])
    for batch in source.evaluation("test", 7):
        for row in batch.targets.tolist():
            bits += len(row) * math.log2(2 + merges)
            number += sum(len(words[t]) for t in row)
    assert evaluate(model, source, "test", 16)["bits_per_symbol"] == pytest.approx(bits / number, rel=1e-5)


def test_chains_drawn_for_each_row():
    x, y = TASKS["markov"](law="dirichlet", order=1, symbols=3, length=400, concentration=0.4).make(
        np.random.default_rng(0), 300
    )
    assert (x[:, 1:] == y[:, :-1]).all()
    found = []
    for row in np.append(x[:, :1], y, axis=1).tolist():
        times = np.zeros((3, 3))
        for a, b in itertools.pairwise(row):
            times[a, b] += 1
        found += [t / t.sum() for t in times if t.sum() > 60]
    # Dirichlet(0.4, 0.4, 0.4): mean 1/3, variance 2/9 / 2.2 (the contexts seen often are not quite any)
    assert np.abs(np.mean(found, axis=0) - 1 / 3).max() < 0.05
    assert np.var(found, axis=0) == pytest.approx(2 / 9 / 2.2, rel=0.2)
    starts = np.bincount(x[:, 0], minlength=3) / 300
    assert np.abs(starts - 1 / 3).max() < 0.12


def test_counts_so_far_are_bayes():
    task = TASKS["markov"](law="dirichlet", order=2, symbols=2, length=9, concentration=0.7)
    train, tested = (task.make(np.random.default_rng(seed), 200) for seed in (0, 1))
    bits = {"symbols counted so far": 0.0, "contexts counted so far": 0.0}
    for row in np.append(tested[0][:, :1], tested[1], axis=1).tolist():
        for t in range(1, 10):
            same = [u for u in range(2, t) if row[u - 2 : u] == row[t - 2 : t]]
            hits = sum(row[u] == row[t] for u in same)
            bits["contexts counted so far"] -= math.log2((hits + 0.7) / (len(same) + 1.4)) if t > 1 else -1.0
            bits["symbols counted so far"] -= math.log2((row[:t].count(row[t]) + 1) / (t + 2))
    scores = task.baselines(*train, *tested)
    for name, total in bits.items():
        assert scores[name] == pytest.approx(total / (200 * 9))
    source = data.open("markov(law=dirichlet, order=1, symbols=4, length=200)")
    best, symbols, one = (source.baselines[k] for k in reversed(source.baselines))
    assert best < symbols < one and one == pytest.approx(2, abs=0.02)
    model = formwright.build("attention(heads=2) + swiglu", data=source, dim=16)
    assert math.isfinite(model.scores(source.batch("test", 0, 4))["bits_per_symbol"][0])


def test_the_same_options_make_the_same_source():
    a, b = (data.open("markov(law=random, merges=5, length=16)").batch("train", 0, 8) for _ in range(2))
    assert torch.equal(a.inputs, b.inputs)
    other = data.open("markov(law=random, merges=5, length=16, table=1)").batch("train", 0, 8)
    assert not torch.equal(a.inputs, other.inputs)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("markov(order=0)", "order"),
        ("markov(order=20)", "contexts"),
        ("markov(law=linear)", "'switching', 'random' or 'dirichlet'"),
        ("markov(law=dirichlet, merges=2)", "no merges"),
        ("markov(law=dirichlet, order=11)", "contexts"),
        ("markov(switch=1.0)", "between 0 and 1"),
        ("markov(merges=-1)", "merges"),
    ],
)
def test_refusals(spec, says):
    with pytest.raises(DataError, match=says):
        data.open(spec)
