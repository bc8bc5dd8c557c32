"""What a person reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
from evaluator_support import compare, human, label

from evaluator.alignment import Alignment, evaluate
from evaluator.intervals import Interval
from evaluator.text import alignment_lines, percent, verdict


@pytest.fixture
def result() -> Alignment:
    return compare({"a": (label("a", 0.9, 0.1), "0"), "b": (label("b", 0.9, 0.8), "1")})


def interval(value: float, low: float, high: float) -> Interval:
    return Interval(value, low, high, 48)


@pytest.mark.parametrize(
    ("aligned", "words"),
    [
        (interval(0.5, 0.4, 0.6), "holds 50 %"),
        (interval(0.6, 0.5, 0.7), "holds 50 %"),
        (interval(0.4, 0.3, 0.5), "holds 50 %"),
        (interval(0.7, 0.61, 0.8), "more often than a coin would (at least 61 %)"),
        (interval(0.3, 0.2, 0.45), "turned round?"),
    ],
    ids=["even", "touches from above", "touches from below", "above", "below"],
)
def test_the_verdict_compares_with_a_coin_by_the_interval(result: Alignment, aligned: Interval, words: str):
    assert words in verdict(replace(result, alignment=aligned))[0]


@pytest.mark.parametrize(
    ("same", "first", "words"),
    [
        (interval(0.8, 0.7, 0.9), interval(0.9, 0.8, 1.0), "80 % of pairs, mostly the first"),
        (interval(0.8, 0.7, 0.9), interval(0.1, 0.0, 0.2), "80 % of pairs, mostly the second"),
        (interval(0.8, 0.7, 0.9), interval(0.4, 0.2, 0.6), "80 % of pairs: there"),
    ],
    ids=["first", "second", "not shown"],
)
def test_the_verdict_names_a_preferred_position(result: Alignment, same: Interval, first: Interval, words: str):
    lines = verdict(replace(result, same_position=same, first_position=first))
    assert words in lines[1]


@pytest.mark.parametrize("same", [None, interval(0.2, 0.1, 0.3)], ids=["not asked", "seldom"])
def test_the_verdict_is_silent_about_position_where_there_is_little_to_say(result: Alignment, same: Interval | None):
    assert len(verdict(replace(result, same_position=same))) == 1


def test_a_percentage_has_its_interval_and_items():
    assert percent(interval(0.625, 0.48, 0.75)).strip() == "62.5 % [48.0, 75.0], n 48"
    assert percent(None) == "-"


def test_the_table_has_a_line_for_every_number_and_ends_with_the_verdict(result: Alignment):
    lines = alignment_lines(result)
    for words in ("majority", "single votes", "same position", "longer", "kappa", "Brier", "ECE"):
        assert sum(words in line for line in lines[:9]) == 1, words
    assert lines[-len(verdict(result)) :] == verdict(result)


def test_the_table_counts_ties_failures_and_strangers():
    rows = {"a": human("a", "0"), "b": human("b", "t")}
    labels = [label("a", 0.5), label("b", 0.9), label("stranger", 0.9)]
    text = "\n".join(alignment_lines(evaluate(labels, rows, failures={"nan": 3})))
    for words in ("3 labels", "labeler 1 (half right)", "human 1 (left out)", "1 labels without a human row", "3 nan"):
        assert words in text


def test_raters_are_listed_where_there_are_several(result: Alignment):
    assert not any("rater r0" in line for line in alignment_lines(result))
    lines = alignment_lines(compare({"a": (0.9, "01")} | {"b": (0.9, "00")}))
    assert [line.split()[1] for line in lines if line.startswith("  rater")] == ["r0", "r1"]


def test_numbers_by_column_are_listed():
    rows = {"a": human("a", "0", kind="code"), "b": human("b", "0", kind="prose")}
    lines = alignment_lines(evaluate([label("a", 0.9), label("b", 0.1)], rows, by="kind"))
    assert [line.split()[:2] for line in lines if line.startswith(("  code", "  prose"))] == [
        ["code", "100.0"],
        ["prose", "0.0"],
    ]
