"""Cohen's kappa, against scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from evaluator.agreement import cohen_kappa, confusion

PAIRS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=80)


def kappa(first: list[int], second: list[int]) -> float:
    return float(cohen_kappa(confusion(np.array(first), np.array(second), 3)[None])[0])


@settings(max_examples=100)
@given(PAIRS)
def test_kappa_is_scikit_learns(pairs: list[tuple[int, int]]):
    first, second = (list(each) for each in zip(*pairs, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = cohen_kappa_score(first, second, labels=[0, 1, 2])
    assert kappa(first, second) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@settings(max_examples=50)
@given(PAIRS)
def test_confusion_is_scikit_learns(pairs: list[tuple[int, int]]):
    first, second = (np.array(each) for each in zip(*pairs, strict=True))
    assert (confusion(first, second, 3) == confusion_matrix(first, second, labels=[0, 1, 2])).all()


def test_raters_who_all_say_one_thing_have_no_kappa():
    assert np.isnan(kappa([1, 1, 1], [1, 1, 1]))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [([0, 1, 0, 1], [0, 1, 0, 1], 1.0), ([0, 1, 0, 1], [1, 0, 1, 0], -1.0), ([0, 0, 1, 1], [0, 1, 0, 1], 0.0)],
    ids=["agree", "contradict", "as by chance"],
)
def test_kappa_of_the_plain_cases(first: list[int], second: list[int], expected: float):
    assert kappa(first, second) == pytest.approx(expected)


def test_many_tables_at_once_are_each_alone():
    rng = np.random.default_rng(0)
    tables = rng.integers(1, 20, (5, 3, 3)).astype(float)
    assert cohen_kappa(tables) == pytest.approx([cohen_kappa(table[None])[0] for table in tables])
