"""Is one better than the other, on the same items or on different ones? Exact tests and paired intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluator.intervals import LEVEL, Array, IntArray, Interval, NoDataError, cluster_sums, ratio_interval, wilson

POWER = 0.8
POINTS = (1, 2, 5, 10)


def mcnemar(first: Array, second: Array) -> float:
    """The exact p-value of McNemar's test (1947): of the items on which the two differ, which way do they fall?

    `first` and `second` say how right each was on an item, (N,): 1, 0, or .5 for a tie, which makes it a sign test.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first > second).sum()), int((first < second).sum())
    apart = only_first + only_second
    return float(binomtest(only_first, apart).pvalue) if apart else 1.0


def difference(first: Array, second: Array, cluster: IntArray | None = None) -> Interval:
    """How much more often the first is right, on the same items.

    Of zeros and ones, Newcombe's interval of paired shares (1998, method 10), which agrees with McNemar's test also
    where the two hardly ever differ; else items are resampled, or what `cluster` says belongs together.
    """
    count = len(first)
    if not count:
        raise NoDataError("no items that both answered")
    binary = np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all()
    if (first == second).all() and not binary:
        most = wilson(0.0, count)[1]
        return Interval(0.0, -most, most, count)
    if cluster is not None:
        sums = cluster_sums(cluster, np.column_stack([first - second, np.ones(count)]))
        return ratio_interval(sums[:, 0], sums[:, 1])
    if binary:
        return _paired(first, second)
    return ratio_interval(first - second, np.ones(count))


def _paired(first: Array, second: Array) -> Interval:
    count = len(first)
    one, two = float(first.mean()), float(second.mean())
    (low, high), (under, over) = wilson(one, count), wilson(two, count)
    both, neither = float((first * second).sum()), float(((1 - first) * (1 - second)).sum())
    only_first, only_second = float((first * (1 - second)).sum()), float(((1 - first) * second).sum())
    sides = math.prod((both + only_first, only_second + neither, both + only_second, only_first + neither))
    phi = (both * neither - only_first * only_second) / math.sqrt(sides) if sides else 0.0
    value = one - two

    def reach(own: float, other: float) -> float:
        return math.sqrt(max(0.0, own**2 - 2 * phi * own * other + other**2))

    return Interval(value, value - reach(one - low, over - two), value + reach(high - one, two - under), count)


def fisher(first: Array, second: Array) -> float:
    """Fisher's exact p-value (1922) of two shares of different items, each 0 or 1; ties are left out."""
    from scipy.stats import fisher_exact

    table = np.array([[int((each == 1).sum()), int((each == 0).sum())] for each in (first, second)])
    return float(fisher_exact(table).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979) for several tests at once: what each p-value must be judged as."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    found, least = [0.0] * len(p_values), 0.0
    for place, at in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[at]))
        found[at] = least
    return found


def newcombe(first: Interval, second: Interval) -> Interval:
    """The difference of two independent shares, out of their own intervals (Newcombe 1998, method 10)."""
    value = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return Interval(value, value - below, value + above, first.n + second.n)


def sample_sizes(share: float, apart: float | None = None) -> Mapping[str, Mapping[str, Any]]:
    """Items that a difference of so many points needs, to be seen 4 times of 5 at the 5 % level (normal approximation).

    `unpaired`: two labelers on different items. `paired`, where the share of items `apart`, on which the two differ, is
    known: both on the same items (Connor 1987).
    """
    from scipy.special import ndtri

    level, power = float(ndtri((1 + LEVEL) / 2)), float(ndtri(POWER))
    found: dict[str, dict[str, int | None]] = {}
    for points in POINTS:
        step = points / 100
        other = share - step if share + step > 1 else share + step
        middle = (share + other) / 2
        noise = level * math.sqrt(2 * middle * (1 - middle))
        noise += power * math.sqrt(share * (1 - share) + other * (1 - other))
        paired = None
        if apart is not None and apart >= step:
            paired = math.ceil((level * math.sqrt(apart) + power * math.sqrt(apart - step**2)) ** 2 / step**2)
        found[str(points)] = {"unpaired": math.ceil(noise**2 / step**2), "paired": paired}
    return found
