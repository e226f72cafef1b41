"""Facts: one sheet of them, read off training sentences, that every answer agrees with; who is asked about when."""

import numpy as np
import pytest
import torch

import formwright
from formwright import data
from formwright.data import DataError
from formwright.data.tasks import TASKS

PEOPLE, ATTRIBUTES, VALUES, PHRASES = 30, 3, 7, 4
SORT = 8  # first names: 8 x 8 hold 30 people twice
PHRASE, QUESTION = 1 + 2 * SORT, 1 + 2 * SORT + ATTRIBUTES * PHRASES
VALUE = QUESTION + ATTRIBUTES


def small(**options):
    sizes = {"people": PEOPLE, "attributes": ATTRIBUTES, "values": VALUES, "phrases": PHRASES, "multiplicity": 2}
    return TASKS["facts"](**sizes | options)


def read(x, y):
    """(is it a question, name, attribute, phrase, value) of each fact of each row, checked against the definition."""
    rows = []
    for row, wanted in zip(x.tolist(), y.tolist(), strict=True):
        rows.append([])
        for i in range(0, len(row), 4):
            part, answer = row[i : i + 4], wanted[i : i + 4]
            question = part[0] == 0
            first, last, word = part[1:] if question else part[:3]
            place = 3 if question else 2
            assert answer == [value if n == place else -100 for n, value in enumerate([answer[place]] * 4)]
            assert 1 <= first <= SORT < last <= 2 * SORT and VALUE <= answer[place] < VALUE + VALUES
            if question:
                assert QUESTION <= word < VALUE
                about, phrase = word - QUESTION, None
            else:
                assert PHRASE <= word < QUESTION and part[3] == answer[2]
                about, phrase = divmod(word - PHRASE, PHRASES)
            rows[-1].append((question, (first, last), about, phrase, answer[place]))
        assert len({fact[:2] for fact in rows[-1]}) == 1
        assert sorted(fact[2] for fact in rows[-1]) == list(range(ATTRIBUTES))
    return rows


def test_all_rows_agree_on_one_sheet_and_facts_are_told_in_so_many_phrases():
    task = small(questions=0.4)
    sheet, phrases, asked = {}, {}, set()
    questions = 0
    rows = read(*task.make(np.random.default_rng(0), 3000))
    for row in rows:
        questions += row[0][0]
        for question, name, about, phrase, value in row:
            assert sheet.setdefault((name, about), value) == value
            if question:
                asked.add(name)
            else:
                phrases.setdefault((name, about), set()).add(phrase)
    assert abs(questions / 3000 - 0.4) < 0.05
    assert len(sheet) == PEOPLE * ATTRIBUTES and len(asked) == PEOPLE // 2
    assert all(len(told) == 2 for told in phrases.values())
    groups = []
    for make in (task.make_validation, task.make_test):
        groups.append(set())
        for row in read(*make(np.random.default_rng(1), 500)):
            for question, name, about, _, value in row:
                assert question and sheet[name, about] == value
                groups[-1].add(name)
    everyone = {name for name, _ in sheet}
    assert not asked & groups[0] and not asked & groups[1] and not groups[0] & groups[1]
    assert asked | groups[0] | groups[1] == everyone
    # a first name or a last name alone is shared
    assert len({first for first, _ in everyone}) < PEOPLE > len({last for _, last in everyone})
    for row in read(*small(tested="rephrase").make_test(np.random.default_rng(2), 500)):
        for question, name, about, phrase, value in row:
            assert not question and sheet[name, about] == value and phrase not in phrases[name, about]
    for row in read(*small(tested="acquire").make_test(np.random.default_rng(3), 500)):
        for question, name, about, phrase, value in row:
            assert not question and sheet[name, about] == value and phrase in phrases[name, about]


def test_orders_are_random_and_people_uniform():
    rows = read(*small(questions=0.0).make(np.random.default_rng(0), 6000))
    orders = {}
    who = {}
    for row in rows:
        order = tuple(fact[2] for fact in row)
        orders[order] = orders.get(order, 0) + 1
        who[row[0][1]] = who.get(row[0][1], 0) + 1
    assert len(orders) == 6 and all(abs(n / 6000 - 1 / 6) < 0.03 for n in orders.values())
    assert len(who) == PEOPLE and all(abs(n / 6000 - 1 / PEOPLE) < 0.012 for n in who.values())


def test_the_sheet_is_numbered_and_the_same_for_every_seed():
    def sheet(spec, seed):
        batch = data.open(spec, seed=seed).batch("train", 0, 1000)
        wanted = {}
        for row, answer in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            for i in range(0, len(row), 4):
                if row[i]:
                    wanted[row[i], row[i + 1], (row[i + 2] - PHRASE) // PHRASES] = answer[i + 2]
        return wanted

    spec = f"facts(people={PEOPLE}, attributes={ATTRIBUTES}, values={VALUES}, phrases={PHRASES}"
    one, two, other = sheet(spec + ")", 0), sheet(spec + ")", 1), sheet(spec + ", sheet=1)", 0)
    shared = one.keys() & two.keys()
    assert len(shared) > 80 and all(one[key] == two[key] for key in shared)
    assert one != other


def test_baselines_and_training():
    torch.manual_seed(0)
    for tested in ("extract", "rephrase", "acquire"):
        source = data.open(f"facts(people=40, tested={tested})")
        task = TASKS["facts"](people=40, tested=tested)
        x, y = task.make_test(np.random.default_rng(0), 1000)
        seen_x, seen_y = TASKS["facts"](people=40, tested="acquire").make_test(np.random.default_rng(1), 4000)
        baseline = source.baselines["the attribute's commonest value"]
        assert source.baselines["guessing"] == 1 / 20 < baseline < 0.4
        assert baseline == pytest.approx(
            task.baselines(seen_x, seen_y, x, y)["the attribute's commonest value"], abs=0.05
        )
        assert not source.notes
        model = formwright.build("attention(heads=2) + swiglu", data=source, dim=16)
        model.loss(source.batch("train", 0, 8)).backward()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("facts(tested=guess)", "'extract', 'rephrase' or 'acquire'"),
        ("facts(multiplicity=6)", "leave none"),
        ("facts(multiplicity=5, tested=rephrase)", "leave none"),
        ("facts(asked=1.0)", "below 1"),
        ("facts(asked=0.0)", "someone asked about"),
        ("facts(people=3)", "people"),
    ],
)
def test_refusals(spec, says):
    with pytest.raises(DataError, match=says):
        data.open(spec)
