"""Agreement of raters, against the packages that are known for it and against closed forms."""

from __future__ import annotations

import warnings
from itertools import permutations

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, rankdata, spearmanr
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa as statsmodels_fleiss

from evaluator.agreement import (
    Agreement,
    agree,
    fleiss_kappa,
    interval,
    kendall_w,
    krippendorff_alpha,
    mean_kendall_w,
    nominal,
    ordinal,
    weighted_kappa,
)
from evaluator.ballots import Ballots, of_scores
from evaluator.intervals import Array

QUICK = settings(max_examples=25)
MISSING = None

TABLES = st.integers(2, 4).flatmap(
    lambda raters: st.lists(
        st.lists(st.sampled_from([MISSING, 1.0, 2.0, 3.0, 5.0]), min_size=raters, max_size=raters),
        min_size=2,
        max_size=15,
    )
)
"""Items of raters' numbers."""


def ballots(table: list[list[float | None]]) -> Ballots:
    """A row an item, a column a rater."""
    cells = [(item, rater, said) for item, row in enumerate(table) for rater, said in enumerate(row)]
    return of_scores([(str(item), f"r{rater}", said) for item, rater, said in cells if said is not None])


def pairable(table: list[list[float | None]]) -> bool:
    known = [[said for said in row if said is not None] for row in table]
    return any(len(row) > 1 for row in known) and len({said for row in known if len(row) > 1 for said in row}) > 1


def theirs(table: list[list[float | None]], level: str) -> float:
    numbers = np.array([[np.nan if said is None else said for said in row] for row in table]).T
    return float(krippendorff.alpha(reliability_data=numbers, level_of_measurement=level))


@QUICK
@given(TABLES.filter(pairable))
def test_alphas_are_those_of_the_krippendorff_package(table: list[list[float | None]]):
    found = agree(ballots(table))
    assert found.nominal.value == pytest.approx(theirs(table, "nominal"), abs=1e-9)
    assert found.ordinal is not None
    assert found.interval is not None
    assert found.ordinal.value == pytest.approx(theirs(table, "ordinal"), abs=1e-9)
    assert found.interval.value == pytest.approx(theirs(table, "interval"), abs=1e-9)


COUNTS = st.integers(2, 5).flatmap(
    lambda raters: st.lists(st.lists(st.integers(0, 2), min_size=raters, max_size=raters), min_size=2, max_size=25)
)


def counted(said: list[list[int]]) -> Array:
    return np.array([[row.count(each) for each in range(3)] for row in said], dtype=np.float64)


@QUICK
@given(COUNTS)
def test_fleiss_kappa_is_that_of_statsmodels(said: list[list[int]]):
    counts = counted(said)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = statsmodels_fleiss(counts)
    expected = float("nan") if np.isinf(expected) else expected
    assert fleiss_kappa(counts).value == pytest.approx(expected, abs=1e-9, nan_ok=True)


@QUICK
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=60))
def test_weighted_kappa_is_scikit_learns_with_linear_weights(pairs: list[tuple[int, int]]):
    table = np.zeros((4, 4))
    for one, other in pairs:
        table[one, other] += 1
    first, second = zip(*pairs, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = cohen_kappa_score(first, second, labels=[0, 1, 2, 3], weights="linear")
    assert weighted_kappa(table[None])[0] == pytest.approx(expected, abs=1e-9, nan_ok=True)


@QUICK
@given(TABLES.filter(pairable))
def test_every_pair_of_raters_has_the_kappa_of_their_common_items(table: list[list[float | None]]):
    found = agree(ballots(table)).pairwise
    raters = range(len(table[0]))
    for one in raters:
        for other in raters[one + 1 :]:
            both = [(row[one], row[other]) for row in table if None not in {row[one], row[other]}]
            name = f"r{one} & r{other}"
            assert (name in found) == bool(both)
            if not both:
                continue
            first, second = zip(*both, strict=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = cohen_kappa_score([f"{x}" for x in first], [f"{x}" for x in second])
            assert found[name].n == len(both)
            assert found[name].value == pytest.approx(expected, abs=1e-9, nan_ok=True)


@QUICK
@given(TABLES.filter(pairable))
def test_the_names_and_order_of_items_and_raters_do_not_matter(table: list[list[float | None]]):
    one, other = agree(ballots(table)), agree(ballots([row[::-1] for row in table[::-1]]))
    for measure in ("raw", "fleiss", "nominal", "ordinal", "interval"):
        assert getattr(one, measure).value == pytest.approx(getattr(other, measure).value, abs=1e-9, nan_ok=True)


def test_numbers_on_another_scale_agree_as_well():
    table = [[1.0, 2.0, 2.0], [3.0, 3.0, 5.0], [5.0, 5.0, 5.0], [1.0, 1.0, 2.0]]
    one = agree(ballots(table)).interval
    other = agree(ballots([[100 * said + 7 for said in row] for row in table])).interval
    assert one is not None
    assert other is not None
    assert one.value == pytest.approx(other.value)


def test_very_small_numbers_agree_as_well():
    counts = np.array([[2.0, 0, 1], [0, 3, 0], [0, 1, 2], [3, 0, 0]])
    plain, small = (krippendorff_alpha(counts, interval(np.array([0.0, 1, 2]) * scale)) for scale in (1.0, 1e-7))
    assert small.value == pytest.approx(plain.value)


def test_of_two_classes_all_distances_are_alike():
    counts = np.array([[2.0, 1], [0, 3], [3, 0], [1, 1], [2, 0]])
    values = [krippendorff_alpha(counts, each).value for each in (nominal, ordinal, interval(np.array([3.0, 9.0])))]
    assert values == pytest.approx([values[0]] * 3)


# Kendall's W


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([[1, 2, 3]] * 3, 1.0),
        ([[1, 2, 3], [2, 3, 1], [3, 1, 2]], 0.0),
        ([[1, 2, 3], [1, 2, 3], [1, 3, 2]], 7 / 9),
        ([[1, 2, 3, 4], [4, 3, 2, 1]], 0.0),
    ],
    ids=["identical", "in a circle", "one differs", "opposite"],
)
def test_kendalls_w_of_plain_cases(ranks: list[list[int]], expected: float):
    assert kendall_w(np.array(ranks, dtype=float)) == pytest.approx(expected, abs=1e-12)


@QUICK
@given(st.integers(2, 5).flatmap(lambda n: st.lists(st.permutations(range(1, n + 1)), min_size=2, max_size=6)))
def test_kendalls_w_is_the_mean_spearman_correlation_on_a_line(ranks: list[list[int]]):
    """W = (1 + (m - 1) mean rho) / m, for ranks without ties (Kendall 1970)."""
    table, raters = np.array(ranks, dtype=float), len(ranks)
    rho = [spearmanr(table[i], table[j]).statistic for i in range(raters) for j in range(i)]
    assert kendall_w(table) == pytest.approx((1 + (raters - 1) * np.mean(rho)) / raters, abs=1e-9)


@QUICK
@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=2, max_size=2))
def test_kendalls_w_of_two_raters_with_ties_is_their_spearman_correlation_if_both_tie_alike(said: list[list[int]]):
    one = said[0]
    tables = [np.array([rankdata(one), rankdata([one[at] for at in order])]) for order in permutations(range(4))]
    for table in tables[:8]:
        if len(set(one)) == 1:
            assert np.isnan(kendall_w(table))
            continue
        rho = spearmanr(table[0], table[1]).statistic
        assert kendall_w(table) == pytest.approx((1 + rho) / 2, abs=1e-9)


def test_kendalls_w_is_high_where_tau_is():
    rng = np.random.default_rng(0)
    base = rng.permutation(8)
    near, far = (np.array([rankdata(base + rng.normal(0, noise, 8)) for _ in range(2)]) for noise in (1.0, 20.0))
    assert kendalltau(*near).statistic > kendalltau(*far).statistic
    assert kendall_w(near) > kendall_w(far)


def test_the_mean_w_is_over_prompts_and_leaves_out_raters_who_missed_a_response():
    agreed = [("ann", "a", 1.0), ("ann", "b", 2.0), ("bob", "a", 3.0), ("bob", "b", 9.0), ("cy", "a", 5.0)]
    opposed = [("ann", "a", 1.0), ("ann", "b", 2.0), ("bob", "a", 9.0), ("bob", "b", 3.0)]
    alone = [("ann", "a", 1.0), ("ann", "b", 2.0)]
    tied = [("ann", "a", 1.0), ("ann", "b", 1.0), ("bob", "a", 2.0), ("bob", "b", 2.0)]
    found = mean_kendall_w({"p": agreed, "q": opposed, "r": alone, "s": tied})
    assert found is not None
    assert (found.value, found.n) == (0.5, 2)
    assert mean_kendall_w({"r": alone, "s": tied}) is None


# Where there is nothing to agree on


def everything(found: Agreement) -> list[float]:
    return [each.value for each in (found.fleiss, found.nominal, *found.pairwise.values())]


def test_one_class_alone_has_raw_agreement_and_no_kappa():
    found = agree(ballots([[1.0, 1.0], [1.0, 1.0]]))
    assert found.raw.value == 1.0
    assert np.isnan(everything(found)).all()
    assert (found.ordinal, found.interval) == (None, None)


def test_raters_who_never_share_an_item_are_told_apart_from_those_who_do():
    found = agree(ballots([[1.0, 2.0, None], [2.0, 2.0, None], [None, None, 1.0]]))
    assert set(found.pairwise) == {"r0 & r1"}
    assert (found.items, found.pairable, found.votes, found.pairs) == (3, 2, 5, 2)


def test_of_many_raters_the_pairs_with_most_items_are_told_and_the_others_counted():
    """16 raters of 30 items are 120 pairs; the first two have two items more in common."""
    rows: list[list[float | None]] = [[float((i + j) % 3) for j in range(16)] for i in range(30)]
    rows += [[1.0, 2.0, *([MISSING] * 14)]] * 2
    found = agree(ballots(rows))
    assert (len(found.pairwise), found.pairs_left_out) == (100, 20)
    assert found.pairwise["r0 & r1"].n == 32
