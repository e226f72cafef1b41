"""What memories hold: coefficients against plain loops, capacities against closed forms and laws."""

import math

import pytest
import torch
from torch.nn import functional

from formwright.bench.capacity import MEMORIES, capacity, coefficients, law, main, quality


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(*shape, dtype=torch.float64, generator=generator), dim=-1)


@pytest.mark.parametrize("memory", MEMORIES)
def test_coefficients_are_what_is_read(memory):
    keys, values = unit(3, 9, 5), unit(3, 9, 4, seed=1)
    read = coefficients(memory, keys) @ values
    for k, v, found in zip(keys, values, read, strict=True):
        if memory == "softmax":
            plain = torch.stack([torch.softmax(5**0.5 * (k @ q), 0) @ v for q in k])
        elif memory == "best":
            plain = k @ torch.linalg.lstsq(k, v).solution
        else:
            state = torch.zeros(5, 4, dtype=torch.float64)
            for key, value in zip(k, v, strict=True):
                state = state + torch.outer(key, value - (state.T @ key if memory == "delta" else 0))
            plain = k @ state
        torch.testing.assert_close(found, plain)


def test_criteria_are_what_they_say():
    keys, values = unit(2, 12, 6), unit(2, 12, 7, seed=1)
    read = coefficients("linear", keys)
    out = read @ values
    right = [int((out[b] @ values[b].T).argmax(-1)[i] == i) for b in range(2) for i in range(12)]
    assert quality("recall", read, values) == pytest.approx(sum(right) / 24)
    # the expected relative error of independent values of length 1, here over many of them
    many = unit(4000, 12, 7, seed=2)
    measured = (read[0] @ many - many).square().sum(-1).mean()
    assert quality("error", read[:1], values) == pytest.approx(float(measured), rel=0.02)
    # for each key the values along one line that disturb it most: length 1, the signs against it
    worst = []
    for i in range(12):
        wrong = [read[0, i, j].item() - (i == j) for j in range(12)]
        line = [math.copysign(1.0, w) for w in wrong]
        worst.append(abs(sum(read[0, i, j].item() * line[j] for j in range(12)) - line[i]))
    assert quality("worst", read[:1], values) == pytest.approx(sum(worst) / 12)


def test_the_linear_memory_holds_as_many_as_its_formulas_say():
    for width in (16, 64):
        assert capacity("linear", width) == pytest.approx(1 + 0.5 * width, rel=0.15)
        worst = 1 + math.sqrt(math.pi * width / 2)
        assert capacity("linear", width, "worst", trials=32, most=64) == pytest.approx(worst, rel=0.2)


@pytest.mark.parametrize(("memory", "criterion", "power"), [("linear", "error", 1), ("delta", "error", 1)])
def test_average_capacity_grows_as_the_key_width(memory, criterion, power):
    found, grown = law(memory, [8, 16, 32, 64], criterion, trials=16, most=256)
    assert grown == pytest.approx(power, abs=0.12) and found == sorted(found)


def test_worst_capacity_grows_as_its_root():
    assert law("linear", [16, 64, 256], "worst", trials=16, most=64)[1] == pytest.approx(0.5, abs=0.12)


def test_recall_of_the_nearest_value_grows_as_the_key_width():
    assert law("linear", [16, 32, 64], "recall", most=512)[1] == pytest.approx(1, abs=0.12)


def test_no_linear_memory_betters_least_squares_and_softmax_does():
    for criterion in ("error", "recall"):
        held = {memory: capacity(memory, 16, criterion, most=256) for memory in MEMORIES}
        assert max(held["linear"], held["delta"]) < held["best"] < held["softmax"]
    assert capacity("best", 16, threshold=1e-9) == 16  # without error up to the key width
    assert capacity("delta", 16) > capacity("linear", 16)  # on average; but the first pairs suffer most


def test_small_most_and_refusals():
    assert capacity("linear", 64, most=5) == 5
    for options, says in (
        ({"memory": "none"}, "memory is one of"),
        ({"criterion": "none"}, "criterion is one of"),
        ({"most": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=says):
            capacity(**({"memory": "linear", "key_width": 8} | options))


def test_the_command_prints_a_table(capsys):
    main(["--memory", "linear", "--widths", "8", "16", "--most", "64"])
    shown = capsys.readouterr().out
    assert "linear" in shown and "d_k^" in shown
    main(["--memory", "softmax", "--widths", "32", "--most", "16"])
    assert ">=16" in capsys.readouterr().out
