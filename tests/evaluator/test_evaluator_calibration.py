"""Calibration, against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from evaluator.calibration import BINS, brier, calibrated_error, expected_calibration_error

PAIRS = st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0])), min_size=1, max_size=60)
QUICK = settings(max_examples=40)


def plain_ece(p: list[float], outcome: list[float]) -> float:
    """Bin by bin: how many items are in it, times how far its confidence is from its accuracy."""
    bins: dict[int, list[tuple[float, float]]] = {}
    for said, was in zip(p, outcome, strict=True):
        confidence = max(said, 1 - said)
        right = 0.5 if said == 0.5 else float((said > 0.5) == (was == 1))
        bins.setdefault(min(int((confidence - 0.5) * 2 * BINS), BINS - 1), []).append((confidence, right))
    total = 0.0
    for members in bins.values():
        confidence = sum(each for each, _ in members) / len(members)
        accuracy = sum(each for _, each in members) / len(members)
        total += len(members) / len(p) * abs(confidence - accuracy)
    return total


def arrays(pairs: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p for p, _ in pairs]), np.array([outcome for _, outcome in pairs])


@QUICK
@given(PAIRS)
def test_ece_is_the_plain_loops(pairs: list[tuple[float, float]]):
    p, outcome = arrays(pairs)
    found = expected_calibration_error(p, outcome)
    assert found.value == pytest.approx(plain_ece(p.tolist(), outcome.tolist()), abs=1e-12)
    assert not found.known or 0 <= found.low <= found.value <= found.high <= 1


@QUICK
@given(PAIRS)
def test_brier_is_scikit_learns(pairs: list[tuple[float, float]]):
    p, outcome = arrays(pairs)
    assert brier(p, outcome).value == pytest.approx(brier_score_loss(outcome, p, pos_label=1.0))


@QUICK
@given(PAIRS)
def test_neither_changes_when_the_sides_are_swapped(pairs: list[tuple[float, float]]):
    p, outcome = arrays([(round(p, 3), was) for p, was in pairs])
    assert brier(1 - p, 1 - outcome).value == pytest.approx(brier(p, outcome).value)


@pytest.mark.parametrize(
    ("p", "outcome", "expected"),
    [
        ([1.0, 0.0, 1.0], [1, 0, 1], 0.0),
        ([1.0, 1.0], [0, 0], 1.0),
        ([0.5] * 4, [1, 0, 1, 1], 0.0),
        ([0.7] * 10, [1] * 7 + [0] * 3, 0.0),
        ([0.9] * 10, [1] * 6 + [0] * 4, 0.3),
        ([0.1] * 10, [1] * 6 + [0] * 4, 0.5),
    ],
    ids=["right", "wrong", "a shrug", "as sure as right", "too sure", "too sure of the other side"],
)
def test_ece_of_the_plain_cases(p: list[float], outcome: list[int], expected: float):
    assert expected_calibration_error(np.array(p), np.array(outcome, dtype=float)).value == pytest.approx(expected)


def test_always_saying_half_has_a_brier_score_of_a_quarter():
    assert brier(np.full(5, 0.5), np.array([1.0, 0, 0, 1, 0])).value == 0.25


@pytest.mark.parametrize("truth", [0.0, 0.1])
def test_an_interval_of_the_calibration_error_holds_the_truth_in_at_least_19_cases_of_20(truth: float):
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        p = rng.uniform(0.6, 0.9, 300)
        found = expected_calibration_error(p, (rng.random(300) < p - truth).astype(float))
        held += found.low <= truth + 1e-9 and found.high >= truth
    assert held >= 190


def test_what_a_calibrated_labeler_shows_lies_where_it_is_said_to_lie():
    rng = np.random.default_rng(4)
    p = rng.random(200)
    said = calibrated_error(p)
    assert said is not None
    shown = [expected_calibration_error(p, (rng.random(200) < p).astype(float)).value for _ in range(300)]
    assert said.value == pytest.approx(np.mean(shown), abs=0.01)
    assert np.mean([said.low <= each <= said.high for each in shown]) > 0.9


def test_a_calibrated_labeler_is_nearly_calibrated_in_the_sample():
    rng = np.random.default_rng(0)
    p = rng.random(4000)
    found = expected_calibration_error(p, (rng.random(4000) < p).astype(float))
    assert found.value < 0.03
