"""How sure is a number? 95 % intervals by resampling items, so that what belongs to one item stays together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import RlaifError

Array = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
_CELLS = 4_000_000
"""Numbers held at once while resampling."""


class NoDataError(RlaifError):
    """A metric was asked of nothing, or of what cannot answer it."""


@dataclass(frozen=True)
class Interval:
    """A value and where 95 % of the resampled values lie; `n` is the number of items."""

    value: float
    low: float
    high: float
    n: int

    def json(self) -> dict[str, float | int | None]:
        """For reports: NaN, which JSON does not have, becomes null."""
        return {
            name: None if isinstance(each, float) and math.isnan(each) else each for name, each in asdict(self).items()
        }


def mean_interval(values: Array, seed: int = 0) -> Interval:
    """The mean of one value an item, with a percentile bootstrap (Efron 1979).

    Where all items say the same, resampling cannot show any doubt: for 0 or 1 Wilson's interval (1927) does, for other
    values the bounds are NaN, unknown.
    """
    count = len(values)
    if count == 0:
        raise NoDataError("no items to take a mean of")
    mean = float(values.mean())
    distinct, frequency = np.unique(values, return_counts=True)
    if len(distinct) == 1:
        return (
            Interval(mean, *wilson(mean, count), count)
            if mean in {0.0, 1.0}
            else Interval(mean, math.nan, math.nan, count)
        )
    rng = np.random.default_rng(seed)
    if len(distinct) <= 64:
        draws = rng.multinomial(count, frequency / count, RESAMPLES) @ distinct / count
    else:
        draws = np.concatenate([values[rng.integers(0, count, (k, count))].mean(1) for k in _pieces(count)])
    return _percentiles(mean, draws, count)


def table_interval(table: Array, statistic: Callable[[Array], Array], seed: int = 0) -> Interval:
    """A statistic of a contingency table of counts, resampling items. `statistic` maps (B, *table.shape) to (B,)."""
    count = int(table.sum())
    if count == 0:
        raise NoDataError("no items to count")
    value = float(statistic(table[None])[0])
    draws = np.random.default_rng(seed).multinomial(count, table.ravel() / count, RESAMPLES)
    return _percentiles(value, statistic(draws.reshape(RESAMPLES, *table.shape).astype(np.float64)), count)


def weighted_interval(count: int, statistic: Callable[[Array], Array], seed: int = 0) -> Interval:
    """A statistic of items with weights that lies in 0..1. `statistic` maps weights (B, n) to (B,).

    The basic bootstrap, which mirrors the resampled values: a distance such as ECE grows when noise is added, so its
    percentiles would lie above the truth.
    """
    if count == 0:
        raise NoDataError("no items to resample")
    value = float(statistic(np.ones((1, count)))[0])
    rng = np.random.default_rng(seed)
    weights = (rng.multinomial(count, np.full(count, 1 / count), k).astype(np.float64) for k in _pieces(count))
    draws = np.concatenate([statistic(each) for each in weights])
    return _percentiles(value, np.clip(2 * value - draws, 0.0, 1.0), count)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion."""
    z = 1.959963984540054
    middle = share + z * z / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    below = 1 + z * z / count
    return max(0.0, min(share, (middle - reach) / below)), min(1.0, max(share, (middle + reach) / below))


def _pieces(count: int) -> list[int]:
    size = max(1, min(RESAMPLES, _CELLS // count))
    return [min(size, RESAMPLES - at) for at in range(0, RESAMPLES, size)]


def _percentiles(value: float, draws: Array, count: int) -> Interval:
    usable = draws[~np.isnan(draws)]
    if math.isnan(value) or len(usable) == 0:
        return Interval(value, math.nan, math.nan, count)
    low, high = np.quantile(usable, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(min(low, value)), float(max(high, value)), count)


def intervals_json(intervals: Mapping[str, Interval]) -> dict[str, object]:
    return {name: each.json() for name, each in intervals.items()}
