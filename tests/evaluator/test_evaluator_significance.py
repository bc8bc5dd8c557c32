"""Tests of differences, against statsmodels and scipy, and by what must hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import fisher_exact
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import confint_proportions_2indep

from evaluator.intervals import NoDataError, mean_interval
from evaluator.significance import difference, fisher, holm, mcnemar, newcombe, sample_sizes

QUICK = settings(max_examples=50)
RIGHT = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=60)


def columns(pairs: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([one for one, _ in pairs]), np.array([other for _, other in pairs])


@QUICK
@given(RIGHT)
def test_mcnemar_is_the_exact_one_of_statsmodels(pairs: list[tuple[float, float]]):
    table = np.zeros((2, 2))
    for one, other in pairs:
        table[int(one), int(other)] += 1
    expected = statsmodels_mcnemar(table, exact=True).pvalue if table[0, 1] + table[1, 0] else 1.0
    assert mcnemar(*columns(pairs)) == pytest.approx(expected, abs=1e-12)


@QUICK
@given(RIGHT)
def test_mcnemar_and_the_difference_turn_round_with_the_labelers(pairs: list[tuple[float, float]]):
    one, other = columns(pairs)
    assert mcnemar(one, other) == pytest.approx(mcnemar(other, one))
    there, back = difference(one, other), difference(other, one)
    assert there.value == pytest.approx(-back.value)
    assert there.value == pytest.approx(one.mean() - other.mean())


def test_a_labeler_against_itself_differs_by_nothing_with_some_doubt():
    same = np.array([1.0, 0.0, 0.5, 1.0] * 25)
    found = difference(same, same)
    assert (mcnemar(same, same), found.value) == (1.0, 0.0)
    assert found.low == -found.high
    assert 0.02 < found.high < 0.06


def test_a_difference_of_nothing_is_refused():
    with pytest.raises(NoDataError):
        difference(np.array([]), np.array([]))


@settings(max_examples=15)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(p_values: list[float]):
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist(), abs=1e-12)


def test_holm_of_nothing_is_nothing():
    assert holm([]) == []


@QUICK
@given(st.integers(0, 20), st.integers(1, 20), st.integers(0, 20), st.integers(1, 20))
def test_fisher_is_scipys(a: int, b: int, c: int, d: int):
    one, other = (np.array([1.0] * yes + [0.0] * no) for yes, no in ((a, b), (c, d)))
    assert fisher(one, other) == pytest.approx(fisher_exact([[a, b], [c, d]]).pvalue)


@QUICK
@given(st.integers(0, 30), st.integers(1, 30), st.integers(0, 30), st.integers(1, 30))
def test_newcombe_is_that_of_statsmodels(a: int, b: int, c: int, d: int):
    one, other = (mean_interval(np.array([1.0] * yes + [0.0] * no)) for yes, no in ((a, b), (c, d)))
    expected = confint_proportions_2indep(a, a + b, c, c + d, method="newcomb", compare="diff")
    found = newcombe(one, other)
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("share", [0.5, 0.7, 0.78])
def test_sample_sizes_have_the_power_that_they_promise(share: float):
    """By statsmodels' arcsine effect size, which is another approximation of the same."""
    from statsmodels.stats.proportion import proportion_effectsize

    for points in (2, 5, 10):
        size = sample_sizes(share)[str(points)]["unpaired"]
        effect = proportion_effectsize(share + points / 100, share)
        assert NormalIndPower().power(effect, size, 0.05) == pytest.approx(0.8, abs=0.01)


def test_paired_sample_sizes_have_the_power_that_they_promise():
    apart, step = 0.2, 0.05
    size = sample_sizes(0.7, apart)["5"]["paired"]
    rng = np.random.default_rng(0)
    side = rng.choice([1.0, -1.0, 0.0], (1000, size), p=[(apart + step) / 2, (apart - step) / 2, 1 - apart])
    found = [mcnemar((each > 0).astype(float), (each < 0).astype(float)) <= 0.05 for each in side]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)


def test_two_labelers_that_never_differ_so_much_have_no_paired_size():
    found = sample_sizes(0.7, 0.03)
    assert found["2"]["paired"] is not None
    assert found["5"]["paired"] is None


@pytest.mark.parametrize("share", [0.0, 0.995, 1.0])
def test_sample_sizes_exist_at_the_edges(share: float):
    found = sample_sizes(share)
    sizes = [found[points]["unpaired"] for points in ("1", "2", "5", "10")]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 1
