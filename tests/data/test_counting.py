"""Letters counted: strings read back from their tokens, and the letters counted one by one."""

import itertools

import numpy as np
import pytest
import torch

import formwright
from formwright import data
from formwright.data import DataError
from formwright.data.tasks import TASKS
from formwright.data.tasks.counting import TOKENISATIONS, dictionary
from formwright.data.tasks.merges import encode, learn, spelled


def words(tokenisation, letters):
    """What each token of a string spells; "." stands for what separates."""
    names = "abcdefgh"[:letters]
    if tokenisation == "merged":
        found = ["".join(names[s] for s in t) for t in spelled(letters, dictionary("merged", letters, 16))]
    elif tokenisation == "pairs":
        found = [*names, *(a + b for a in names for b in names)]
    else:
        found = [*names, "."] + ["."] * (tokenisation == "quoted")
    return found


@pytest.mark.parametrize("tokenisation", TOKENISATIONS)
@pytest.mark.parametrize("letters", [2, 3])
@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("most", [0, 6])
def test_counts_and_tokens(tokenisation, letters, running, most):
    task = TASKS["counting"](
        letters=letters,
        tokenisation=tokenisation,
        running=running,
        most=most,
        lengths_seen=(1, 15),
        lengths_tested=(9, 31),
    )
    word = words(tokenisation, letters)
    for make, bounds in ((task.make, (1, 15)), (task.make_test, (9, 31))):
        x, y = make(np.random.default_rng(0), 400)
        assert x.max() < task.facts["vocab"] and y.max() < task.facts["vocab"] and x.shape[1] <= task.facts["length"]
        sizes = []
        for row, wanted in zip(x.tolist(), y.tolist(), strict=True):
            end = row.index(0)
            assert not any(row[end:])
            asked, spelled_out = "abcdefgh"[row[0] - 1], [word[t - letters - 1] for t in row[1:end]]
            string = "".join(spelled_out).replace(".", "")
            sizes.append(len(string))
            assert not most or string.count(asked) <= most
            if running:
                so_far = itertools.accumulate(spelled_out)
                assert wanted == [-100, *(1 + s.count(asked) for s in so_far)] + [-100] * (len(row) - end)
            else:
                assert wanted == [-100] * end + [1 + string.count(asked)] + [-100] * (len(row) - end - 1)
            separators = {"letters": 0, "pairs": 0, "merged": 0, "spaced": len(string) - 1}
            assert spelled_out.count(".") == separators.get(tokenisation, 3 * len(string) - 1)
            if tokenisation == "pairs":
                assert all(len(w) == 2 for w in spelled_out[:-1])
        assert (min(sizes), max(sizes)) == bounds


def test_bounded_counts_and_their_places_are_uniform():
    task = TASKS["counting"](letters=4, most=5, lengths_seen=(9, 9), lengths_tested=(20, 30))
    x, y = task.make(np.random.default_rng(0), 6000)
    assert abs(np.bincount(y[:, 10] - 1, minlength=6) / 6000 - 1 / 6).max() < 0.03
    here = x[:, 1:10] - 5 == x[:, :1] - 1
    assert (here.sum(1) == y[:, 10] - 1).all()
    assert abs(here.mean(0) - 2.5 / 9).max() < 0.03  # at every place alike
    others = (x[:, 1:10] - 5)[~here & (x[:, :1] == 1)]
    assert abs(np.bincount(others, minlength=4)[1:] / len(others) - 1 / 3).max() < 0.03
    assert not task.notes and TASKS["counting"](lengths_tested=(41, 50)).notes


def merged_plainly(string, alphabet, pairs):
    """One string, one merge after another, from left to right."""
    tokens = list(string)
    for number, pair in enumerate(pairs, alphabet):
        out, i = [], 0
        while i < len(tokens):
            if tuple(tokens[i : i + 2]) == pair:
                out.append(number)
                i += 2
            else:
                out.append(tokens[i])
                i += 1
        tokens = out
    return tokens


@pytest.mark.parametrize(("alphabet", "merges"), [(2, 12), (3, 20), (5, 1)])
def test_merges_are_byte_pairs(alphabet, merges):
    rng = np.random.default_rng(alphabet)
    strings = rng.integers(0, alphabet, size=(60, 40)) * rng.integers(0, 2, size=(60, 40))
    sizes = rng.integers(1, 41, size=60)
    pairs = learn(strings, alphabet, merges)
    for number in range(merges):  # each is the commonest pair of what the earlier ones leave
        seen = [merged_plainly(row, alphabet, pairs[:number]) for row in strings.tolist()]
        times = {}
        for row in seen:
            for pair in itertools.pairwise(row):
                times[pair] = times.get(pair, 0) + 1
        assert times[pairs[number]] == max(times.values())
    tokens, counts = encode(strings, alphabet, pairs, sizes)
    spellings = spelled(alphabet, pairs)
    for row, size, found, count in zip(strings.tolist(), sizes, tokens.tolist(), counts, strict=True):
        assert found[:count] == merged_plainly(row[:size], alphabet, pairs) and not any(found[count:])
        assert [s for t in found[:count] for s in spellings[t]] == row[:size]


def test_baselines_and_training():
    torch.manual_seed(0)
    source = data.open("counting(tokenisation=merged, lengths_seen=(5, 12), lengths_tested=(5, 12))")
    assert source.baselines["the number of tokens alone"] >= source.baselines["the commonest answer"] > 0.1
    assert not source.notes
    x, y = (t.numpy() for t in (source.batch("train", 0, 1000).inputs, source.batch("train", 0, 1000).targets))
    by_number = {}
    for row, wanted in zip(x.tolist(), y.tolist(), strict=True):
        by_number.setdefault(row.index(0), []).append(max(wanted))
    # on the rows that it was read from, the commonest answer of each number of tokens, worked out again
    from formwright.data.tasks.counting import by_place

    right = sum(max(found.count(c) for c in set(found)) for found in by_number.values())
    assert by_place(x, y, x, y)["the number of tokens alone"] == pytest.approx(right / 1000)
    model = formwright.build("attention(heads=2) + swiglu", data=source, dim=16)
    model.loss(source.batch("train", 0, 8)).backward()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("counting(tokenisation=words)", "letters, pairs, merged, spaced, quoted"),
        ("counting(letters=1)", "at least 2"),
        ("counting(running=1)", "True or False"),
        ("counting(lengths_seen=(9, 3))", "longest of lengths_seen"),
    ],
)
def test_refusals(spec, says):
    with pytest.raises(DataError, match=says):
        data.open(spec)
