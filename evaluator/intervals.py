"""How sure is a number? 95 % intervals by resampling items, so that what belongs to one item stays together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data.errors import RlaifError

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

RESAMPLES = 2000
LEVEL = 0.95
Z = 1.959963984540054
MOST_USABLE = 0.95
"""Of the draws must have the statistic at all: where they have not, the interval would be of the others alone."""

_CELLS = 4_000_000
"""Numbers held at once while tables are resampled."""

MOST_KINDS = 2048
"""Different items that are resampled one by one; of more, what their sums come to is as good as normal."""


class NoDataError(RlaifError):
    """A metric was asked of nothing, or of what cannot answer it."""


@dataclass(frozen=True)
class Interval:
    """A value and where 95 % of the resampled values lie; `n` is the number of items."""

    value: float
    low: float
    high: float
    n: int

    @property
    def known(self) -> bool:
        """Whether there are bounds."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    def below(self, value: float) -> bool:
        """Whether all of it is below a value; never where the bounds are unknown."""
        return self.known and self.high < value

    def above(self, value: float) -> bool:
        return self.known and self.low > value

    def json(self) -> dict[str, float | int | None]:
        """For reports: NaN, which JSON does not have, becomes null."""
        return {
            name: None if isinstance(each, float) and math.isnan(each) else each for name, each in asdict(self).items()
        }


def mean_interval(values: Array, cluster: IntArray | None = None, seed: int = 0) -> Interval:
    """The mean of shares, each from 0 to 1, one an item. Of zeros and ones by Wilson (1927), else by resampling: items,
    or what `cluster` (N,) says belongs together.

    Where all items say the same, resampling cannot show any doubt: the bounds are NaN, unknown.
    """
    count = len(values)
    if count == 0:
        raise NoDataError("no items to take a mean of")
    if cluster is not None:
        sums = cluster_sums(cluster, np.column_stack([values, np.ones(count)]))
        return replace(share_interval(sums[:, 0], sums[:, 1], seed), n=count)
    mean = float(values.mean())
    if np.isin(values, (0.0, 1.0)).all():
        return Interval(mean, *wilson(mean, count), count)
    return share_interval(values, np.ones(count), seed)


def number_interval(values: Array, seed: int = 0) -> Interval:
    """The mean of numbers that are no shares, such as margins: where all are the same, the bounds are unknown."""
    return sums_interval(np.column_stack([values, np.ones(len(values))]), _ratio, seed)


def ratio_interval(above: Array, below: Array, seed: int = 0) -> Interval:
    """The sum of `above` over the sum of `below`, one of each a cluster (C,)."""
    return sums_interval(np.column_stack([above, below]), _ratio, seed)


def share_interval(above: Array, below: Array, seed: int = 0) -> Interval:
    """The same where `above` is a part of `below`: where all is 0 or 1, by Wilson over clusters."""
    found = ratio_interval(above, below, seed)
    if not found.known and found.value in {0.0, 1.0}:
        return Interval(found.value, *wilson(found.value, found.n), found.n)
    return found


def table_interval(table: Array, statistic: Callable[[Array], Array], seed: int = 0) -> Interval:
    """A statistic of a contingency table of counts, resampling items. `statistic` maps (B, *table.shape) to (B,)."""
    count = int(table.sum())
    if count == 0:
        raise NoDataError("no items to count")
    flat = table.ravel()
    occupied = np.flatnonzero(flat)
    draws = np.random.default_rng(seed).multinomial(count, flat[occupied] / count, RESAMPLES)
    piece = max(1, _CELLS // flat.size)
    found: list[Array] = []
    for at in range(0, RESAMPLES, piece):
        tables = np.zeros((len(draws[at : at + piece]), flat.size))
        tables[:, occupied] = draws[at : at + piece]
        found.append(statistic(tables.reshape(-1, *table.shape)))
    return _percentiles(float(statistic(table[None])[0]), np.concatenate(found), count)


def sums_interval(rows: Array, statistic: Callable[[Array], Array], seed: int = 0) -> Interval:
    """A statistic of the sums of columns, resampling rows: one row (n, d) an item, or a cluster of what belongs
    together. `statistic` maps sums (B, d) to (B,).

    The percentile bootstrap (Efron 1979), widened for few items (Hesterberg 2015).
    """
    kinds, counts = _kinds(rows)
    return _resampled(kinds, counts, statistic, len(rows), seed)


def _resampled(kinds: Array, counts: Array, statistic: Callable[[Array], Array], count: int, seed: int) -> Interval:
    if count == 0:
        raise NoDataError("no items to resample")
    value = float(statistic((counts @ kinds)[None])[0])
    return _percentiles(value, statistic(_drawn(kinds, counts, count, seed)), count)


def drawn_sums(rows: Array, seed: int = 0) -> Array:
    """The sums of columns of resampled rows, (RESAMPLES, d)."""
    kinds, counts = _kinds(rows)
    return _drawn(kinds, counts, len(rows), seed)


def _drawn(kinds: Array, counts: Array, count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    if len(kinds) <= MOST_KINDS:
        return rng.multinomial(count, counts / count, RESAMPLES) @ kinds
    return _normal_sums(kinds, counts, rng)


def _kinds(rows: Array) -> tuple[Array, Array]:
    """The different rows, and how many there are of each: a million votes are a few kinds."""
    if not len(rows):
        return rows, np.ones(0)
    mixed = np.random.default_rng(1).random(int(rows.shape[1]))
    shadow = rows @ mixed  # two rows meet in one number only by a miracle
    _, places, counts = np.unique(shadow, return_index=True, return_counts=True)
    order = np.argsort(places)  # as they come: who is turned round is resampled alike
    places, counts = places[order], counts[order]
    return (rows[places], counts.astype(np.float64)) if len(places) <= MOST_KINDS else (rows, np.ones(len(rows)))


def _normal_sums(kinds: Array, counts: Array, rng: np.random.Generator) -> Array:
    """What the sums of resampled rows come to, by the central limit theorem."""
    spread = np.cov(kinds, rowvar=False, bias=True, fweights=counts.astype(np.int64)).reshape(kinds.shape[1], -1)
    values, vectors = np.linalg.eigh(spread * counts.sum())
    noise = rng.standard_normal((RESAMPLES, len(values))) * np.sqrt(np.maximum(values, 0.0))
    return counts @ kinds + noise @ vectors.T


def normal_interval(value: float, influences: Array) -> Interval:
    """An estimate that moves by `influences` (C,) with each cluster: the sandwich estimate of its error (Huber 1967),
    with Student's quantile for few clusters."""
    count = len(influences)
    if count < 2 or math.isnan(value):
        return Interval(value, math.nan, math.nan, count)
    reach = student(count) * math.sqrt(float((influences**2).sum()) * count / (count - 1))
    if reach == 0:
        return Interval(value, math.nan, math.nan, count)
    return Interval(value, value - reach, value + reach, count)


def cluster_sums(cluster: IntArray, columns: Array) -> Array:
    """The columns (n, d) summed over what belongs together (C, d); clusters are numbered from 0."""
    size = int(cluster.max()) + 1 if len(cluster) else 0
    return np.column_stack([np.bincount(cluster, column, size) for column in columns.T]).astype(np.float64)


def _ratio(sums: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.nan)


def student(count: int) -> float:
    """By how many standard errors a mean of so many clusters may be off; NaN for one, which says nothing of that."""
    if count < 2:
        return math.nan
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, (1 + LEVEL) / 2))


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion."""
    z = Z
    middle = share + z * z / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    below = 1 + z * z / count
    return max(0.0, min(share, (middle - reach) / below)), min(1.0, max(share, (middle + reach) / below))


def _percentiles(value: float, draws: Array, count: int) -> Interval:
    usable = draws[~np.isnan(draws)]
    if math.isnan(value) or len(usable) < MOST_USABLE * len(draws) or count < 2:
        return Interval(value, math.nan, math.nan, count)
    from scipy.special import ndtr

    tail = float(ndtr(-math.sqrt(count / (count - 1)) * student(count)))
    low, high = np.quantile(usable, [tail, 1 - tail])
    if high - low <= 1e-9 * max(1.0, abs(value)):
        # all items say the same: there is doubt, but resampling cannot show how much
        return Interval(value, math.nan, math.nan, count)
    return Interval(value, float(min(low, value)), float(max(high, value)), count)


def intervals_json(intervals: Mapping[str, Interval]) -> dict[str, object]:
    return {name: each.json() for name, each in intervals.items()}
