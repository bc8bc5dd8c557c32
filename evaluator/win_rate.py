"""How often is one model preferred to another, and how often would it be at equal lengths?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evaluator.intervals import (
    Array,
    IntArray,
    Interval,
    NoDataError,
    cluster_sums,
    mean_interval,
    normal_interval,
    ratio_interval,
)
from evaluator.logistic import NotIdentifiedError, expit, fit, logit
from evaluator.results import Results

MOST_MODELS = 60
"""Models up to which the matrix of all pairs is told."""

EDGE = 0.05
"""Share of the results on one side of equal lengths below which the value at equal lengths is an extrapolation."""

SHRINK = 1.0
"""Ties that are added to what other models got on a prompt, so that one result does not make it infinitely hard."""


@dataclass(frozen=True)
class LengthControlled:
    """A win rate at equal lengths; None where the data cannot tell. `slope` is the effect of length. `why` there is no
    rate, or why it is to be taken with care."""

    rate: Interval | None
    slope: Interval | None
    why: str | None = None

    def json(self) -> dict[str, Any]:
        told = self.rate.json() if self.rate else {"value": None, "low": None, "high": None, "n": 0}
        return {**told, "slope": self.slope and self.slope.json(), "why": self.why}


@dataclass(frozen=True)
class WinRate:
    """`model` against `baseline`; a tie is half a win. See `json`."""

    model: str
    baseline: str
    win_rate: Interval
    standard_error: float
    wins: int
    draws: int
    losses: int
    p_value: float
    by_ratio: LengthControlled
    by_difference: LengthControlled
    longer: Interval | None
    games: int
    items: int

    def json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "baseline": self.baseline,
            "win_rate": self.win_rate.json(),
            "standard_error": None if math.isnan(self.standard_error) else self.standard_error,
            "wins": self.wins,
            "draws": self.draws,
            "losses": self.losses,
            "discrete_win_rate": (self.wins + self.draws / 2) / self.games,
            "p_value": self.p_value,
            "length_controlled": self.by_ratio.json(),
            "length_controlled_alpaca": self.by_difference.json(),
            "longer": self.longer and self.longer.json(),
            "games": self.games,
            "items": self.items,
        }


@dataclass(frozen=True)
class WinRates:
    """The win rate that was asked for, those of the other models against the same baseline, and of all pairs."""

    asked: WinRate
    others: tuple[WinRate, ...]
    matrix: Mapping[str, Mapping[str, Interval]]

    def json(self) -> dict[str, Any]:
        found = self.asked.json()
        if self.others:
            found["others"] = [each.json() for each in self.others]
            found["matrix"] = {
                model: {against: each.json() for against, each in row.items()} for model, row in self.matrix.items()
            }
        return found


def evaluate(results: Results, model: str | None = None, baseline: str | None = None) -> WinRates:
    """`model` against `baseline`: if they are not named, the first of the file against who it met most often.

    Raises NoDataError for a name that is not there, or two that never met.
    """
    for name in (model, baseline):
        if name is not None and name not in results.models:
            raise NoDataError(f"no model {name!r} in it; there are {', '.join(results.models[:20])}")
    met = _met(results)
    names = results.models
    if model is None:
        model = next(
            name
            for name in names
            if name != baseline and (baseline is None or met[names.index(baseline), names.index(name)])
        )
    if baseline is None:
        baseline = names[int(met[names.index(model)].argmax())]
    asked = _pair(results, names.index(model), names.index(baseline))
    if len(names) == 2:
        return WinRates(asked, (), {})
    at = names.index(baseline)
    others = tuple(
        _pair(results, i, at) for i, name in enumerate(names) if met[i, at] and name not in {model, baseline}
    )
    return WinRates(asked, others, _matrix(results, met) if len(names) <= MOST_MODELS else {})


def _met(results: Results) -> Array:
    size = len(results.models)
    games = np.bincount(results.first * size + results.second, minlength=size * size).reshape(size, size)
    return (games + games.T).astype(np.float64)


@dataclass(frozen=True)
class _Side:
    """The games of one model against another, from its side."""

    score: Array
    cluster: IntArray
    item: IntArray
    own: Array
    other: Array
    prompt: IntArray


def _side(results: Results, model: int, baseline: int) -> _Side:
    there = (results.first == model) & (results.second == baseline)
    back = (results.first == baseline) & (results.second == model)
    score = np.concatenate([results.score[there], 1 - results.score[back]])
    chars = np.concatenate([results.chars[there], results.chars[back][:, ::-1]])
    prompt = np.concatenate([results.cluster[there], results.cluster[back]])
    item = np.concatenate([results.item[there], results.item[back]])
    return _Side(score, _numbered(prompt), _numbered(item), chars[:, 0], chars[:, 1], prompt)


def _numbered(codes: IntArray) -> IntArray:
    return np.unique(codes, return_inverse=True)[1]


def _rate(side: _Side) -> Interval:
    if np.bincount(side.cluster).max() == 1:
        return mean_interval(side.score)
    sums = cluster_sums(side.cluster, np.column_stack([side.score, np.ones(len(side.score))]))
    return ratio_interval(sums[:, 0], sums[:, 1])


def _pair(results: Results, model: int, baseline: int) -> WinRate:
    side = _side(results, model, baseline)
    count = len(side.score)
    if not count:
        raise NoDataError(f"{results.models[model]!r} and {results.models[baseline]!r} never met")
    known = ~np.isnan(side.own)
    return WinRate(
        model=results.models[model],
        baseline=results.models[baseline],
        win_rate=_rate(side),
        standard_error=float(side.score.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan,
        wins=int((side.score > 0.5).sum()),
        draws=int((side.score == 0.5).sum()),
        losses=int((side.score < 0.5).sum()),
        p_value=_sign_test(side),
        by_ratio=_controlled(side, lambda: _by_ratio(side)),
        by_difference=_controlled(side, lambda: _by_difference(side, _difficulty(results, model, baseline, side))),
        longer=_rate(replace(side, score=_half(side.own, side.other))) if known.all() else None,
        games=count,
        items=int(side.item.max()) + 1,
    )


def _half(own: Array, other: Array) -> Array:
    return np.where(own == other, 0.5, (own > other).astype(np.float64))


def _sign_test(side: _Side) -> float:
    """Exact, over comparisons: which of the two got more of its votes; ties are left out (Dixon and Mood 1946)."""
    from scipy.stats import binomtest

    sums = cluster_sums(side.item, np.column_stack([side.score, np.ones(len(side.score))]))
    lead = sums[:, 0] - sums[:, 1] / 2
    won, lost = int((lead > 1e-9).sum()), int((lead < -1e-9).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def _controlled(side: _Side, estimate: Callable[[], tuple[Interval, Interval]]) -> LengthControlled:
    if np.isnan(side.own).any():
        return LengthControlled(None, None, "the lengths of the responses are not known")
    try:
        return LengthControlled(*estimate(), _beyond(side))
    except NotIdentifiedError as error:
        return LengthControlled(None, None, str(error))


def _beyond(side: _Side) -> str | None:
    """Said where equal lengths lie at the edge of what was seen, or beyond it."""
    longer, shorter = int((side.own >= side.other).sum()), int((side.own <= side.other).sum())
    few, which = (longer, "as long as") if longer < shorter else (shorter, "as short as")
    if few >= EDGE * len(side.own):
        return None
    return f"an extrapolation: {few} of {len(side.own)} responses are {which} the baseline's"


def _by_ratio(side: _Side) -> tuple[Interval, Interval]:
    """A logistic regression of winning on the ratio of characters, told at ratio 1 (RLAIF, appendix J)."""
    if (side.other == 0).any():
        raise NotIdentifiedError("a response of the baseline is empty, so the ratio of lengths is infinite")
    ratio = side.own / side.other
    if (ratio == 1).all():
        return _rate(side), Interval(0.0, math.nan, math.nan, len(ratio))
    found = fit(np.column_stack([np.ones(len(ratio)), ratio - 1]), side.score, side.cluster)
    line = normal_interval(float(found.coefficients[0]), found.influences[:, 0])
    return _chance(line), normal_interval(float(found.coefficients[1]), found.influences[:, 1])


def _by_difference(side: _Side, difficulty: Array | None) -> tuple[Interval, Interval]:
    """AlpacaEval's form (Dubois et al. 2024, equation 2): the tanh of the standardised difference of characters, and
    how hard the prompt is, where other models' results tell; with the effect of length taken away."""
    apart = side.own - side.other
    spread = float(apart.std())
    if spread == 0 and (apart == 0).all():
        return _rate(side), Interval(0.0, math.nan, math.nan, len(apart))
    if spread == 0:
        raise NotIdentifiedError("the lengths differ in the same way everywhere, so their effect cannot be told apart")
    columns = [np.ones(len(apart)), np.tanh(apart / spread)]
    columns += [] if difficulty is None else [difficulty]
    features = np.column_stack(columns)
    found = fit(features, side.score, side.cluster)
    equal = features.copy()
    equal[:, 1] = 0.0
    chances = expit(equal @ found.coefficients)
    value = float(chances.mean())
    slope = (equal * (chances * (1 - chances))[:, None]).mean(0)
    own = cluster_sums(side.cluster, (chances - value)[:, None] / len(chances))[:, 0]
    rate = normal_interval(value, found.influences @ slope + own)
    rate = Interval(rate.value, max(0.0, rate.low), min(1.0, rate.high), rate.n)
    return rate, normal_interval(float(found.coefficients[1]), found.influences[:, 1])


def _difficulty(results: Results, model: int, baseline: int, side: _Side) -> Array | None:
    """How the other models did against the baseline on each prompt, as centred log-odds; None without others."""
    there = (results.second == baseline) & (results.first != model)
    back = (results.first == baseline) & (results.second != model)
    prompt = np.concatenate([results.cluster[there], results.cluster[back]])
    score = np.concatenate([results.score[there], 1 - results.score[back]])
    size = int(results.cluster.max()) + 1
    got, games = np.bincount(prompt, score, size), np.bincount(prompt, minlength=size)
    hard = logit((got + SHRINK / 2) / (games + SHRINK))[side.prompt]
    return hard - hard.mean() if games[side.prompt].any() and hard.std() > 0 else None


def _chance(line: Interval) -> Interval:
    value, low, high = (float(expit(np.array(each))) for each in (line.value, line.low, line.high))
    return Interval(value, low, high, line.n)


def _matrix(results: Results, met: Array) -> dict[str, dict[str, Interval]]:
    names = results.models
    return {
        names[i]: {names[j]: _rate(_side(results, i, j)) for j in range(len(names)) if met[i, j]}
        for i in range(len(names))
    }
