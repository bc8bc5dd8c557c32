"""Does a stated probability mean what it says?"""

from __future__ import annotations

import numpy as np

from evaluator.intervals import Array, Interval, mean_interval, weighted_interval

BINS = 10


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
    gap = member * (confidence - right)[:, None]

    def statistic(weights: Array) -> Array:
        return np.abs(weights @ gap).sum(1) / weights.sum(1)

    return weighted_interval(len(p), statistic)
