"""Intervals: they cover what they should, are the same every time, and refuse nothing at all."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from evaluator.intervals import (
    Interval,
    NoDataError,
    intervals_json,
    mean_interval,
    ratio_interval,
    sums_interval,
    table_interval,
    wilson,
)

QUICK = settings(max_examples=40)


def weighted_mean(values: np.ndarray, seed: int = 0) -> Interval:
    return ratio_interval(values, np.ones(len(values)), seed)


def share_of_second(table: np.ndarray) -> np.ndarray:
    return table[:, 1] / table.sum(1)


@pytest.mark.parametrize("share", [0.5, 0.75], ids=["a coin", "three in four"])
def test_an_interval_of_a_share_covers_the_truth_about_19_times_of_20(share: float):
    rng = np.random.default_rng(1)
    intervals = [mean_interval((rng.random(100) < share).astype(float)) for _ in range(400)]
    assert 0.90 <= np.mean([each.low <= share <= each.high for each in intervals]) <= 0.99


def test_an_interval_of_a_mean_of_many_values_covers_the_truth_about_19_times_of_20():
    rng = np.random.default_rng(2)
    intervals = [mean_interval(rng.gamma(2.0, 1.0, 100)) for _ in range(400)]
    assert 0.90 <= np.mean([each.low <= 2.0 <= each.high for each in intervals]) <= 0.99


def test_an_interval_of_a_table_covers_the_truth_about_19_times_of_20():
    rng = np.random.default_rng(3)
    intervals = [table_interval(rng.multinomial(100, [0.3, 0.7]), share_of_second) for _ in range(400)]
    assert 0.90 <= np.mean([each.low <= 0.7 <= each.high for each in intervals]) <= 0.99


def test_four_times_the_items_halve_an_interval():
    rng = np.random.default_rng(4)
    wide, narrow = mean_interval(rng.normal(size=400)), mean_interval(rng.normal(size=1600))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2, rel=0.15)


@QUICK
@given(st.integers(0, 60), st.integers(1, 60))
def test_wilson_is_the_textbooks(successes: int, more: int):
    count = successes + more
    expected = binomtest(successes, count).proportion_ci(0.95, "wilson")
    assert wilson(successes / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_unanimous_share_gets_wilsons_doubt(share: float):
    found = mean_interval(np.full(20, share))
    assert (found.value, found.n) == (share, 20)
    assert found.high - found.low == pytest.approx(0.161, abs=0.001)
    assert found.low == share or found.high == share


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_item_proves_little(share: float):
    found = mean_interval(np.array([share]))
    assert found.high - found.low > 0.7


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: mean_interval(np.array([0.0, 0.13, 0.97, 0.41] * 30), seed=seed),
        lambda seed: mean_interval(np.linspace(0, 1, 100), seed=seed),
        lambda seed: table_interval(np.array([30.0, 71.0]), share_of_second, seed),
        lambda seed: weighted_mean(np.linspace(0, 1, 100), seed),
    ],
    ids=["few values", "many values", "table", "sums"],
)
def test_the_same_seed_gives_the_same_interval(make):
    assert make(7) == make(7)
    assert (make(7).low, make(7).high) != (make(8).low, make(8).high)
    assert make(7).value == make(8).value


@pytest.mark.parametrize(
    "make",
    [
        lambda: mean_interval(np.array([])),
        lambda: table_interval(np.zeros((2, 2)), share_of_second),
        lambda: sums_interval(np.zeros((0, 2)), lambda sums: sums[:, 0]),
    ],
    ids=["mean", "table", "sums"],
)
def test_nothing_has_no_interval(make):
    with pytest.raises(NoDataError):
        make()


@QUICK
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=60))
def test_a_value_lies_in_its_interval_and_the_interval_in_the_values_range(values: list[float]):
    found = mean_interval(np.array(values))
    assert found.n == len(values)
    if set(values) == {0.5}:
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    else:
        assert 0 <= found.low <= found.value <= found.high <= 1


def test_three_ways_to_resample_a_share_agree():
    values = np.array([1.0] * 60 + [0.0] * 40)
    ways = [mean_interval(values), table_interval(np.array([40.0, 60.0]), share_of_second), weighted_mean(values)]
    for each in ways:
        assert (each.value, each.n) == (pytest.approx(0.6), 100)
        assert (each.low, each.high) == (pytest.approx(0.504, abs=0.02), pytest.approx(0.696, abs=0.02))


def first_over_second(tables: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(tables[:, 1] > 0, tables[:, 0] / tables[:, 1], np.nan)


def test_resamples_where_a_statistic_does_not_exist_are_left_out_if_they_are_few():
    found = table_interval(np.array([30.0, 6.0]), first_over_second)
    assert found.value == 5.0
    assert 1.5 < found.low < found.value < found.high < 36


def test_a_statistic_that_often_does_not_exist_has_no_bounds():
    found = table_interval(np.array([3.0, 1.0]), first_over_second)
    assert (found.value, found.known) == (3.0, False)


def test_a_statistic_that_does_not_exist_at_all_is_null_in_reports():
    found = table_interval(np.array([3.0, 1.0]), lambda tables: np.full(len(tables), math.nan))
    assert found.json() == {"value": None, "low": None, "high": None, "n": 4}


def test_reports_write_a_value_its_interval_and_its_items():
    interval = Interval(0.5, 0.25, 0.75, 8)
    assert intervals_json({"x": interval}) == {"x": {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8}}
