"""Win rates and win rates at equal lengths, against statsmodels and closed forms."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import statsmodels.api as sm
from evaluator_support import played
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from evaluator.intervals import NoDataError, wilson
from evaluator.logistic import NotIdentifiedError, fit
from evaluator.win_rate import LengthControlled, WinRate, WinRates, evaluate

QUICK = settings(max_examples=25)
LENGTHS = st.integers(1, 400)
GAMES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 9), st.tuples(LENGTHS, LENGTHS)),
    min_size=3,
    max_size=40,
)
"""Score, prompt, and the lengths of both responses."""
Rows = list[tuple[float, int, tuple[int, int]]]


def asked(rows: Rows, **names: str) -> WinRate:
    return evaluate(played([("a", "b", *row) for row in rows]), **names).asked


def strict(found: WinRates) -> None:
    json.dumps(found.json(), allow_nan=False)


@QUICK
@given(GAMES)
def test_a_tie_is_half_a_win_and_the_sides_mirror_each_other(rows: Rows):
    one, other = asked(rows, model="a", baseline="b"), asked(rows, model="b", baseline="a")
    scores = [row[0] for row in rows]
    assert one.win_rate.value == pytest.approx(np.mean(scores))
    assert one.win_rate.value + other.win_rate.value == pytest.approx(1)
    assert one.win_rate.low == pytest.approx(1 - other.win_rate.high, abs=0.02, nan_ok=True)
    assert (one.wins, one.draws, one.losses) == (other.losses, other.draws, other.wins)
    assert one.wins + one.draws + one.losses == one.games == len(rows)
    assert one.p_value == pytest.approx(other.p_value)
    assert one.longer is not None
    assert other.longer is not None
    assert one.longer.value + other.longer.value == pytest.approx(1)


@QUICK
@given(GAMES)
def test_who_is_named_first_in_the_file_does_not_matter(rows: Rows):
    turned = [("b", "a", 1 - score, prompt, chars[::-1]) for score, prompt, chars in rows]
    one = asked(rows, model="a")
    other = evaluate(played(turned), model="a").asked
    assert other.win_rate.value == pytest.approx(one.win_rate.value)
    assert other.by_ratio.why == one.by_ratio.why
    for form in ("by_ratio", "by_difference"):
        there, back = getattr(one, form).rate, getattr(other, form).rate
        assert (there is None) == (back is None)
        if there is not None:
            assert back.value == pytest.approx(there.value, abs=1e-6)


@QUICK
@given(GAMES)
def test_the_difference_of_lengths_mirrors_with_the_sides(rows: Rows):
    """The tanh is odd: at equal lengths both sides' rates sum to one. A ratio has no such mirror."""
    one, other = (asked(rows, model=name).by_difference for name in "ab")
    assume(one.rate is not None)
    assert one.rate is not None
    assert other.rate is not None
    assert one.rate.value + other.rate.value == pytest.approx(1, abs=1e-6)
    assert one.rate.low == pytest.approx(1 - other.rate.high, abs=1e-6, nan_ok=True)
    assert one.slope is not None
    assert other.slope is not None
    assert one.slope.value == pytest.approx(other.slope.value, abs=1e-6)


@QUICK
@given(GAMES)
def test_at_equal_lengths_everywhere_the_corrected_rate_is_the_raw_one(rows: Rows):
    found = asked([(score, prompt, (50, 50)) for score, prompt, _ in rows])
    assert found.by_ratio.rate == found.by_difference.rate == found.win_rate
    assert found.by_ratio.slope is not None
    assert found.by_ratio.slope.value == 0


def test_length_that_says_nothing_of_winning_corrects_nothing():
    """Each pair of lengths is won and lost as often."""
    chars = [(100, 50), (50, 100), (80, 80), (10, 30)]
    rows: Rows = [(float(won), at, each) for at, each in enumerate(chars * 5) for won in (0, 1)]
    found = asked(rows)
    for form in (found.by_ratio, found.by_difference):
        assert form.rate is not None
        assert form.slope is not None
        assert form.rate.value == pytest.approx(0.5, abs=1e-9)
        assert form.slope.value == pytest.approx(0, abs=1e-9)


@QUICK
@given(st.integers(1, 40), st.integers(1, 40))
def test_single_votes_have_wilsons_interval_and_the_sign_test(won: int, lost: int):
    found = evaluate(played([("a", "b", 1.0)] * won + [("a", "b", 0.0)] * lost)).asked
    assert (found.win_rate.low, found.win_rate.high) == pytest.approx(wilson(won / (won + lost), won + lost))
    assert found.p_value == pytest.approx(binomtest(won, won + lost).pvalue)
    share, count = won / (won + lost), won + lost
    assert found.standard_error == pytest.approx(math.sqrt(share * (1 - share) / (count - 1)))


def test_the_sign_test_is_over_comparisons_and_leaves_out_ties():
    rows = [("a", "b", score, at) for at, votes in enumerate(["110", "11t", "00t", "10", "tt"]) for score in votes]
    games = [(*row[:2], {"1": 1.0, "0": 0.0, "t": 0.5}[str(row[2])], row[3]) for row in rows]
    results = played(games)
    results = type(results)(**{**vars(results), "item": results.cluster})
    assert evaluate(results).asked.p_value == pytest.approx(binomtest(2, 3).pvalue)


# The regression itself


@QUICK
@given(st.integers(0, 10_000))
def test_the_regression_is_that_of_statsmodels_with_clusters(seed: int):
    rng = np.random.default_rng(seed)
    count, clusters = 120, np.repeat(np.arange(40), 3)
    features = np.column_stack([np.ones(count), rng.normal(0, 1, (count, 2))])
    outcomes = np.where(rng.random(count) < 0.2, 0.5, rng.random(count) < 0.6)
    found = fit(features, outcomes, clusters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sm.GLM(outcomes, features, family=sm.families.Binomial())
        plain = model.fit(tol=1e-12)
        robust = model.fit(tol=1e-12, cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False})
    assert found.coefficients == pytest.approx(plain.params, abs=1e-7)
    covariance = found.influences.T @ found.influences
    assert np.sqrt(np.diag(covariance)) == pytest.approx(robust.bse, rel=1e-6)


@pytest.mark.parametrize(
    ("features", "outcomes", "message"),
    [
        ([[1.0, 0.0], [1.0, 1.0]], [0.0, 1.0], "too few"),
        ([[1.0, 2.0]] * 5, [0.0, 1.0, 0.0, 1.0, 1.0], "cannot be told apart"),
        ([[1.0, float(n)] for n in range(10)], [float(n > 4) for n in range(10)], "separate wins from losses"),
        ([[1.0, float(n)] for n in range(10)], [1.0] * 10, "separate wins from losses"),
    ],
    ids=["two rows", "one length", "separated", "always won"],
)
def test_what_the_data_do_not_tell_is_refused(features: list[list[float]], outcomes: list[float], message: str):
    with pytest.raises(NotIdentifiedError, match=message):
        fit(np.array(features), np.array(outcomes), np.arange(len(outcomes)))


# Where lengths cannot tell


def reasons(rows: Rows) -> tuple[LengthControlled, LengthControlled]:
    found = evaluate(played([("a", "b", *row) for row in rows]))
    strict(found)
    return found.asked.by_ratio, found.asked.by_difference


def half(at: int) -> float:
    return float(at % 3 > 0)


@pytest.mark.parametrize(
    ("rows", "ratio", "apart"),
    [
        ([(half(n), n, (n + 1, 0)) for n in range(12)], "empty, so the ratio", "extrapolation"),
        ([(half(n), n, (0, n + 1)) for n in range(12)], "cannot be told apart", "extrapolation"),
        ([(1.0, n, (n + 1, 5)) for n in range(12)], "separate", "separate"),
        ([(float(n > 5), n, (n + 1, 5)) for n in range(12)], "separate", "separate"),
        ([(half(n), n, (20, 10)) for n in range(12)], "cannot be told apart", "cannot be told apart"),
        ([(1.0, 0, (9, 4))], "too few", "cannot be told apart"),
    ],
    ids=["the baseline's empty", "its own empty", "always won", "separated", "one ratio", "one game"],
)
def test_lengths_that_tell_nothing_are_null_with_a_statement(rows: Rows, ratio: str, apart: str):
    by_ratio, by_difference = reasons(rows)
    assert by_ratio.rate is None
    assert ratio in (by_ratio.why or "")
    assert apart in (by_difference.why or "")
    assert (by_difference.rate is None) == ("extrapolation" not in apart)


def test_games_without_lengths_say_so():
    found = evaluate(played([("a", "b", half(n)) for n in range(10)]))
    strict(found)
    assert found.asked.by_ratio.why == found.asked.by_difference.why == "the lengths of the responses are not known"
    assert found.asked.longer is None


def test_lengths_that_lie_on_one_side_are_an_extrapolation():
    by_ratio, by_difference = reasons([(half(n), n, (100 + 7 * n % 50, 50)) for n in range(40)])
    assert by_ratio.why == by_difference.why == "an extrapolation: 0 of 40 responses are as short as the baseline's"
    assert by_ratio.rate is not None


def test_all_ties_are_corrected_to_a_tie_without_certainty():
    for form in reasons([(0.5, n, (n + 1, 10)) for n in range(20)]):
        assert form.rate is not None
        assert form.rate.value == pytest.approx(0.5)
        assert math.isnan(form.rate.low)


# Who against whom

THREE = [("a", "b", 1.0), ("a", "b", 0.0), ("b", "c", 1.0), ("c", "a", 0.5), ("a", "b", 1.0)]


def test_the_first_of_the_file_is_told_against_whom_it_met_most_often():
    found = evaluate(played(THREE))
    assert (found.asked.model, found.asked.baseline) == ("a", "b")
    assert [(each.model, each.baseline) for each in found.others] == [("c", "b")]


def test_a_baseline_alone_is_met_by_the_first_who_did():
    found = evaluate(played([*THREE, ("d", "a", 1.0)]), baseline="c")
    assert (found.asked.model, found.asked.baseline) == ("a", "c")


def test_the_matrix_holds_each_pair_once_from_both_sides():
    matrix = evaluate(played(THREE)).matrix
    assert {name: set(row) for name, row in matrix.items()} == {"a": {"b", "c"}, "b": {"a", "c"}, "c": {"a", "b"}}
    for one, row in matrix.items():
        for other, rate in row.items():
            assert rate.value + matrix[other][one].value == pytest.approx(1)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"model": "z"}, "no model 'z' in it; there are a, b, c, d, e"),
        ({"baseline": "z"}, "no model 'z' in it"),
        ({"model": "a", "baseline": "a"}, "'a' and 'a' never met"),
        ({"model": "a", "baseline": "d"}, "'a' and 'd' never met"),
    ],
    ids=["unknown model", "unknown baseline", "itself", "never met"],
)
def test_names_that_cannot_be_compared_are_refused(names: dict[str, str], message: str):
    with pytest.raises(NoDataError, match=message):
        evaluate(played([*THREE, ("d", "e", 1.0)]), **names)


def test_a_probability_is_a_part_of_a_win():
    found = evaluate(played([("a", "b", 0.9), ("a", "b", 0.4), ("a", "b", 0.5)])).asked
    assert found.win_rate.value == pytest.approx(0.6)
    assert (found.wins, found.losses, found.draws) == (1, 1, 1)
    assert found.json()["discrete_win_rate"] == 0.5
