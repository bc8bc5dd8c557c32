"""How far do raters agree beyond chance? Raw agreement, Cohen, Fleiss, Krippendorff, Kendall.

Every interval resamples items: the statistics are functions of sums over items, so that a million votes cost no more
than the kinds of items among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluator.ballots import Ballots
from evaluator.intervals import (
    Array,
    IntArray,
    Interval,
    NoDataError,
    intervals_json,
    number_interval,
    ratio_interval,
    sums_interval,
    table_interval,
)

MOST_PAIRS = 100
"""Pairs of raters that are reported, those with the most items in common."""

CELLS = 4096
"""Cells of a coincidence matrix up to which it is resampled; with more classes only the value is told."""


@dataclass(frozen=True)
class Agreement:
    """See `json`. `ordinal` and `interval` are None where the classes have no order; Kendall's W needs scores of
    several responses to one prompt by the same raters."""

    raw: Interval
    fleiss: Interval
    nominal: Interval
    ordinal: Interval | None
    interval: Interval | None
    pairwise: Mapping[str, Interval]
    weighted: Mapping[str, Interval]
    kendall: Interval | None
    classes: Mapping[str, int]
    pluralities: Mapping[str, int]
    items: int
    pairable: int
    votes: int
    pairs: int
    raters: Mapping[str, int]
    pairs_left_out: int

    def json(self) -> dict[str, Any]:
        return {
            "raw": self.raw.json(),
            "pairwise": intervals_json(self.pairwise),
            "pairwise_weighted": intervals_json(self.weighted),
            "fleiss": self.fleiss.json(),
            "krippendorff": self.nominal.json(),
            "krippendorff_ordinal": self.ordinal and self.ordinal.json(),
            "krippendorff_interval": self.interval and self.interval.json(),
            "kendall_w": self.kendall and self.kendall.json(),
            "classes": dict(self.classes),
            "pluralities": dict(self.pluralities),
            "items": self.items,
            "items_with_two_or_more": self.pairable,
            "votes": self.votes,
            "rater_pairs": self.pairs,
            "raters": dict(self.raters),
            "pairs_left_out": self.pairs_left_out,
        }


def agree(ballots: Ballots, kendall: Interval | None = None) -> Agreement:
    """All measures that the votes allow. Raises NoDataError where no item has two votes."""
    every = ballots.counts()
    counts = every[every.sum(1) >= 2]
    if not len(counts):
        raise NoDataError(
            f"no item has votes of two raters ({len(every)} items, raters: {', '.join(ballots.raters[:5])}); "
            "agreement needs two"
        )
    votes = counts.sum(1)
    same, pairs = (counts * (counts - 1)).sum(1) / 2, votes * (votes - 1) / 2
    tables, left_out = _tables(ballots)
    ordered = ballots.values is not None and len(ballots.classes) > 1
    return Agreement(
        raw=ratio_interval(same, pairs),
        fleiss=fleiss_kappa(counts),
        nominal=krippendorff_alpha(counts, nominal),
        ordinal=krippendorff_alpha(counts, ordinal) if ordered else None,
        interval=krippendorff_alpha(counts, interval(ballots.values))
        if ordered and ballots.values is not None
        else None,
        pairwise={name: table_interval(table, cohen_kappa) for name, table in tables.items()},
        weighted={name: table_interval(table, weighted_kappa) for name, table in tables.items()}
        if ordered and len(ballots.classes) > 2
        else {},
        kendall=kendall,
        classes={name: int(count) for name, count in zip(ballots.classes, every.sum(0), strict=True)},
        pluralities=_pluralities(every, ballots.classes),
        items=len(every),
        pairable=len(counts),
        votes=len(ballots.choice),
        pairs=int(pairs.sum()),
        raters={name: int(n) for name, n in zip(ballots.raters, np.bincount(ballots.rater), strict=True)},
        pairs_left_out=left_out,
    )


def cohen_kappa(tables: Array) -> Array:
    """Cohen's kappa (1960) of confusion tables of counts (B, K, K) as (B,); NaN where chance alone agrees fully."""
    return _kappa(tables, 1 - np.eye(tables.shape[1]))


def weighted_kappa(tables: Array) -> Array:
    """Cohen's kappa with linear weights (1968), for classes in their order: a near miss counts less."""
    places = np.arange(float(tables.shape[1]))
    return _kappa(tables, np.abs(places[:, None] - places[None, :]))


def _kappa(tables: Array, distance: Array) -> Array:
    shares = tables / tables.sum((1, 2), keepdims=True)
    observed = (shares * distance).sum((1, 2))
    expected = (shares.sum(2)[:, :, None] * shares.sum(1)[:, None, :] * distance).sum((1, 2))
    return _beyond(observed, expected)


def confusion(first: Array, second: Array, classes: int) -> Array:
    """Counts of (first rater's class, second rater's class), (K, K)."""
    cells = first.astype(int) * classes + second.astype(int)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes).astype(np.float64)


def fleiss_kappa(counts: Array) -> Interval:
    """Fleiss' kappa (1971) of items' class counts (N, K), each with two or more votes.

    Where items have different numbers of votes, each item's agreement counts alike, and chance comes from all votes.
    """
    votes = counts.sum(1)
    own = (counts * (counts - 1)).sum(1) / (votes * (votes - 1))

    def statistic(sums: Array) -> Array:
        items, agreeing, classes = sums[:, 0], sums[:, 1], sums[:, 2:]
        shares = classes / classes.sum(1, keepdims=True)
        return _beyond(1 - agreeing / items, 1 - (shares**2).sum(1))

    return sums_interval(np.column_stack([np.ones(len(counts)), own, counts]), statistic)


Distance = Callable[[Array], Array]
"""Squared distances between classes (B, K, K), from how often each occurs (B, K)."""


def nominal(totals: Array) -> Array:
    return np.broadcast_to(1 - np.eye(totals.shape[1]), (len(totals), totals.shape[1], totals.shape[1]))


def ordinal(totals: Array) -> Array:
    """The votes between two classes, with half of each: ranks, not numbers."""
    ranks = np.cumsum(totals, axis=1) - totals / 2
    return (ranks[:, :, None] - ranks[:, None, :]) ** 2


def interval(values: Array) -> Distance:
    """The difference of the classes' numbers."""
    squares = (values[:, None] - values[None, :]) ** 2
    return lambda totals: np.broadcast_to(squares, (len(totals), *squares.shape))


def krippendorff_alpha(counts: Array, distance: Distance) -> Interval:
    """Krippendorff's alpha (2011, "Computing Krippendorff's alpha-reliability") of items' class counts (N, K)."""
    classes = counts.shape[1]
    shared = counts / (counts.sum(1, keepdims=True) - 1)

    def statistic(sums: Array) -> Array:
        table = sums.reshape(-1, classes, classes)
        totals = table.sum(2)
        every, apart = totals.sum(1), distance(totals)
        expected = (totals[:, :, None] * totals[:, None, :] * apart).sum((1, 2)) / (every * (every - 1))
        return _beyond((table * apart).sum((1, 2)) / every, expected)

    if classes**2 > CELLS:
        whole = (shared.T @ counts - np.diag(shared.sum(0))).reshape(1, -1)
        return Interval(float(statistic(whole)[0]), np.nan, np.nan, len(counts))
    coincidences = shared[:, :, None] * counts[:, None, :]
    coincidences[:, np.arange(classes), np.arange(classes)] -= shared
    return sums_interval(coincidences.reshape(len(counts), -1), statistic)


def kendall_w(ranks: Array) -> float:
    """Kendall's W (1939) of ranks by m raters of n things (m, n), with the correction for ties; NaN where all tie."""
    raters, things = ranks.shape
    spread = ((ranks.sum(0) - raters * (things + 1) / 2) ** 2).sum()
    ties = sum(
        float((np.unique(row, return_counts=True)[1] ** 3 - np.unique(row, return_counts=True)[1]).sum())
        for row in ranks
    )
    most = raters**2 * (things**3 - things) - raters * ties
    return float(12 * spread / most) if most > 0 else float("nan")


def mean_kendall_w(groups: Mapping[str, list[tuple[str, str, float]]]) -> Interval | None:
    """The mean W over prompts, each with (rater, response, score) of at least two raters who scored the same two or
    more responses (RLAIF, section 3.4); None where no prompt has them."""
    from scipy.stats import rankdata

    found: list[float] = []
    for scores in groups.values():
        table = {(rater, response): score for rater, response, score in scores}
        raters, responses = sorted({rater for rater, _ in table}), sorted({response for _, response in table})
        whole = [rater for rater in raters if all((rater, response) in table for response in responses)]
        if len(whole) >= 2 and len(responses) >= 2:
            ranks = np.array([rankdata([table[rater, response] for response in responses]) for rater in whole])
            found.append(kendall_w(ranks))
    known = np.array([each for each in found if not np.isnan(each)])
    return number_interval(known) if len(known) else None


def _beyond(observed: Array, expected: Array) -> Array:
    """1 - observed / expected disagreement; NaN where none is expected."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 1e-12, 1 - observed / expected, np.nan)


def _tables(ballots: Ballots) -> tuple[dict[str, Array], int]:
    """A confusion table for each pair of raters with items in common, the largest first, and how many were left out."""
    raters, classes = len(ballots.raters), len(ballots.classes)
    order = np.lexsort((ballots.rater, ballots.item))
    item, rater, choice = ballots.item[order], ballots.rater[order], ballots.choice[order]
    cells: list[IntArray] = []
    for apart in range(1, raters):
        same = item[apart:] == item[:-apart]
        if not same.any():
            break
        pair = rater[:-apart][same] * raters + rater[apart:][same]
        cells.append((pair * classes + choice[:-apart][same]) * classes + choice[apart:][same])
    if not cells:
        return {}, 0
    found, counts = np.unique(np.concatenate(cells), return_counts=True)
    sizes: dict[int, int] = {}
    for pair, count in zip((found // classes**2).tolist(), counts.tolist(), strict=True):
        sizes[pair] = sizes.get(pair, 0) + count
    largest = sorted(sizes, key=lambda pair: (-sizes[pair], pair))
    tables: dict[str, Array] = {}
    for pair in sorted(largest[:MOST_PAIRS]):
        own = found // classes**2 == pair
        table = np.bincount(found[own] % classes**2, counts[own], classes**2)
        first, second = divmod(pair, raters)
        tables[f"{ballots.raters[first]} & {ballots.raters[second]}"] = table.reshape(classes, classes).astype(float)
    return tables, max(0, len(sizes) - MOST_PAIRS)


def _pluralities(counts: Array, classes: tuple[str, ...]) -> dict[str, int]:
    """On how many items each class has the most votes alone."""
    most = counts.max(1, keepdims=True)
    alone = (counts == most).sum(1) == 1
    won = np.bincount(counts.argmax(1)[alone], minlength=len(classes))
    found = {name: int(count) for name, count in zip(classes, won, strict=True)}
    return {**found, "none": int((~alone).sum())}
