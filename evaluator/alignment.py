"""How often does the labeler agree with people? Labeler alignment (RLAIF, section 3.4), and what it is worth.

Ties, by the one policy that every number here follows: where the labeler's p is exactly .5 it counts as half right;
items on which people are tied have no right answer and count in `ties.human` alone. An order whose answer could not be
read (its mass is 0) is wrong, and a class of its own in kappa.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.records import Comparison, Label, Vote
from data.where import cell
from evaluator.agreement import cohen_kappa, confusion
from evaluator.ballots import named
from evaluator.calibration import Bin, Temperature, brier, expected_calibration_error, reliability, temperature
from evaluator.intervals import (
    Array,
    Interval,
    NoDataError,
    intervals_json,
    mean_interval,
    ratio_interval,
    table_interval,
)
from evaluator.significance import difference, mcnemar, sample_sizes

TIE, UNREAD = 2, 3

CONFIDENCE = ((1.0, "unanimous"), (0.75, "three in four or more"), (0.0, "less"))
"""Shares of the votes that the majority has, and what they are called."""


@dataclass(frozen=True)
class OrderAlignment:
    """One shown order alone: `unread` verdicts count as wrong."""

    alignment: Interval
    kappa: Interval
    unread: int

    def json(self) -> dict[str, Any]:
        return {"alignment": self.alignment.json(), "kappa": self.kappa.json(), "unread": self.unread}


@dataclass(frozen=True)
class Yardstick:
    """Is the labeler as good as one more person? Each vote, and the label, against the majority of the other votes."""

    human: Interval
    labeler: Interval
    difference: Interval

    def json(self) -> dict[str, Any]:
        told = {"human": self.human, "labeler": self.labeler, "difference": self.difference}
        return {name: each.json() for name, each in told.items()}


@dataclass(frozen=True)
class Versus:
    """Another labeler on the same items: `difference` is how much more often the first is right; `only_first` counts
    the items on which it is righter."""

    alignment: Interval
    difference: Interval
    p_value: float
    only_first: int
    only_second: int

    def json(self) -> dict[str, Any]:
        counts = {"first_righter": self.only_first, "second_righter": self.only_second}
        told = {"alignment": self.alignment.json(), "difference": self.difference.json()}
        return {**told, "p_value": self.p_value, "test": "McNemar, exact", **counts}


@dataclass(frozen=True)
class Alignment:
    """See `json` for what is reported; every `Interval` resamples items."""

    alignment: Interval
    same_position: Interval | None
    first_position: Interval | None
    consistent: Interval | None
    first_shown: Interval | None
    both_right: Interval | None
    orders: Sequence[OrderAlignment]
    kappa: Interval
    brier: Interval
    ece: Interval
    reliability: Sequence[Bin]
    temperature: Temperature | None
    prefers_longer: Interval
    against_raters: Interval
    raters: Mapping[str, Interval]
    yardstick: Yardstick | None
    ties: Mapping[str, int]
    failures: Mapping[str, int]
    by: Mapping[str, Interval]
    by_confidence: Mapping[str, Interval]
    by_strength: Mapping[str, Interval]
    versus: Versus | None
    sample_size: Mapping[str, Mapping[str, Any]]
    mass: float
    labels: int
    unmatched: int
    other_texts: int

    def json(self) -> dict[str, Any]:
        return {
            "alignment": self.alignment.json(),
            "same_position": self.same_position and self.same_position.json(),
            "first_position": self.first_position and self.first_position.json(),
            "consistent": self.consistent and self.consistent.json(),
            "first_shown": self.first_shown and self.first_shown.json(),
            "both_orders_right": self.both_right and self.both_right.json(),
            "orders": [each.json() for each in self.orders],
            "kappa": self.kappa.json(),
            "brier": self.brier.json(),
            "ece": self.ece.json(),
            "reliability": [each.json() for each in self.reliability],
            "temperature": self.temperature and self.temperature.json(),
            "prefers_longer": self.prefers_longer.json(),
            "against_raters": self.against_raters.json(),
            "raters": intervals_json(self.raters),
            "yardstick": self.yardstick and self.yardstick.json(),
            "ties": dict(self.ties),
            "failures": dict(self.failures),
            "by": intervals_json(self.by),
            "by_confidence": intervals_json(self.by_confidence),
            "by_strength": intervals_json(self.by_strength),
            "versus": self.versus and self.versus.json(),
            "sample_size": {points: dict(each) for points, each in self.sample_size.items()},
            "median_mass": self.mass,
            "labels": self.labels,
            "unmatched": self.unmatched,
            "other_texts": self.other_texts,
        }


Judged = tuple[Label, Comparison, int]
"""A label, the row that it is about, and what most people chose there: 0, 1 or TIE."""


def evaluate(
    labels: Iterable[Label],
    human: Mapping[str, Comparison],
    *,
    failures: Mapping[str, int] | None = None,
    by: str | None = None,
    versus: Iterable[Label] | None = None,
) -> Alignment:
    """Compare labels with the votes on the same ids. Raises NoDataError where nothing can be compared."""
    every = list(labels)
    joined, other_texts = join(every, human)
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
    against = None if versus is None else _versus(decided, right, versus)
    aligned = mean_interval(right)
    apart = None if against is None else (against.only_first + against.only_second) / against.difference.n
    return Alignment(
        alignment=aligned,
        same_position=_share(label.same_position for label, _ in joined),
        first_position=_share(_first(label) for label, _ in joined if label.same_position),
        consistent=_share(_consistent(label) for label, _ in joined),
        first_shown=first_shown([label for label, _ in joined]),
        both_right=_both_right(decided),
        orders=_orders(decided),
        kappa=table_interval(confusion(_sides(p), best, 3), cohen_kappa),
        brier=brier(p, 1 - best),
        ece=expected_calibration_error(p, 1 - best),
        reliability=reliability(p, 1 - best),
        temperature=temperature(p, 1 - best),
        prefers_longer=mean_interval(_right(np.array([_longer(row) for _, row, _ in decided]), best)),
        against_raters=_against_raters(judged),
        raters=_raters(judged),
        yardstick=_yardstick(judged),
        ties={"labeler": int((p == 0.5).sum()), "human": len(judged) - len(decided)},
        failures=dict(failures or {}),
        by={} if by is None else _subsets(by, decided, right),
        by_confidence=_by_confidence(decided, right),
        by_strength=_grouped([_strength(row.votes) for _, row, _ in decided], right),
        versus=against,
        sample_size=sample_sizes(aligned.value, apart),
        mass=float(np.median([label.mass for label in every])),
        labels=len(every),
        unmatched=len(every) - len(joined),
        other_texts=other_texts,
    )


def join(labels: Sequence[Label], human: Mapping[str, Comparison]) -> tuple[list[tuple[Label, Comparison]], int]:
    """Labels with the rows of their ids, and how many are about other texts than theirs. Raises NoDataError."""
    known = [(label, human[label.id]) for label in labels if label.id in human]
    joined = [(label, row) for label, row in known if label.content in {"", row.content}]
    if not joined:
        what = (
            "every label is about other texts than the human row of its id" if known else "no label's id is among them"
        )
        raise NoDataError(f"labels and human comparisons do not match: {what}; were they made from the same file?")
    return joined, len(known) - len(joined)


def majority(votes: Sequence[Vote]) -> int:
    """What most raters chose: 0, 1, or TIE where no choice has more votes than each other one."""
    counts = Counter(TIE if vote.choice == "tie" else vote.choice for vote in named(votes).values())
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


def _against_raters(judged: Sequence[Judged]) -> Interval:
    """The share of single votes that the labeler agrees with, averaged by item first: votes on one item go together."""
    shares = [sum(each) / len(each) for label, row, _ in judged if (each := _agreements(label, row.votes))]
    return mean_interval(np.array(shares))


def _agreements(label: Label, votes: Sequence[Vote]) -> list[float]:
    decided = [vote.choice for vote in votes if vote.choice != "tie"]
    return [0.5 if label.choice is None else float(label.choice == choice) for choice in decided]


def _raters(judged: Sequence[Judged]) -> dict[str, Interval]:
    by_rater: dict[str, list[float]] = defaultdict(list)
    for label, row, _ in judged:
        for rater in dict.fromkeys(vote.rater for vote in row.votes):
            if each := _agreements(label, [vote for vote in row.votes if vote.rater == rater]):
                by_rater[rater].append(sum(each) / len(each))
    return {rater: mean_interval(np.array(each)) for rater, each in sorted(by_rater.items()) if each}


def _subsets(column: str, decided: Sequence[Judged], right: Array) -> dict[str, Interval]:
    values = [cell(row, column) for _, row, _ in decided]
    found = _grouped([None if value is None else str(value) for value in values], right)
    if not found:
        known = sorted({name for _, row, _ in decided for name in row.meta})
        raise NoDataError(f"--by {column}: no such column; there are {', '.join(known[:20]) or 'none'}")
    return dict(sorted(found.items()))


def _grouped(names: Sequence[str | None], values: Array) -> dict[str, Interval]:
    groups: dict[str, list[int]] = defaultdict(list)
    for at, name in enumerate(names):
        if name is not None:
            groups[name].append(at)
    return {name: mean_interval(values[places]) for name, places in groups.items()}


def _by_confidence(decided: Sequence[Judged], right: Array) -> dict[str, Interval]:
    found = _grouped([_confidence(row.votes) for _, row, _ in decided], right)
    return {name: found[name] for _, name in CONFIDENCE if name in found}


def _confidence(votes: Sequence[Vote]) -> str | None:
    """How many of them agree; None for a single vote, which says nothing of that."""
    if len(votes) < 2:
        return None
    share = max(Counter(vote.choice for vote in votes).values()) / len(votes)
    return next(name for least, name in CONFIDENCE if share >= least)


def _strength(votes: Sequence[Vote]) -> str | None:
    """The strength that most raters of an item gave; None where none did."""
    told = Counter(vote.strength for vote in votes if vote.strength is not None)
    return told.most_common(1)[0][0] if told else None


def _consistent(label: Label) -> bool | None:
    """Both orders were read and prefer the same response; None where one order was asked."""
    if len(label.orders) != 2:
        return None
    sides = [_side(label, at) for at in (0, 1)]
    return sides[0] == sides[1] and sides[0] != UNREAD


def _side(label: Label, at: int) -> int:
    """What one order says: response 0, 1, TIE or UNREAD."""
    order = label.orders[at]
    if order.mass == 0:
        return UNREAD
    return TIE if order.p_first == 0.5 else int((order.p_first < 0.5) == (at == 0))


def first_shown(labels: Sequence[Label]) -> Interval | None:
    """The share of all verdicts, of either order, that chose what was shown first; a label's two go together."""
    said = [[order.p_first for order in label.orders if order.mass > 0] for label in labels if len(label.orders) == 2]
    rows = np.array([(sum(0.5 if p == 0.5 else float(p > 0.5) for p in each), len(each)) for each in said if each])
    return ratio_interval(rows[:, 0], rows[:, 1]) if len(rows) else None


def _both_right(decided: Sequence[Judged]) -> Interval | None:
    two = [(label, side) for label, _, side in decided if len(label.orders) == 2]
    return _share(_side(label, 0) == _side(label, 1) == side for label, side in two)


def _orders(decided: Sequence[Judged]) -> list[OrderAlignment]:
    return [_order([each for each in decided if len(each[0].orders) > at], at) for at in range(_most_orders(decided))]


def _most_orders(decided: Sequence[Judged]) -> int:
    return max(len(label.orders) for label, _, _ in decided)


def _order(decided: Sequence[Judged], at: int) -> OrderAlignment:
    said = np.array([float(_side(label, at)) for label, _, _ in decided])
    best = np.array([float(side) for _, _, side in decided])
    right = np.where(said == TIE, 0.5, (said == best).astype(np.float64))
    table = confusion(said, best, 4)
    return OrderAlignment(mean_interval(right), table_interval(table, cohen_kappa), int((said == UNREAD).sum()))


def _yardstick(judged: Sequence[Judged]) -> Yardstick | None:
    """Over single votes, with those of one item together; votes whose others are tied are left out."""
    human: list[tuple[float, float]] = []
    labeler: list[tuple[float, float]] = []
    for label, row, _ in judged:
        sides = [vote.choice for vote in named(row.votes).values() if vote.choice != "tie"]
        votes = [sides.count(0), sides.count(1)]
        agreed, model, count = 0.0, 0.0, 0
        for side in (0, 1):
            others = votes[side] - 1 - votes[1 - side]
            if votes[side] and others:
                best = side if others > 0 else 1 - side
                count += votes[side]
                agreed += votes[side] * (others > 0)
                model += votes[side] * (0.5 if label.choice is None else float(label.choice == best))
        if count:
            human.append((agreed, count))
            labeler.append((model, count))
    if not human:
        return None
    one, other = np.array(human), np.array(labeler)
    return Yardstick(
        ratio_interval(one[:, 0], one[:, 1]),
        ratio_interval(other[:, 0], other[:, 1]),
        ratio_interval(other[:, 0] - one[:, 0], one[:, 1]),
    )


def _versus(decided: Sequence[Judged], right: Array, versus: Iterable[Label]) -> Versus:
    """Raises NoDataError where the other labeler answered none of the items."""
    other = {label.id: label for label in versus}
    both = [at for at, (label, row, _) in enumerate(decided) if _about(other.get(label.id), row)]
    if not both:
        raise NoDataError("--versus: those labels are about other comparisons; were they made from the same file?")
    p = np.array([other[decided[at][0].id].p for at in both])
    best = np.array([float(decided[at][2]) for at in both])
    first, second = right[both], _right(p, best)
    return Versus(
        mean_interval(second),
        difference(first, second),
        mcnemar(first, second),
        int((first > second).sum()),
        int((first < second).sum()),
    )


def _about(label: Label | None, row: Comparison) -> bool:
    return label is not None and label.content in {"", row.content}
