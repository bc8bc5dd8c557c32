"""How far do two raters agree beyond chance?"""

from __future__ import annotations

import numpy as np

from evaluator.intervals import Array


def cohen_kappa(tables: Array) -> Array:
    """Cohen's kappa (1960) of confusion tables of counts (B, K, K) as (B,); NaN where chance alone agrees fully."""
    shares = tables / tables.sum((1, 2), keepdims=True)
    observed = np.trace(shares, axis1=1, axis2=2)
    chance = (shares.sum(2) * shares.sum(1)).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance < 1 - 1e-12, (observed - chance) / (1 - chance), np.nan)


def confusion(first: Array, second: Array, classes: int) -> Array:
    """Counts of (first rater's class, second rater's class), (K, K)."""
    cells = first.astype(int) * classes + second.astype(int)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes).astype(np.float64)
