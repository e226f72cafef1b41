"""Pairs (source, target) from a task through data, building, training, racing and measuring."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import formwright
from formwright import data, parts
from formwright.bench.measure import example_inputs, forward_cost
from formwright.build import BuildProblem, default_stack
from formwright.contract import Layout
from formwright.data.tasks import TASKS, Task
from formwright.lang import parse
from formwright.ops.attention import SDPA_FLOPS
from formwright.pairs import replaced
from formwright.race.contenders import pair_notes, read_contenders
from formwright.race.size import equalise
from formwright.train import fit
from formwright.train.device import Ranks, move, shard

SOURCE, TARGET, VOCAB = 7, 5, 11


@pytest.fixture(autouse=True)
def task():
    """A task of pairs: say the source's first tokens, behind a mark."""

    def echo(*, head: str = "lm", padded: bool = False) -> Task:
        def make(rng: np.random.Generator, rows: int):
            source = rng.integers(2, VOCAB, (rows, SOURCE))
            answer = source[:, :TARGET].copy()
            if padded:
                source[np.arange(SOURCE) >= rng.integers(TARGET, SOURCE + 1, rows)[:, None]] = 0
            return (source, np.concatenate([np.ones((rows, 1), int), answer[:, :-1]], 1)), answer

        facts = {"vocab": VOCAB, "length": TARGET}
        return Task(make, facts, head=head, examples=2500, tests=50, padding=0 if padded else None)

    TASKS["echo"] = echo
    yield
    del TASKS["echo"]


def test_a_source_of_pairs_says_both_shapes_and_gives_both():
    source = data.open("echo")
    assert (source.source_shape, source.shape) == ((SOURCE,), (TARGET,))
    assert source.facts["source_length"] == SOURCE
    assert source.tokens_per_item == SOURCE + TARGET
    batch = source.batch("train", 3, 4)
    given, inputs = batch.inputs
    assert given.shape == (4, SOURCE) and inputs.shape == batch.targets.shape == (4, TARGET)
    assert (given[:, :TARGET] == batch.targets).all() and (inputs[:, 1:] == batch.targets[:, :-1]).all()
    assert batch.tokens == 4 * (SOURCE + TARGET)
    rows = [row for part in source.evaluation("validation", 16) for row in part.inputs[0].tolist()]
    assert len(rows) == 50
    assert source.baselines["the commonest answer"] == pytest.approx(1 / 9, abs=0.1)


def test_slow_blocks_of_pairs_come_back_from_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("formwright.data.synthetic.SLOW", -1.0)
    first = data.open("echo", cache=str(tmp_path)).batch("train", 0, 8)
    monkeypatch.setattr(np.random, "Generator", None)  # nothing is made again
    again = data.open("echo", cache=str(tmp_path)).batch("train", 0, 8)
    for one, other in zip((*first.inputs, first.targets), (*again.inputs, again.targets), strict=True):
        assert (one == other).all()


def test_padded_pairs_bring_a_layout_each_and_padding_changes_nothing():
    source = data.open("echo(padded=True)")
    batch = source.batch("train", 0, 6)
    lengths = batch.layout[0].lengths
    assert (lengths == (batch.inputs[0] != 0).sum(1)).all() and (batch.layout[1].lengths == TARGET).all()
    model = formwright.build(default_stack("attention", 2, source), source, dim=32)
    out = model(batch.inputs, batch.layout)
    row = int(lengths.argmin())
    assert lengths[row] < SOURCE
    alone = model((batch.inputs[0][row : row + 1, : lengths[row]], batch.inputs[1][row : row + 1]))
    torch.testing.assert_close(out[row : row + 1], alone)


def test_pairs_are_moved_and_shared_among_processes():
    batch = data.open("echo(padded=True)").batch("train", 0, 6)
    cpu = torch.device("cpu")
    parts_of = [shard(move(batch, cpu), Ranks(cpu, rank, 2)) for rank in range(2)]
    for side in range(2):
        assert (torch.cat([p.inputs[side] for p in parts_of]) == batch.inputs[side]).all()
        assert (torch.cat([p.layout[side].lengths for p in parts_of]) == batch.layout[side].lengths).all()
    assert shard(replace(batch, layout=None), Ranks(cpu, 1, 2)).inputs[0].shape == (3, SOURCE)


def test_a_bare_mixer_stands_in_every_place_it_can():
    source = data.open("echo")
    text = str(default_stack("linear_attention", 4, source))
    assert text == (
        "encoder_decoder(2*(linear_attention + swiglu), 2*(linear_attention + cross(linear_attention) + swiglu))"
    )
    attention = str(default_stack("attention", 4, source))
    rotary = "attention(position=rope)"
    assert attention == f"encoder_decoder(2*({rotary} + swiglu), 2*({rotary} + cross(attention) + swiglu))"
    gla = str(default_stack("gla", 4, source))
    assert gla == "encoder_decoder(2*(bidirectional(gla) + swiglu), 2*(gla + cross(attention) + swiglu))"
    fourier = str(default_stack("fourier", 4, source))
    assert fourier == f"encoder_decoder(2*(fourier + swiglu), 2*({rotary} + cross(attention) + swiglu))"
    alone = str(default_stack("cross(performer)", 4, source))
    assert alone == f"encoder_decoder(2*({rotary} + swiglu), 2*({rotary} + cross(performer) + swiglu))"
    assert replaced(parse("attention"), True) is None
    assert "cross" not in str(default_stack("gla", 2, data.open("parity")))
    assert pair_notes(["attention", "gla"], source) == [
        "gla can't stand in the reading of the source: attention stands there."
    ]
    with pytest.raises(BuildProblem, match="causal_cross"):  # attention does not stand for all of it
        formwright.build(default_stack("kmeans_cross_attention", 2, source), source, dim=32)


@pytest.mark.parametrize("head", ["lm", "masked_lm"])
@pytest.mark.parametrize(
    "mixer", [n for n in parts.names("mixer") if {"cross", "causal_cross"} & set(parts.card(n).patterns)]
)
def test_mixers_that_read_a_source_do_so_on_pairs(mixer, head):
    pattern = "causal_cross" if head == "lm" else "cross"
    if pattern not in parts.card(mixer).patterns:
        pytest.skip(f"{mixer} has no {pattern} pattern")
    source = data.open(f"echo(head={head})")
    model = formwright.build(default_stack(mixer, 2, source), source, dim=32)
    batch = source.batch("train", 0, 4)
    model.loss(batch).backward()
    given, inputs = batch.inputs
    other = torch.where(given == 2, 3, 2)
    with torch.no_grad():
        assert not torch.allclose(model.eval()((other, inputs)), model((given, inputs)))


@pytest.mark.parametrize("mixer", ["attention", "linear_attention", "gla", "dense"])
def test_costs_go_by_both_lengths(mixer):
    source = data.open("echo")
    model = formwright.build(default_stack(mixer, 2, source), source, dim=32).eval()
    given, inputs = example_inputs(model, TARGET, 2)
    assert given.shape == (2, SOURCE) and inputs.shape == (2, TARGET)
    with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter, torch.no_grad():
        model((given, inputs))
    assert 2 * model.cost(source.shape, batch=2).macs == counter.get_total_flops()
    row = forward_cost(model, TARGET, batch=2, repeats=1, seconds=0.1)
    assert row["length"] == TARGET and row["macs"] == model.cost(source.shape, batch=2).macs


def test_pairs_ask_for_an_encoder_decoder_and_single_inputs_refuse_one():
    pairs, single = data.open("echo"), data.open("parity")
    with pytest.raises(BuildProblem, match="pairs"):
        formwright.build("attention + swiglu", pairs, dim=32)
    with pytest.raises(BuildProblem, match="single inputs"):
        formwright.build("encoder_decoder(attention, attention + cross(attention))", single, dim=32)


def test_contenders_are_sized_and_trained_on_pairs():
    source = data.open("echo")
    entries, _ = equalise(read_contenders(["attention", "gla"], depth=2, data=source), source, size=30_000)
    assert not any(entry.error for entry in entries)
    assert max(e.params for e in entries) / min(e.params for e in entries) < 1.06
    model = formwright.build(entries[0].expression, source)
    result = fit(model, source, steps=150, batch_size=64, lr=1e-2, device="cpu")
    assert result.scores["accuracy"] > 0.5  # guessing scores 0.11
    assert result.tokens == 150 * 64 * (SOURCE + TARGET)


def test_layouts_of_a_pair_are_checked():
    model = formwright.build(default_stack("attention", 2, data.open("echo")), data.open("echo"), dim=32)
    inputs = torch.ones(2, SOURCE, dtype=torch.long), torch.ones(2, TARGET, dtype=torch.long)
    with pytest.raises(ValueError, match="lengths"):
        model(inputs, (Layout((SOURCE,), lengths=torch.tensor([1, SOURCE + 1])), None))
