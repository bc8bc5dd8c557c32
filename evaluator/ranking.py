"""Which model is the best of many? Bradley-Terry by maximum likelihood, Elo in the file's order, average win rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from data.errors import RlaifError
from evaluator.intervals import LEVEL, Array, Interval, intervals_json, student
from evaluator.logistic import expit
from evaluator.results import Results, wins

INITIAL, BASE, SCALE = 1000.0, 10.0, 400.0
K = 4.0
"""Elo's step, as arenas of language models use it; chess uses 32."""

MOST_K = 1000.0
PRIOR = 1.0
"""Ties against an imagined average model, where the results alone have no finite answer."""

POINTS = SCALE / math.log(BASE)
"""Elo points of one natural log-odds."""

STEPS, CLOSE, TINY = 100, 1e-12, 1e-18
FLAT = 1e-7
"""Curvature of the likelihood below which it has no maximum: somebody never lost."""

MOST_GAMES = 20_000
"""Games up to which Elo is resampled: it has to be played again one by one."""

REPLAYS = 200


@dataclass(frozen=True)
class Ranked:
    """A value a model, best first by Bradley-Terry. `elo_scale` is Bradley-Terry on Elo's scale, with mean 1000."""

    bradley_terry: Mapping[str, Interval]
    elo_scale: Mapping[str, Interval]
    elo: Mapping[str, Interval]
    average_win_rate: Mapping[str, Interval]
    games: Mapping[str, int]
    prior: float
    note: str | None

    def json(self) -> dict[str, Any]:
        return {
            "bradley_terry": intervals_json(self.bradley_terry),
            "bradley_terry_elo_scale": intervals_json(self.elo_scale),
            "elo": intervals_json(self.elo),
            "average_win_rate": intervals_json(self.average_win_rate),
            "games": dict(self.games),
            "prior": self.prior,
            "note": self.note,
        }


def rank(results: Results, *, k: float = K, prior: float | None = None) -> Ranked:
    """All three rankings. `prior` adds ties against an imagined average model; None adds PRIOR where it is needed.

    Raises RlaifError for a step or a prior that is none.
    """
    if not 0 < k <= MOST_K:
        raise RlaifError(f"--k {k:g}: expected more than 0 and at most {MOST_K:g}")
    if prior is not None and not 0 <= prior < math.inf:
        raise RlaifError(f"--prior {prior:g}: expected 0 or more")
    table = wins(results)
    note = _infinite(table, results.models)
    weight = (PRIOR if note else 0.0) if prior is None else prior
    strengths = np.full(len(table), np.nan) if note and not weight else bradley_terry(table, weight)
    spreads = _spreads(results, strengths, table, weight)
    order: list[int] = np.argsort(-strengths, kind="stable").tolist()
    names, met = results.models, (table + table.T)
    shares = np.exp(strengths - np.max(strengths))
    shares /= shares.sum()
    count = int(results.cluster.max()) + 1
    reach = student(count)
    of_share = reach * _deviation(spreads, np.eye(len(names)) - shares)
    of_mean = reach * _deviation(spreads, np.eye(len(names)) - 1 / len(names))
    centred = strengths - strengths.mean()
    own = {
        i: (
            Interval(
                float(shares[i]),
                float(shares[i] * math.exp(-of_share[i])),
                float(np.minimum(1.0, shares[i] * math.exp(of_share[i]))),
                int(met[i].sum()),
            ),
            Interval(
                float(INITIAL + POINTS * centred[i]),
                float(INITIAL + POINTS * (centred[i] - of_mean[i])),
                float(INITIAL + POINTS * (centred[i] + of_mean[i])),
                int(met[i].sum()),
            ),
        )
        for i in order
    }
    average, ratings = _average(results, table, reach), _elo(results, k)
    if note and weight:
        note += f"; {weight:g} ties of each model against an imagined average one were added, so that it is finite"
    return Ranked(
        {names[i]: own[i][0] for i in order},
        {names[i]: own[i][1] for i in order},
        {names[i]: ratings[i] for i in order},
        {names[i]: average[i] for i in order},
        {names[i]: int(met[i].sum()) for i in order},
        weight,
        note,
    )


def bradley_terry(wins: Array, prior: float = 0.0) -> Array:
    """Log-strengths (M,), with mean 0, that maximise the likelihood of wins (M, M) (Bradley and Terry 1952).

    Newton's method. `prior` ties against an average model make every answer finite; without it, a model that never
    lost, or groups that never met, have none: NaN.
    """
    met = wins + wins.T
    size, won = len(wins), wins.sum(1) + prior / 2
    strengths: Array = np.zeros(size)
    far = np.inf
    for _ in range(STEPS):
        chance = expit(strengths[:, None] - strengths[None, :])
        imagined = expit(strengths)
        pull: Array = won - (met * chance).sum(1) - prior * imagined
        step = _step(_curvature(met, chance, imagined, prior), pull)
        far = float(np.abs(step).max())
        strengths = strengths + step * min(1.0, 2 / max(far, 1e-300))
        if far < CLOSE:
            break
    chance = expit(strengths[:, None] - strengths[None, :])
    known = np.linalg.eigvalsh(_curvature(met, chance, expit(strengths), prior))[0]
    return strengths - strengths.mean() if far < 1e-6 and known > FLAT else np.full(size, np.nan)


def _step(curvature: Array, pull: Array) -> Array:
    try:
        return cast("Array", np.linalg.solve(curvature, pull))
    except np.linalg.LinAlgError:  # groups that never met
        return cast("Array", np.linalg.lstsq(curvature, pull, rcond=None)[0])


def _curvature(met: Array, chance: Array, imagined: Array, prior: float) -> Array:
    """The information of the log-strengths; constant shifts, of which nothing is known, are pinned to 0."""
    each = met * chance * (1 - chance)
    return (
        np.diag(each.sum(1) + prior * imagined * (1 - imagined))
        - each
        + (0.0 if prior else 1.0) * np.ones(met.shape) / len(met)
    )


def _spreads(results: Results, strengths: Array, table: Array, prior: float) -> list[Array]:
    """Covariances (M, M) of the log-strengths: Huber's sandwich, with games of one prompt as one; and under a prior
    also what the likelihood's curvature says, as a model that never lost has no residuals to learn from."""
    from scipy.sparse import csr_array

    met = table + table.T
    chance = expit(strengths[:, None] - strengths[None, :])
    imagined = expit(strengths)
    if np.isnan(strengths).any():
        return [np.full(table.shape, np.nan)]
    inverse = cast("Array", np.linalg.pinv(_curvature(met, chance, imagined, prior)))
    apart = results.score - chance[results.first, results.second]
    count = int(results.cluster.max()) + 1
    pulls = csr_array(
        (
            np.concatenate([apart, -apart]),
            (np.concatenate([results.cluster, results.cluster]), np.concatenate([results.first, results.second])),
        ),
        shape=(count, len(strengths)),
    )
    middle = (pulls.T @ pulls).toarray() * (count / max(1, count - 1))
    sandwich: Array = inverse @ middle @ inverse
    return [sandwich, inverse] if prior else [sandwich]


def _deviation(spreads: Sequence[Array], gradients: Array) -> Array:
    """The larger of the standard errors; NaN where there is none, as of games that are all ties."""
    found = [np.einsum("ij,jk,ik->i", gradients, spread, gradients) for spread in spreads]
    most = np.maximum.reduce(found)
    return np.where(most > TINY, np.sqrt(np.maximum(most, 0.0)), np.nan)


def _infinite(table: Array, models: tuple[str, ...]) -> str | None:
    """Why the likelihood has no maximum; None where everybody can be reached by a chain of wins (Ford 1957)."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    groups, _ = connected_components(csr_array((table > 0).astype(np.float64)), directed=True, connection="strong")
    if groups == 1:
        return None
    apart, of = connected_components(csr_array(table + table.T), directed=False)
    if apart > 1:
        few = [name for name, group in zip(models, of.tolist(), strict=True) if group == int(of[-1])][:5]
        return f"{apart} groups of models never met one another (one of them: {', '.join(few)})"
    met = table + table.T
    best = [models[i] for i in range(len(models)) if table[i].sum() == met[i].sum()]
    worst = [models[i] for i in range(len(models)) if table[i].sum() == 0]
    told = [f"{', '.join(best[:5])} never lost"] if best else []
    told += [f"{', '.join(worst[:5])} never won"] if worst else []
    return " and ".join(told) or "a group of models never lost against the others"


def _average(results: Results, table: Array, reach: float) -> list[Interval]:
    """The mean over the opponents that a model met of its win rate against each."""
    from scipy.sparse import csr_array

    met = table + table.T
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = np.where(met > 0, table / met, np.nan)
    opponents = (met > 0).sum(1)
    value = np.nansum(rates, axis=1) / opponents
    i, j = results.first, results.second
    there = (results.score - rates[i, j]) / (met[i, j] * opponents[i])
    back = (1 - results.score - rates[j, i]) / (met[i, j] * opponents[j])
    count = int(results.cluster.max()) + 1
    moved = csr_array(
        (np.concatenate([there, back]), (np.concatenate([results.cluster] * 2), np.concatenate([i, j]))),
        shape=(count, len(table)),
    )
    square = np.asarray(moved.multiply(moved).sum(0)).ravel() * count / max(1, count - 1)
    error = np.where(square > TINY, reach * np.sqrt(square), np.nan)
    return [
        Interval(float(v), float(np.maximum(0.0, v - e)), float(np.minimum(1.0, v + e)), int(n))
        for v, e, n in zip(value, error, met.sum(1), strict=True)
    ]


def elo(results: Results, k: float = K) -> Array:
    """Ratings (M,) after all games in their order (Elo 1978): they depend on that order."""
    ratings = [INITIAL] * len(results.models)
    first: list[int] = results.first.tolist()
    second: list[int] = results.second.tolist()
    scores: list[float] = results.score.tolist()
    for i, j, score in zip(first, second, scores, strict=True):
        step = k * (score - 1 / (1 + BASE ** ((ratings[j] - ratings[i]) / SCALE)))
        ratings[i] += step
        ratings[j] -= step
    return np.array(ratings)


def _elo(results: Results, k: float) -> list[Interval]:
    """With the spread over prompts drawn again, their games in their order."""
    value, count = elo(results, k), len(results.score)
    played = np.bincount(np.concatenate([results.first, results.second]), minlength=len(value))
    if count > MOST_GAMES or count < 2:
        return [Interval(float(v), math.nan, math.nan, int(n)) for v, n in zip(value, played, strict=True)]
    prompts = int(results.cluster.max()) + 1
    times = np.random.default_rng(0).multinomial(prompts, np.full(prompts, 1 / prompts), REPLAYS).astype(np.float64)
    ratings = np.full((REPLAYS, len(value)), INITIAL)
    for i, j, score, cluster in zip(
        results.first.tolist(), results.second.tolist(), results.score.tolist(), results.cluster.tolist(), strict=True
    ):
        chance = 1 / (1 + BASE ** ((ratings[:, j] - ratings[:, i]) / SCALE))
        step = k * times[:, cluster] * (score - chance)  # a prompt drawn twice counts twice
        ratings[:, i] += step
        ratings[:, j] -= step
    low, high = np.quantile(ratings, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    low, high = (np.where(low == high, np.nan, each) for each in (low, high))
    return [
        Interval(float(v), float(np.minimum(v, a)), float(np.maximum(v, b)), int(n))
        for v, a, b, n in zip(value, low, high, played, strict=True)
    ]
