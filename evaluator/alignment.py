"""How often does the labeler agree with people? Labeler alignment (RLAIF, section 3.4), and what it is worth.

Ties, by the one policy that every number here follows: where the labeler's p is exactly .5 it counts as half right;
items on which people are tied have no right answer and count in `ties.human` alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.records import Comparison, Label, Vote
from evaluator.agreement import cohen_kappa, confusion
from evaluator.calibration import brier, expected_calibration_error
from evaluator.intervals import Array, Interval, NoDataError, intervals_json, mean_interval, table_interval

TIE = 2


@dataclass(frozen=True)
class Alignment:
    """See `json` for what is reported; every `Interval` resamples items."""

    alignment: Interval
    same_position: Interval | None
    first_position: Interval | None
    kappa: Interval
    brier: Interval
    ece: Interval
    prefers_longer: Interval
    against_raters: Interval
    raters: Mapping[str, Interval]
    ties: Mapping[str, int]
    failures: Mapping[str, int]
    by: Mapping[str, Interval]
    mass: float
    labels: int
    unmatched: int
    other_texts: int

    def json(self) -> dict[str, Any]:
        return {
            "alignment": self.alignment.json(),
            "same_position": self.same_position and self.same_position.json(),
            "first_position": self.first_position and self.first_position.json(),
            "kappa": self.kappa.json(),
            "brier": self.brier.json(),
            "ece": self.ece.json(),
            "prefers_longer": self.prefers_longer.json(),
            "against_raters": self.against_raters.json(),
            "raters": intervals_json(self.raters),
            "ties": dict(self.ties),
            "failures": dict(self.failures),
            "by": intervals_json(self.by),
            "median_mass": self.mass,
            "labels": self.labels,
            "unmatched": self.unmatched,
            "other_texts": self.other_texts,
        }


def evaluate(
    labels: Iterable[Label],
    human: Mapping[str, Comparison],
    *,
    failures: Mapping[str, int] | None = None,
    by: str | None = None,
) -> Alignment:
    """Compare labels with the votes on the same ids. Raises NoDataError where nothing can be compared."""
    every = list(labels)
    known = [(label, human[label.id]) for label in every if label.id in human]
    joined = [(label, row) for label, row in known if label.content in {"", row.content}]
    if not joined:
        what = (
            "every label is about other texts than the human row of its id" if known else "no label's id is among them"
        )
        raise NoDataError(f"labels and human comparisons do not match: {what}; were they made from the same file?")
    judged = [(label, row, majority(row.votes)) for label, row in joined if row.votes]
    decided = [(label, row, side) for label, row, side in judged if side != TIE]
    if not decided:
        if judged:
            raise NoDataError(
                f"people are tied on all {len(judged)} comparisons; there is no right answer to agree with"
            )
        raise NoDataError(
            "the human comparisons have no votes; a column such as `human`, `label` or `votes` is missing"
        )
    p = np.array([label.p for label, _, _ in decided])
    best = np.array([float(side) for _, _, side in decided])
    right = _right(p, best)
    return Alignment(
        alignment=mean_interval(right),
        same_position=_share(label.same_position for label, _ in joined),
        first_position=_share(_first(label) for label, _ in joined if label.same_position),
        kappa=table_interval(confusion(_sides(p), best, 3), cohen_kappa),
        brier=brier(p, 1 - best),
        ece=expected_calibration_error(p, 1 - best),
        prefers_longer=mean_interval(_right(np.array([_longer(row) for _, row, _ in decided]), best)),
        against_raters=_against_raters(judged),
        raters=_raters(judged),
        ties={"labeler": int((p == 0.5).sum()), "human": len(judged) - len(decided)},
        failures=dict(failures or {}),
        by={} if by is None else _subsets(by, decided, right),
        mass=float(np.median([label.mass for label in every])),
        labels=len(every),
        unmatched=len(every) - len(joined),
        other_texts=len(known) - len(joined),
    )


def majority(votes: Sequence[Vote]) -> int:
    """What most raters chose: 0, 1, or TIE where no choice has more votes than each other one."""
    counts = Counter(TIE if vote.choice == "tie" else vote.choice for vote in votes)
    best = max(counts.values())
    leading = [choice for choice, count in counts.items() if count == best]
    return leading[0] if len(leading) == 1 else TIE


def _right(p: Array, best: Array) -> Array:
    """1 where p prefers the response that people preferred, .5 where it does not say, else 0."""
    return np.where(p == 0.5, 0.5, ((p < 0.5) == (best == 1)).astype(np.float64))


def _sides(p: Array) -> Array:
    return np.where(p == 0.5, TIE, (p < 0.5).astype(np.float64))


def _share(values: Iterable[bool | None]) -> Interval | None:
    known = np.array([float(value) for value in values if value is not None])
    return mean_interval(known) if len(known) else None


def _first(label: Label) -> bool:
    return label.orders[0].p_first > 0.5


def _longer(row: Comparison) -> float:
    """What a labeler would say that always prefers the longer response."""
    first, second = (len(response) for response in row.responses[:2])
    return 0.5 if first == second else float(first > second)


def _against_raters(judged: Sequence[tuple[Label, Comparison, int]]) -> Interval:
    """The share of single votes that the labeler agrees with, averaged by item first: votes on one item go together."""
    shares = [sum(each) / len(each) for label, row, _ in judged if (each := _agreements(label, row.votes))]
    return mean_interval(np.array(shares))


def _agreements(label: Label, votes: Sequence[Vote]) -> list[float]:
    decided = [vote.choice for vote in votes if vote.choice != "tie"]
    return [0.5 if label.choice is None else float(label.choice == choice) for choice in decided]


def _raters(judged: Sequence[tuple[Label, Comparison, int]]) -> dict[str, Interval]:
    by_rater: dict[str, list[float]] = defaultdict(list)
    for label, row, _ in judged:
        for rater in dict.fromkeys(vote.rater for vote in row.votes):
            if each := _agreements(label, [vote for vote in row.votes if vote.rater == rater]):
                by_rater[rater].append(sum(each) / len(each))
    return {rater: mean_interval(np.array(each)) for rater, each in sorted(by_rater.items()) if each}


def _subsets(column: str, decided: Sequence[tuple[Label, Comparison, int]], right: Array) -> dict[str, Interval]:
    groups: dict[str, list[int]] = defaultdict(list)
    for at, (_, row, _) in enumerate(decided):
        if column in row.meta:
            groups[str(row.meta[column])].append(at)
    if not groups:
        known = sorted({name for _, row, _ in decided for name in row.meta})
        raise NoDataError(f"--by {column}: no such column; there are {', '.join(known[:20]) or 'none'}")
    return {name: mean_interval(right[places]) for name, places in sorted(groups.items())}
