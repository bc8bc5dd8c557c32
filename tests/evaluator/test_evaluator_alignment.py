"""Labels against votes, by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from evaluator_support import compare, human, label
from hypothesis import given, settings
from hypothesis import strategies as st

from data.records import Comparison, Vote
from evaluator.alignment import TIE, evaluate, majority
from evaluator.intervals import NoDataError

QUICK = settings(max_examples=25)


def test_alignment_is_the_share_of_items_where_the_labeler_agrees():
    found = compare({"a": (0.9, "0"), "b": (0.2, "1"), "c": (0.6, "1"), "d": (0.51, "0")})
    assert (found.alignment.value, found.alignment.n) == (0.75, 4)


def test_a_tie_of_the_labeler_is_half_right():
    found = compare({"a": (0.5, "0"), "b": (0.5, "1"), "c": (0.9, "0")})
    assert found.alignment.value == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert found.ties == {"labeler": 2, "human": 0}


TIED = {"a": (0.9, "0"), "b": (0.2, "1"), "c": (0.6, "1"), "d": (0.4, "0"), "e": (0.7, "0")}


@pytest.mark.parametrize("name", ["alignment", "kappa", "brier", "ece", "prefers_longer", "against_raters"])
def test_items_on_which_people_are_tied_change_no_number(name: str):
    """The policy that evaluator/alignment.py states: such items have no right answer and count in ties.human alone."""
    without = compare(TIED)
    found = compare({**TIED, "tied": (0.9, "t"), "tied too": (0.1, "tt")})
    assert getattr(found, name) == getattr(without, name)
    assert found.ties == {"labeler": 0, "human": 2}


def test_a_labelers_tie_where_people_are_tied_too_counts_for_people():
    assert compare({"a": (0.9, "0"), "b": (0.5, "t")}).ties == {"labeler": 0, "human": 1}


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ("0", 0),
        ("1", 1),
        ("t", TIE),
        ("001", 0),
        ("011", 1),
        ("01", TIE),
        ("0t", TIE),
        ("01t", TIE),
        ("001t", 0),
        ("00tt", TIE),
        ("0ttt", TIE),
        ("0011t", TIE),
    ],
)
def test_the_majority_is_what_most_said(votes: str, expected: int):
    assert majority(human("a", votes).votes) == expected


@QUICK
@given(st.text("01t", min_size=1, max_size=8))
def test_the_majority_turns_round_with_the_votes(votes: str):
    swapped = votes.translate(str.maketrans("01", "10"))
    assert majority(human("a", votes).votes) == {0: 1, 1: 0, TIE: TIE}[majority(human("a", swapped).votes)]


def test_alignment_is_with_the_majority_of_several_raters():
    found = compare({"a": (0.9, "001"), "b": (0.9, "011"), "c": (0.9, "01")})
    assert (found.alignment.value, found.alignment.n, found.ties["human"]) == (0.5, 2, 1)


def test_single_votes_are_averaged_by_item_first():
    """a: 2 of 3 votes; b: 1 of 1; the tie vote of c says nothing, its other vote does."""
    found = compare({"a": (0.9, "001"), "b": (0.1, "1"), "c": (0.9, "1t")})
    assert (found.against_raters.value, found.against_raters.n) == (pytest.approx((2 / 3 + 1 + 0) / 3), 3)


def test_a_labelers_tie_is_half_right_with_every_vote():
    assert compare({"a": (0.5, "001"), "b": (0.9, "0")}).against_raters.value == pytest.approx(0.75)


def test_every_rater_is_compared_alone():
    found = compare({"a": (0.9, "01"), "b": (0.9, "11"), "c": (0.1, "t1")})
    assert {name: (each.value, each.n) for name, each in found.raters.items()} == {
        "r0": (0.5, 2),
        "r1": (pytest.approx(1 / 3), 3),
    }


def test_votes_of_one_rater_on_one_item_are_one_item():
    """Files with a row a vote and no rater column name everyone `human`: resampling votes would fake certainty."""
    same = tuple(Vote(choice=0) for _ in range(5))
    rows = {name: Comparison(id=name, prompt="p", responses=("x", "y"), votes=same) for name in "abcd"}
    found = evaluate([label(name, 0.9 if name < "c" else 0.1) for name in "abcd"], rows)
    assert (found.raters["human"].value, found.raters["human"].n) == (0.5, 4)


def test_the_same_position_is_the_share_of_labels_that_follow_the_order():
    table = {
        "a": (label("a", 0.9, 0.8), "0"),  # the first both times
        "b": (label("b", 0.1, 0.2), "0"),  # the second both times
        "c": (label("c", 0.9, 0.1), "0"),  # the text
        "d": (label("d", 0.8, 0.7), "0"),  # the first both times
        "e": (label("e", 0.5, 0.7), "0"),  # a tie has no position
    }
    found = compare(table)
    assert found.same_position is not None
    assert found.first_position is not None
    assert (found.same_position.value, found.same_position.n) == (0.75, 4)
    assert (found.first_position.value, found.first_position.n) == (pytest.approx(2 / 3), 3)


def test_one_order_says_nothing_about_position():
    found = compare({"a": (0.9, "0"), "b": (0.1, "0")})
    assert (found.same_position, found.first_position) == (None, None)


def test_a_labeler_that_never_follows_the_position_has_no_first_position():
    found = compare({"a": (label("a", 0.9, 0.1), "0")})
    assert found.same_position is not None
    assert (found.same_position.value, found.first_position) == (0.0, None)


def test_positions_are_counted_where_nobody_voted_too():
    rows = {"a": human("a", "0"), "b": human("b", "")}
    found = evaluate([label("a", 0.9, 0.1), label("b", 0.9, 0.9)], rows)
    assert found.same_position is not None
    assert (found.same_position.n, found.alignment.n) == (2, 1)


def test_always_the_longer_is_the_baseline_of_length():
    rows = {
        "a": human("a", "0", ("longer", "short")),
        "b": human("b", "0", ("short", "longer")),
        "c": human("c", "1", ("same!", "equal")),
        "d": human("d", "1", ("x", "xx")),
    }
    found = evaluate([label(name, 0.9) for name in rows], rows)
    assert found.prefers_longer.value == pytest.approx((1 + 0 + 0.5 + 1) / 4)


def test_calibration_is_of_the_probability_that_the_first_is_better():
    found = compare({"a": (0.9, "0"), "b": (0.8, "1"), "c": (0.3, "1"), "d": (0.5, "0")})
    assert found.brier.value == pytest.approx((0.01 + 0.64 + 0.09 + 0.25) / 4)
    assert found.ece.value == pytest.approx((0.1 + 0.8 + 0.3 + 0.0) / 4)


def test_kappa_is_of_choice_against_majority():
    found = compare({"a": (0.9, "0"), "b": (0.9, "0"), "c": (0.1, "1"), "d": (0.9, "1")})
    assert found.kappa.value == pytest.approx((0.75 - 0.5) / 0.5)


def test_numbers_by_a_column_of_the_human_file():
    rows = {
        "a": human("a", "0", kind="code"),
        "b": human("b", "1", kind="code"),
        "c": human("c", "0", kind="prose"),
        "d": human("d", "t", kind="tied"),
        "e": human("e", "0"),
    }
    found = evaluate([label(name, 0.9) for name in rows], rows, by="kind")
    assert {name: (each.value, each.n) for name, each in found.by.items()} == {"code": (0.5, 2), "prose": (1.0, 1)}


def test_a_column_that_is_not_there_is_refused_and_the_others_are_named():
    rows = {"a": human("a", "0", kind="code", source="x")}
    with pytest.raises(NoDataError, match="--by knid: no such column; there are kind, source"):
        evaluate([label("a", 0.9)], rows, by="knid")


def test_labels_without_a_human_row_are_counted_and_left_out():
    found = evaluate([label("a", 0.9), label("b", 0.9)], {"a": human("a", "0"), "z": human("z", "0")})
    assert (found.labels, found.unmatched, found.alignment.n) == (2, 1, 1)


@pytest.mark.parametrize(
    ("labels", "rows", "message"),
    [
        ([label("a", 0.9)], {"b": human("b", "0")}, "same file"),
        ([], {"b": human("b", "0")}, "same file"),
        ([label("a", 0.9)], {"a": human("a", "")}, "have no votes"),
        ([label("a", 0.9)], {"a": human("a", "01t")}, "tied on all 1"),
    ],
    ids=["another file", "no labels", "no votes", "only ties"],
)
def test_nothing_to_compare_is_refused(labels, rows, message: str):
    with pytest.raises(NoDataError, match=message):
        evaluate(labels, rows)


def test_failures_are_passed_on():
    failures = {"nan": 3, "too_long": 1}
    assert compare({"a": (0.9, "0")}, failures=failures).json()["failures"] == failures


def test_reports_have_all_that_the_design_promises_and_every_number_its_interval():
    rows = {name: human(name, votes, kind=name) for name, votes in {"a": "00", "b": "1t", "c": "10"}.items()}
    labels = [label("a", 0.9, 0.2), label("b", 0.9, 0.8), label("c", 0.5, 0.5)]
    report = evaluate(labels, rows, by="kind").json()
    json.dumps(report, allow_nan=False)
    assert {"alignment", "same_position", "kappa", "brier", "ece", "ties", "failures", "by"} <= set(report)
    single = ["alignment", "same_position", "first_position", "kappa", "brier", "ece", "prefers_longer"]
    intervals = [report[name] for name in [*single, "against_raters"]]
    intervals += [*report["by"].values(), *report["raters"].values()]
    assert all(set(each) == {"value", "low", "high", "n"} for each in intervals)


def test_a_kappa_that_does_not_exist_is_null():
    report = compare({"a": (0.9, "0"), "b": (0.8, "0")}).json()
    assert report["kappa"] == {"value": None, "low": None, "high": None, "n": 2}
    json.dumps(report, allow_nan=False)


def test_a_random_labelers_interval_holds_a_coins_half():
    rng = np.random.default_rng(5)
    table = {f"{n}": (float(rng.random()), str(rng.integers(0, 2))) for n in range(300)}
    found = compare(table)
    assert found.alignment.low < 0.5 < found.alignment.high
    assert found.kappa.low < 0 < found.kappa.high


@QUICK
@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["0", "1"])), min_size=1, max_size=20))
def test_swapping_every_pair_changes_no_number(items: list[tuple[float, str]]):
    rounded = [(round(p, 2), vote) for p, vote in items]
    one = compare({f"{n}": item for n, item in enumerate(rounded)})
    other = compare({f"{n}": (1 - p, str(1 - int(vote))) for n, (p, vote) in enumerate(rounded)})
    assert one.alignment == other.alignment
    assert one.brier.value == pytest.approx(other.brier.value)
    assert one.kappa.value == pytest.approx(other.kappa.value, nan_ok=True)


def test_an_evaluation_is_the_same_every_time():
    table = {f"{n}": (n / 40, "01t"[n % 3]) for n in range(40)}
    assert compare(table) == compare(table)
    assert not math.isnan(compare(table).kappa.value)
