"""Exponents and efficiency lengths, on curves whose answers are known."""

from __future__ import annotations

import math

import pytest

from formwright.bench.growth import Crossing, crossing, exponent, growth

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_the_exponent_of_a_power_is_found(power):
    assert exponent(LENGTHS, [3.7 * n**power for n in LENGTHS]) == pytest.approx(power)
    assert growth({n: 3.7 * n**power for n in LENGTHS}) == pytest.approx(power)


def test_growth_looks_at_the_longer_half():
    costs = {n: 1e6 + n**2 for n in LENGTHS}  # the constant rules up to a thousand tokens
    assert growth(costs) == pytest.approx(exponent(LENGTHS[-3:], [costs[n] for n in LENGTHS[-3:]]))
    assert exponent(LENGTHS, list(costs.values())) + 0.3 < growth(costs) < 2
    assert growth({100: 1.0, 200: 4.0}) == pytest.approx(2)


def test_no_exponent_without_two_lengths_and_costs_above_nought():
    assert exponent([100], [1.0]) is None
    assert exponent([100, 200], [0.0, 1.0]) is None


def test_powers_cross_where_they_are_equal():
    linear, square = {n: 50.0 * n for n in LENGTHS}, {n: 0.03 * n**2 for n in LENGTHS}
    found = crossing(linear, square)
    assert not (found.never or found.always)
    assert found.length == pytest.approx(50 / 0.03)  # both are lines on log axes, so interpolation is exact
    assert str(found) == "1667"
    assert crossing(square, linear).never


def test_a_cost_between_lengths_is_near_the_truth():
    ours, other = {n: 4e5 + 10 * n for n in LENGTHS}, {n: 2e4 + 0.1 * n**2 for n in LENGTHS}
    truth = 50 + math.sqrt(2500 + 3.8e6)
    assert crossing(ours, other).length == pytest.approx(truth, rel=0.1)


def test_always_never_and_nothing_in_common():
    low, high = {256: 1.0, 512: 2.0}, {256: 3.0, 512: 4.0}
    assert crossing(low, high) == Crossing(256, always=True) and str(crossing(low, high)) == "from 256"
    assert crossing(high, low) == Crossing(512, never=True) and str(crossing(high, low)) == "never up to 512"
    assert crossing(low, {1024: 1.0}) is None
    assert crossing(low, low).never  # as cheap is not cheaper


def test_only_the_crossing_that_lasts_counts():
    other = dict.fromkeys(LENGTHS, 1.0)
    ours = dict(zip(LENGTHS, (0.5, 2.0, 0.5, 2.0, 0.5, 0.25), strict=True))
    assert crossing(ours, other).length == pytest.approx(math.sqrt(2048 * 4096))
    ours[8192] = 1.5
    assert crossing(ours, other).never
