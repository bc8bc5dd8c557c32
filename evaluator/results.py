"""Games as columns of numbers: what win rates and rankings start from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from data.games import Game
from data.records import Failure
from evaluator.intervals import Array, IntArray, NoDataError


@dataclass(frozen=True)
class Results:
    """Game g: `models[first[g]]` got `score[g]` against `models[second[g]]`, each column (G,), in the file's order.

    `cluster` numbers the prompts, `item` the comparisons. `chars` are both lengths, (G, 2), NaN where unknown.
    """

    models: tuple[str, ...]
    first: IntArray
    second: IntArray
    score: Array
    cluster: IntArray
    item: IntArray
    chars: Array


def collect(games: Iterable[Game | Failure]) -> Results:
    """Raises NoDataError where there is no game, or a model plays against itself only."""
    models, clusters, items = dict[str, int](), dict[str, int](), dict[str, int]()
    rows: list[tuple[int, int, float, int, int, float, float]] = []
    alone = 0
    for game in games:
        if isinstance(game, Failure):
            continue
        if game.first == game.second:
            alone += 1
            continue
        first = models.setdefault(game.first, len(models))
        second = models.setdefault(game.second, len(models))
        cluster = clusters.setdefault(game.cluster, len(clusters))
        item = items.setdefault(game.item, len(items))
        own, other = game.chars or (np.nan, np.nan)
        rows.append((first, second, game.score, cluster, item, own, other))
    if not rows:
        why = f"all {alone} results are of a model against itself" if alone else "it has no votes, labels or winners"
        raise NoDataError(f"no result of one model against another: {why}")
    table = np.array(rows, dtype=np.float64)
    first, second, cluster, item = (table[:, at].astype(np.int64) for at in (0, 1, 3, 4))
    return Results(tuple(models), first, second, table[:, 2], _apart(cluster, item), item, table[:, 5:])


def wins(results: Results) -> Array:
    """Wins of each model over each other one, (M, M); a tie is half a win for both."""
    size = len(results.models)
    there = np.bincount(results.first * size + results.second, results.score, size * size)
    back = np.bincount(results.second * size + results.first, 1 - results.score, size * size)
    return (there + back).reshape(size, size).astype(np.float64)


def _apart(cluster: IntArray, item: IntArray) -> IntArray:
    """Prompts, unless there is one only: then the comparisons under it are what can be resampled."""
    return cluster if len(cluster) and cluster.max() > 0 else item
