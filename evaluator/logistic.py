"""Logistic regression with errors that hold for clusters and for soft outcomes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluator.intervals import Array, IntArray, cluster_sums

STEPS = 60
FLAT = 1e-9
"""Curvature, relative to the number of rows, below which a coefficient is not told by the data."""


class NotIdentifiedError(ValueError):
    """The data do not tell the coefficients."""


@dataclass(frozen=True)
class Fit:
    """`coefficients` (D,), and by how much each cluster moves them, (C, D): Huber's sandwich (1967)."""

    coefficients: Array
    influences: Array


def fit(features: Array, outcomes: Array, cluster: IntArray) -> Fit:
    """Maximum likelihood of outcomes in [0, 1] (N,) given features (N, D), by Newton's method.

    Raises NotIdentifiedError: too few rows, features that say the same, or outcomes that the features separate.
    """
    count, size = features.shape
    if count <= size:
        raise NotIdentifiedError(f"{count} results are too few for {size} coefficients")
    if np.linalg.matrix_rank(features) < size:
        raise NotIdentifiedError("the lengths differ in the same way everywhere, so their effect cannot be told apart")
    coefficients = np.zeros(size)
    best = _loss(features, outcomes, coefficients)
    for _ in range(STEPS):
        chance = expit(features @ coefficients)
        gradient = features.T @ (outcomes - chance)
        curvature = (features * (chance * (1 - chance))[:, None]).T @ features
        if np.linalg.eigvalsh(curvature)[0] < FLAT * count:
            raise NotIdentifiedError("the lengths separate wins from losses, so the effect has no finite estimate")
        step = np.linalg.solve(curvature, gradient)
        while (now := _loss(features, outcomes, coefficients + step)) > best + 1e-12 * count and np.abs(
            step
        ).max() > 1e-12:
            step /= 2
        coefficients, best = coefficients + step, now
        if np.abs(step).max() < 1e-10:
            break
    chance = expit(features @ coefficients)
    curvature = (features * (chance * (1 - chance))[:, None]).T @ features
    pulls = cluster_sums(cluster, features * (outcomes - chance)[:, None])
    return Fit(coefficients, pulls @ np.linalg.inv(curvature))


def expit(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(x / 2))


def logit(p: Array) -> Array:
    return np.log(p) - np.log1p(-p)


def _loss(features: Array, outcomes: Array, coefficients: Array) -> float:
    line = features @ coefficients
    return float((np.logaddexp(0, line) - outcomes * line).sum())
