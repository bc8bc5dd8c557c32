"""Does a reward model order responses as people do, how surely, and does more of it stay better?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data import scores as scored
from data.records import Comparison
from data.where import cell
from evaluator.alignment import TIE, majority
from evaluator.calibration import (
    Bin,
    Temperature,
    brier,
    calibrated_error,
    expected_calibration_error,
    reliability,
    temperature,
)
from evaluator.intervals import Array, Interval, NoDataError, intervals_json, mean_interval, number_interval
from evaluator.logistic import expit

BINS = 20
LEAST = 0.5
"""Of the prompts must have n samples, for the best of n to be told."""


@dataclass(frozen=True)
class Optimised:
    """The best of n by the proxy: how far that is from one sample, in nats, and what both scores say of it, over the
    `prompts` with as many samples."""

    n: int
    prompts: int
    kl: float
    proxy: Interval
    gold: Interval

    def json(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "prompts": self.prompts,
            "kl": self.kl,
            "proxy": self.proxy.json(),
            "gold": self.gold.json(),
        }


@dataclass(frozen=True)
class RewardModel:
    """`accuracy` is the share of comparisons whose preferred response scores higher, an equal score half (RLAIF, 3.4).

    `margin` is the preferred response's score minus the other's. Calibration reads sigmoid(margin) as a probability.
    """

    accuracy: Interval
    by: Mapping[str, Interval]
    margin: Interval
    histogram: Sequence[tuple[float, float, int]]
    quantiles: Mapping[str, float]
    log_loss: Interval
    brier: Interval
    ece: Interval
    ece_if_calibrated: Interval | None
    reliability: Sequence[Bin]
    temperature: Temperature | None
    ties: Mapping[str, int]
    unscored: int
    over_optimisation: Sequence[Optimised]

    def json(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy.json(),
            "by": intervals_json(self.by),
            "margin": self.margin.json(),
            "margin_histogram": [{"low": low, "high": high, "count": n} for low, high, n in self.histogram],
            "margin_quantiles": dict(self.quantiles),
            "log_loss": self.log_loss.json(),
            "brier": self.brier.json(),
            "ece": self.ece.json(),
            "ece_if_calibrated": self.ece_if_calibrated and self.ece_if_calibrated.json(),
            "reliability": [each.json() for each in self.reliability],
            "temperature": self.temperature and self.temperature.json(),
            "ties": dict(self.ties),
            "unscored": self.unscored,
            "over_optimisation": [each.json() for each in self.over_optimisation],
        }


def evaluate(
    scores: Mapping[str, float],
    human: Iterable[Comparison],
    *,
    by: str | None = None,
    gold: Mapping[str, float] | None = None,
) -> RewardModel:
    """Scores by content (data.scores) against the majority of the votes. Raises NoDataError."""
    rows = list(human)
    found: list[tuple[float, float, str | None]] = []
    tied = unscored = many = 0
    for row in rows:
        many += len(row.responses) != 2
        if not row.votes or len(row.responses) != 2:
            continue
        own = [scored.of(row, at, scores) for at in (0, 1)]
        best = majority(row.votes)
        if own[0] is None or own[1] is None:
            unscored += 1
        elif best == TIE:
            tied += 1
        else:
            group = None if by is None or cell(row, by) is None else str(cell(row, by))
            found.append((own[best] or 0.0, own[1 - best] or 0.0, group))
    if not found:
        raise NoDataError(
            f"nothing to compare in {len(rows)} comparisons: {many} have more than two responses, {unscored} lack a"
            f" score (`rlaif score COMPARISONS` makes them), on {tied} people are tied, the others have no votes"
        )
    better, worse = (np.array([each[at] for each in found], dtype=np.float64) for at in (0, 1))
    margin = better - worse
    right = np.where(margin == 0, 0.5, (margin > 0).astype(np.float64))
    groups: dict[str, list[int]] = defaultdict(list)
    for at, (_, _, group) in enumerate(found):
        if group is not None:
            groups[group].append(at)
    if by is not None and not groups:
        raise NoDataError(f"--by {by}: no such column")
    line, outcome = _turned(margin)
    p = expit(line)
    return RewardModel(
        accuracy=mean_interval(right),
        by={name: mean_interval(right[places]) for name, places in sorted(groups.items())},
        margin=number_interval(margin),
        histogram=_histogram(margin),
        quantiles={f"{q:g}": float(np.quantile(margin, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)},
        log_loss=number_interval(np.logaddexp(0, -margin)),
        brier=brier(p, outcome),
        ece=expected_calibration_error(p, outcome),
        ece_if_calibrated=calibrated_error(p),
        reliability=reliability(p, outcome),
        temperature=temperature(line, outcome),
        ties={"scores": int((margin == 0).sum()), "human": tied},
        unscored=unscored,
        over_optimisation=[] if gold is None else over_optimisation(_groups(rows, scores, gold)),
    )


def over_optimisation(groups: Sequence[tuple[Array, Array]]) -> list[Optimised]:
    """Best of n by the proxy, for each n that every prompt has samples for (Gao et al. 2022).

    `groups` hold a prompt's proxy and gold scores, (N,) each. The expectation over all subsets of n, not one draw:
    sorted by the proxy, the i-th of N is the best of C(i - 1, n - 1) of the C(N, n) subsets. All responses to a prompt
    are its samples, whoever wrote them.
    """
    if not groups:
        raise NoDataError("--gold: no response has both scores")
    most = max(len(proxy) for proxy, _ in groups)
    curve: list[Optimised] = []
    for n in (2**k for k in range(12) if 2**k <= most):
        enough = [group for group in groups if len(group[0]) >= n]
        if len(enough) < LEAST * len(groups):
            break
        proxies, golds = np.array([_best_of(n, *group) for group in enough]).T
        curve.append(
            Optimised(n, len(enough), math.log(n) - (n - 1) / n, number_interval(proxies), number_interval(golds))
        )
    return curve


def _best_of(n: int, proxy: Array, gold: Array) -> tuple[float, float]:
    """The expected scores of the best of n; of equal proxies any may be it, so they share their weight."""
    order = np.argsort(proxy, kind="stable")
    weights = np.array([math.comb(i, n - 1) / math.comb(len(proxy), n) for i in range(len(proxy))])
    same = np.unique(proxy[order], return_inverse=True)[1]
    shared = (np.bincount(same, weights) / np.bincount(same))[same]
    return float(shared @ proxy[order]), float(shared @ gold[order])


def _groups(
    rows: Sequence[Comparison], proxy: Mapping[str, float], gold: Mapping[str, float]
) -> list[tuple[Array, Array]]:
    """The responses of each prompt that have both scores, each once."""
    prompts: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for row in rows:
        for response in row.responses:
            about = scored.content(row.prompt, response)
            if about in proxy and about in gold:
                prompts[scored.content(row.prompt, "")][about] = (proxy[about], gold[about])
    tables = [np.array(list(each.values())) for each in prompts.values()]
    return [(table[:, 0], table[:, 1]) for table in tables]


def _turned(margin: Array) -> tuple[Array, Array]:
    """Margins as log-odds of one side, with every second item turned round: else the outcome would always be 1."""
    turned = np.arange(len(margin)) % 2 == 1
    return np.where(turned, -margin, margin), np.where(turned, 0.0, 1.0)


def _histogram(margin: Array) -> list[tuple[float, float, int]]:
    counts, edges = np.histogram(margin, BINS)
    return [(float(edges[at]), float(edges[at + 1]), int(count)) for at, count in enumerate(counts)]
