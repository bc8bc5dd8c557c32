"""Does a stated probability mean what it says?"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from evaluator.intervals import Array, Interval, mean_interval, normal_interval, sums_interval
from evaluator.logistic import NotIdentifiedError, fit, logit

BINS = 10
SURE = 1e-9
"""A probability closer to 0 or 1 than this is taken to be this close: certainty has no log-odds."""


@dataclass(frozen=True)
class Bin:
    """Items of about one confidence, and how often they were right."""

    low: float
    high: float
    confidence: float
    accuracy: Interval

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "accuracy": self.accuracy.json()}


@dataclass(frozen=True)
class Temperature:
    """By what the log-odds must be divided to fit best: above 1 the labeler is too sure (Guo et al. 2017). `ece` is the
    calibration error that is left then."""

    temperature: Interval
    ece: float

    def json(self) -> dict[str, Any]:
        return {**self.temperature.json(), "ece_after": self.ece}


def brier(p: Array, outcome: Array) -> Interval:
    """Mean squared distance of the probability from what happened (Brier 1950); .25 is what always saying .5 gets."""
    return mean_interval((p - outcome) ** 2)


def expected_calibration_error(p: Array, outcome: Array) -> Interval:
    """Mean distance of confidence from accuracy over ten bins of confidence, weighted (Naeini et al. 2015).

    Confidence is max(p, 1 - p), from .5 to 1; an exact tie is right by half.
    """
    confidence = np.maximum(p, 1 - p)
    right = np.where(p == 0.5, 0.5, (p > 0.5) == (outcome == 1))
    index = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    member = np.zeros((len(p), BINS))
    member[np.arange(len(p)), index] = 1
    rows = np.column_stack([member * (confidence - right)[:, None], np.ones(len(p))])
    found = sums_interval(rows, lambda sums: np.abs(sums[:, :-1]).sum(1) / sums[:, -1], mirrored=True)
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def reliability(p: Array, outcome: Array) -> list[Bin]:
    """The bins of the calibration error that hold items, for a curve."""
    confidence, right = np.maximum(p, 1 - p), np.where(p == 0.5, 0.5, (p > 0.5) == (outcome == 1))
    index = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    found: list[Bin] = []
    for at in np.unique(index):
        inside = index == at
        low = 0.5 + at / (2 * BINS)
        found.append(
            Bin(
                float(low),
                float(low + 0.5 / BINS),
                float(confidence[inside].mean()),
                mean_interval(right[inside].astype(np.float64)),
            )
        )
    return found


def temperature(p: Array, outcome: Array) -> Temperature | None:
    """None where all labels are ties, or are right or wrong throughout: then no temperature is the best."""
    line = logit(np.clip(p, SURE, 1 - SURE))
    if not line.any():
        return None
    try:
        found = fit(line[:, None], outcome.astype(np.float64), np.arange(len(p)))
    except NotIdentifiedError:
        return None
    sharpness = normal_interval(float(found.coefficients[0]), found.influences[:, 0])
    if sharpness.value <= 0:
        return None
    high = 1 / sharpness.low if sharpness.low > 0 else float("nan")
    fitted = 0.5 * (1 + np.tanh(line * sharpness.value / 2))
    return Temperature(
        Interval(1 / sharpness.value, 1 / sharpness.high, high, sharpness.n),
        expected_calibration_error(fitted, outcome).value,
    )
