"""Does a stated probability mean what it says?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evaluator.intervals import LEVEL, Array, IntArray, Interval, drawn_sums, mean_interval, normal_interval
from evaluator.logistic import NotIdentifiedError, expit, fit, logit

BINS = 10
SIMULATIONS = 400
MOST_SIMULATED = 20_000
"""Items up to which a calibrated labeler is simulated; with more, its error is next to nothing."""

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
    """By what the log-odds must be divided to fit best: above 1 the labeler is too sure (Guo et al. 2017). `ece` is
    the calibration error that is left then."""

    temperature: Interval
    ece: float

    def json(self) -> dict[str, Any]:
        return {**self.temperature.json(), "ece_after": self.ece}


def brier(p: Array, outcome: Array, cluster: IntArray | None = None) -> Interval:
    """Mean squared distance of the probability from what happened (Brier 1950); .25 is what always saying .5 gets."""
    return mean_interval((p - outcome) ** 2, cluster)


def expected_calibration_error(p: Array, outcome: Array) -> Interval:
    """Mean distance of confidence from accuracy over ten bins of confidence, weighted (Naeini et al. 2015).

    Confidence is max(p, 1 - p), from .5 to 1; an exact tie is right by half. The interval is as wide as all bins'
    errors together can be, by the triangle inequality: it holds the truth in at least 95 %, and percentiles of a
    distance, which only grows when noise is added, would not.
    """
    confidence, right, index = _binned(p, outcome)
    member = np.zeros((len(p), BINS))
    member[np.arange(len(p)), index] = 1
    gaps = member * (confidence - right)[:, None]
    value = float(np.abs(gaps.sum(0)).sum() / len(p))
    reach = float(np.quantile(np.abs(drawn_sums(gaps) - gaps.sum(0)).sum(1), LEVEL)) / len(p)
    if reach == 0:
        return Interval(value, math.nan, math.nan, len(p))
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach), len(p))


def calibrated_error(p: Array) -> Interval | None:
    """What a perfectly calibrated labeler would show on the same probabilities, which is never 0 on a finite sample:
    the mean of simulated outcomes, and where 95 % of them lie; None for so many items that it is next to nothing."""
    if len(p) > MOST_SIMULATED:
        return None
    confidence, _, index = _binned(p, p)
    member = np.zeros((len(p), BINS))
    member[np.arange(len(p)), index] = 1
    right = np.random.default_rng(0).random((SIMULATIONS, len(p))) < confidence
    shown = np.abs((confidence - right) @ member).sum(1) / len(p)
    low, high = np.quantile(shown, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(shown.mean()), float(low), float(high), len(p))


def _binned(p: Array, outcome: Array) -> tuple[Array, Array, IntArray]:
    """Confidence, whether it was right, and the bin it is in, each (N,)."""
    confidence = np.maximum(p, 1 - p)
    right = np.where(p == 0.5, 0.5, ((p > 0.5) == (outcome == 1)).astype(np.float64))
    return confidence, right, np.minimum(((confidence - 0.5) * 2 * BINS).astype(np.int64), BINS - 1)


def reliability(p: Array, outcome: Array) -> list[Bin]:
    """The bins of the calibration error that hold items, for a curve."""
    confidence, right, index = _binned(p, outcome)
    found: list[Bin] = []
    for at in np.unique(index):
        inside = index == at
        low = 0.5 + at / (2 * BINS)
        found.append(
            Bin(
                float(low),
                float(low + 0.5 / BINS),
                float(confidence[inside].mean()),
                mean_interval(right[inside]),
            )
        )
    return found


def temperature(line: Array, outcome: Array, cluster: IntArray | None = None) -> Temperature | None:
    """Of log-odds (N,). None where all are ties, or are right or wrong throughout: then no temperature is the best."""
    if not line.any():
        return None
    try:
        found = fit(line[:, None], outcome.astype(np.float64), np.arange(len(line)) if cluster is None else cluster)
    except NotIdentifiedError:
        return None
    sharpness = normal_interval(float(found.coefficients[0]), found.influences[:, 0])
    if sharpness.value <= 0:
        return None
    high = 1 / sharpness.low if sharpness.low > 0 else float("nan")
    fitted = expit(line * sharpness.value)
    return Temperature(
        Interval(1 / sharpness.value, 1 / sharpness.high, high, sharpness.n),
        expected_calibration_error(fitted, outcome).value,
    )


def log_odds(p: Array) -> Array:
    return logit(np.clip(p, SURE, 1 - SURE))
