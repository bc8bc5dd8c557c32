"""What does a labeler fall for, and do people too? The labeler's rate beside the people's, trait by trait.

A new trait is one function in TRAITS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.records import Comparison, Label
from evaluator.alignment import TIE, first_shown, join, majority
from evaluator.clusters import by_prompt
from evaluator.intervals import Interval, NoDataError, mean_interval
from evaluator.significance import difference

_LIST = re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)])\s+\S", re.MULTILINE)
_MARKUP = re.compile(r"^#{1,6}\s|\*\*\S|```|^\|.*\|", re.MULTILINE)
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|afraid|unable|not able)|i (?:can(?:no|')t|won't|will not|must decline)"
    r"|as an ai\b|i do(?:n't| not) (?:feel comfortable|think it(?:'s| is) appropriate))",
    re.IGNORECASE,
)
OPENING = 200
"""Characters in which a refusal is looked for: later on it is a remark."""


def longer(row: Comparison) -> Sequence[float]:
    return [len(response) for response in row.responses]


def lists(row: Comparison) -> Sequence[float]:
    return [float(bool(_LIST.search(response))) for response in row.responses]


def markup(row: Comparison) -> Sequence[float]:
    return [float(bool(_MARKUP.search(response))) for response in row.responses]


def refusal(row: Comparison) -> Sequence[float]:
    return [float(bool(_REFUSAL.search(response[:OPENING].replace("’", "'")))) for response in row.responses]


Trait = Callable[[Comparison], Sequence[float]]
"""How much of something each response has; items on which both have as much say nothing of it."""

TRAITS: Mapping[str, Trait] = {"longer": longer, "list": lists, "markup": markup, "refusal": refusal}


@dataclass(frozen=True)
class Preference:
    """How often the response with more of a trait is preferred: by the labeler, by the majority of people, and by how
    much more."""

    labeler: Interval
    human: Interval | None
    difference: Interval | None

    def json(self) -> dict[str, Any]:
        told = {"labeler": self.labeler, "human": self.human, "difference": self.difference}
        return {name: each and each.json() for name, each in told.items()}


@dataclass(frozen=True)
class BiasCard:
    """`position` is the share of verdicts, of both orders, for what was shown first: one half has no leaning."""

    position: Interval | None
    same_position: Interval | None
    traits: Mapping[str, Preference]
    models: Mapping[str, Preference]

    def json(self) -> dict[str, Any]:
        return {
            "position": self.position and self.position.json(),
            "same_position": self.same_position and self.same_position.json(),
            "traits": {name: each.json() for name, each in self.traits.items()},
            "models": {name: each.json() for name, each in self.models.items()},
        }


def card(labels: Iterable[Label], human: Mapping[str, Comparison]) -> BiasCard:
    """Raises NoDataError where no label is about a row."""
    joined, _ = join(list(labels), human)
    joined = [(label, row) for label, row in joined if len(row.responses) == 2]
    if not joined:
        raise NoDataError("no label is about a comparison of two responses")
    same = np.array([float(label.same_position) for label, _ in joined if label.same_position is not None])
    names = sorted({name for _, row in joined for name in row.models or ()})
    found = {name: _preference(joined, trait) for name, trait in TRAITS.items()}
    own = {name: _preference(joined, _by(name)) for name in names}
    return BiasCard(
        first_shown([label for label, _ in joined]),
        mean_interval(same) if len(same) else None,
        {name: each for name, each in found.items() if each is not None},
        {name: each for name, each in own.items() if each is not None},
    )


def _by(model: str) -> Trait:
    return lambda row: [float(name == model) for name in row.models or ("", "")]


def _preference(joined: Sequence[tuple[Label, Comparison]], trait: Trait) -> Preference | None:
    """Over the items on which the responses differ; None where there are none."""
    both: list[tuple[float, float]] = []
    rows: list[Comparison] = []
    said: list[float] = []
    for label, row in joined:
        much = trait(row)
        if much[0] == much[1]:
            continue
        more = int(much[1] > much[0])
        own = 0.5 if label.p == 0.5 else float((label.p < 0.5) == (more == 1))
        said.append(own)
        if row.votes:
            best = majority(row.votes)  # one verdict of people beside one of the labeler: like with like
            both.append((own, 0.5 if best == TIE else float(best == more)))
            rows.append(row)
    if not said:
        return None
    pairs = np.array(both).reshape(-1, 2)
    human = mean_interval(pairs[:, 1]) if len(pairs) else None
    apart = difference(pairs[:, 0], pairs[:, 1], by_prompt(rows)) if len(pairs) else None
    return Preference(mean_interval(np.array(said)), human, apart)
