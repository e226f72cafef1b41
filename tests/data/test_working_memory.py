"""Lists recalled: the list read back from the row by its definition, answers found again from it."""

import numpy as np
import pytest
import torch

import formwright
from formwright import data
from formwright.bench.curves import accuracy_by_position, primacy_and_recency
from formwright.data import DataError
from formwright.data.tasks import TASKS
from formwright.data.tasks.working_memory import serial_places

ITEMS, MARK = 15, 24


def read(row, wanted, distractors, delay):
    """The list, the filler, and (question, answer) pairs of a row."""
    mark = row.index(MARK)
    step = distractors + 1
    count, rest = divmod(mark - delay, step)
    assert rest == 0
    shown = [row[i * step] for i in range(count)]
    filler = [t for i, t in enumerate(row[:mark]) if i % step or i >= count * step]
    asked = [i for i, t in enumerate(wanted) if t != -100]
    assert asked == list(range(mark + 1, mark + 1 + len(asked))) and not any(row[mark + 1 + len(asked) :])
    return shown, filler, [(row[i], wanted[i]) for i in asked]


@pytest.mark.parametrize("recall", ["serial", "probed", "free"])
@pytest.mark.parametrize(("distractors", "delay", "alike"), [(0, 0, False), (2, 0, False), (1, 3, True)])
def test_lists_and_answers(recall, distractors, delay, alike):
    task = TASKS["working_memory"](
        recall=recall,
        distractors=distractors,
        delay=delay,
        alike=alike,
        items=ITEMS,
        lengths_seen=(2, 6),
        lengths_tested=(5, 9),
    )
    for make, bounds in ((task.make, (2, 6)), (task.make_test, (5, 9))):
        x, y = make(np.random.default_rng(0), 500)
        assert x.max() < task.facts["vocab"] and y.max() < task.facts["vocab"] and x.shape[1] <= task.facts["length"]
        sizes, orders = [], set()
        for row, wanted in zip(x.tolist(), y.tolist(), strict=True):
            shown, filler, questions = read(row, wanted, distractors, delay)
            assert len(set(shown)) == len(shown) and all(1 <= t <= ITEMS for t in shown)
            assert len(filler) == distractors * len(shown) + delay
            if alike:
                assert not set(filler) & set(shown) and all(1 <= t <= ITEMS for t in filler)
            else:
                assert all(ITEMS < t <= ITEMS + 8 for t in filler)
            if recall == "serial":
                assert questions == [(0, item) for item in shown]
            elif recall == "probed":
                assert sorted(q for q, _ in questions) == list(range(MARK + 1, MARK + 1 + len(shown)))
                assert all(answer == shown[q - MARK - 1] for q, answer in questions)
            else:
                assert sorted(q for q, _ in questions) == list(range(1, ITEMS + 1))
                assert all(answer == (1 if q in shown else 2) for q, answer in questions)
            sizes.append(len(shown))
            orders.add(tuple(q for q, _ in questions))
        assert (min(sizes), max(sizes)) == bounds
        assert len(orders) > 300 or recall == "serial" or bounds[0] == 2  # asked in ever other orders


def test_items_and_probes_are_uniform():
    x, _ = TASKS["working_memory"](recall="probed", lengths_seen=(4, 4), lengths_tested=(4, 4), items=6).make(
        np.random.default_rng(0), 6000
    )
    for column in (0, 3):
        assert abs(np.bincount(x[:, column], minlength=7)[1:] / 6000 - 1 / 6).max() < 0.03
    assert abs(np.bincount(x[:, 5] - x[:, 5:9].min(), minlength=4) / 6000 - 1 / 4).max() < 0.03


class Forgetful(torch.nn.Module):
    """Recalls the first item, and the others where they stand at even places; says nothing of others."""

    def __init__(self, recall, vocab):
        super().__init__()
        self.recall, self.vocab = recall, vocab

    def forward(self, inputs, layout=None):
        out = torch.zeros(*inputs.shape, self.vocab)
        for b, row in enumerate(inputs.tolist()):
            mark = row.index(MARK)
            known = {i: row[i] for i in range(mark) if i == 0 or i % 2}
            for n in range(mark + 1, len(row)):
                if self.recall == "free":
                    out[b, n, 1 if row[n] in known.values() else 2] = 1
                else:
                    place = row[n] - MARK - 1 if self.recall == "probed" else n - mark - 1
                    out[b, n, known.get(place, 0)] = 1
        return out


@pytest.mark.parametrize("recall", ["serial", "probed", "free"])
def test_curves_by_position(recall):
    source = data.open(f"working_memory(recall={recall}, items={ITEMS}, lengths_seen=(3, 6), lengths_tested=(3, 6))")
    model = Forgetful(recall, source.facts["vocab"])
    curve = accuracy_by_position(model, source, limit=200, recognised=recall == "free")
    assert [(p.length, p.position) for p in curve] == [(n, i) for n in range(3, 7) for i in range(1, n + 1)]
    assert all(p.accuracy == (p.position == 1 or p.position % 2 == 0) for p in curve)
    assert sum(p.number for p in curve if p.position == 1) == 200
    ends = primacy_and_recency(curve, 5)
    assert ends == {"primacy": pytest.approx(1 / 3), "recency": pytest.approx(-2 / 3), "between": pytest.approx(2 / 3)}
    with pytest.raises(ValueError, match="another length"):
        primacy_and_recency(curve, 2)
    batch = next(source.evaluation("test", 200, 200))
    scores = batch.score(model(batch.inputs), batch.inputs, batch.targets)
    assert scores["accuracy_first"] == (200, 200) and scores["accuracy_last"][1] == 200
    even = sum(p.number for p in curve if p.position == p.length and p.length % 2 == 0)
    assert scores["accuracy_last"][0] == even


def test_serial_places_of_other_recall_tasks():
    batch = data.open("mqar(pairs=4, length=32, vocab=64)").batch("train", 0, 50)
    place, count = serial_places(batch.inputs, batch.targets)
    assert (count == 4).all()
    for row, wanted, places in zip(batch.inputs.tolist(), batch.targets.tolist(), place.tolist(), strict=True):
        keys = row[:8:2]
        assert places == [0 if w == -100 else 1 + keys.index(t) for t, w in zip(row, wanted, strict=True)]
    source = data.open("mqar(pairs=4, length=32, vocab=64)")
    model = formwright.build("attention(heads=2)", data=source, dim=16)
    with pytest.raises(ValueError, match="serial positions"):  # its answers say yes or no of nothing
        accuracy_by_position(model, source, limit=8, recognised=True)


@pytest.mark.parametrize("recall", ["serial", "probed", "free"])
def test_models_train(recall):
    torch.manual_seed(0)
    source = data.open(f"working_memory(recall={recall}, tests=20)")
    model = formwright.build("attention(heads=2) + swiglu", data=source, dim=16)
    model.loss(source.batch("train", 0, 8)).backward()
    assert len(accuracy_by_position(model, source, recognised=recall == "free")) > 12
    assert {"guessing", "the commonest answer"} <= set(source.baselines)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("working_memory(recall=backwards)", "'serial', 'probed' or 'free'"),
        ("working_memory(items=5)", "items"),
        ("working_memory(items=12, alike=True)", "at least 13"),
        ("working_memory(alike=1)", "True or False"),
        ("working_memory(delay=-1)", "delay"),
    ],
)
def test_refusals(spec, says):
    with pytest.raises(DataError, match=says):
        data.open(spec)
