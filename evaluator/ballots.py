"""Votes and ratings as columns of numbers: what every measure of agreement starts from."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import FileError
from data.records import Comparison, Failure, Rating, Response, Vote
from evaluator.intervals import Array, IntArray, NoDataError

HARMLESS, HARMFUL = "harmless", "harmful"
MOST_CLASSES = 1000
UNNAMED = Vote.model_fields["rater"].default
MISSING = frozenset({"", "nan", "na", "n/a", "none", "null", "*"})
"""Cells of a matrix that hold no vote."""


@dataclass(frozen=True)
class Ballots:
    """Vote v says that `raters[rater[v]]` put `items[item[v]]` into `classes[choice[v]]`: three columns (V,).

    `values` are the classes' numbers where they have an order; None where they are names. A rater's last vote on an
    item counts.
    """

    item: IntArray
    rater: IntArray
    choice: IntArray
    items: tuple[str, ...]
    raters: tuple[str, ...]
    classes: tuple[str, ...]
    values: Array | None

    def counts(self) -> Array:
        """How many raters put each item into each class, (N, K)."""
        size = len(self.items), len(self.classes)
        cells = np.bincount(self.item * size[1] + self.choice, minlength=size[0] * size[1])
        return cells.reshape(size).astype(np.float64)


def of_comparisons(rows: Iterable[Comparison | Failure]) -> Ballots:
    """The votes of comparisons, one row an item. Of two responses, a tie lies between them."""
    votes = [
        (row.id, rater, str(vote.choice))
        for row in rows
        if isinstance(row, Comparison)
        for rater, vote in named(row.votes).items()
    ]
    two = {"1": 0.0, "tie": 0.5, "0": 1.0}
    if {choice for _, _, choice in votes} <= two.keys():
        return _ballots(votes, two)
    return _ballots(votes, None)


def of_responses(rows: Iterable[Response | Failure]) -> Ballots:
    """The ratings of responses, which must all be of one kind: harmful or not, scores, or classes."""
    ratings = [(f"{row.id} {row.content}", each) for row in rows if isinstance(row, Response) for each in row.ratings]
    kinds = {_kind(each) for _, each in ratings}
    if len(kinds) > 1:
        raise NoDataError(
            f"the ratings are of several kinds ({', '.join(sorted(kinds))}); name one with --columns ratings="
        )
    if kinds == {"score"}:
        return of_scores([(item, each.rater, float(each.score or 0.0)) for item, each in ratings])
    order = {HARMLESS: 0.0, HARMFUL: 1.0} if kinds == {"harmful"} else None
    return _ballots([(item, each.rater, _class(each)) for item, each in ratings], order)


def of_scores(scores: list[tuple[str, str, float]]) -> Ballots:
    """(item, rater, number): each different number is a class."""
    values = {f"{value:g}": value for value in sorted({value for _, _, value in scores})}
    if len(values) > MOST_CLASSES:
        raise NoDataError(f"{len(values)} different scores; round them, agreement is counted by class")
    return _ballots([(item, rater, f"{value:g}") for item, rater, value in scores], values)


def of_matrix(source: str) -> Ballots:
    """A CSV without a header: a row is a rater, a column an item, an empty cell a missing vote. Raises FileError."""
    try:
        with Path(source).open(encoding="utf-8-sig", newline="") as file:
            cells = [
                (row, column, cell.strip())
                for row, line in enumerate(csv.reader(file))
                for column, cell in enumerate(line)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{source}: cannot be read as a matrix: {error}") from None
    votes = [(str(column), str(row), cell) for row, column, cell in cells if cell.lower() not in MISSING]
    try:
        numbers = [(item, rater, float(cell)) for item, rater, cell in votes]
    except ValueError:
        return _ballots(votes, None)
    if not all(math.isfinite(value) for _, _, value in numbers):
        raise NoDataError(f"{source}: holds an infinite number")
    return of_scores(numbers)


def _ballots(votes: list[tuple[str, str, str]], order: dict[str, float] | None) -> Ballots:
    if not votes:
        raise NoDataError("there are no votes or ratings in it; name their column: --columns ...,human= or ratings=")
    last = {(item, rater): choice for item, rater, choice in votes}
    if order is None and len(set(last.values())) > MOST_CLASSES:
        raise NoDataError(f"more than {MOST_CLASSES} different votes; are these texts, and not classes?")
    items = {item: at for at, item in enumerate(dict.fromkeys(item for item, _ in last))}
    raters = {rater: at for at, rater in enumerate(sorted({rater for _, rater in last}))}
    present = set(last.values())
    names = [name for name in order if name in present] if order else sorted(present)
    classes = {name: at for at, name in enumerate(names)}
    return Ballots(
        np.array([items[item] for item, _ in last], dtype=np.int64),
        np.array([raters[rater] for _, rater in last], dtype=np.int64),
        np.array([classes[choice] for choice in last.values()], dtype=np.int64),
        tuple(items),
        tuple(raters),
        tuple(classes),
        np.array([order[name] for name in names]) if order else None,
    )


def named(votes: Iterable[Vote]) -> dict[str, Vote]:
    """One vote a rater, the last; those without a name are of different people."""
    found: dict[str, Vote] = {}
    unnamed = 0
    for vote in votes:
        unnamed += vote.rater == UNNAMED
        found[f"{UNNAMED} {unnamed}" if vote.rater == UNNAMED and unnamed > 1 else vote.rater] = vote
    return found


def _kind(rating: Rating) -> str:
    return "harmful" if rating.harmful is not None else "score" if rating.score is not None else "label"


def _class(rating: Rating) -> str:
    return rating.label if rating.label is not None else HARMFUL if rating.harmful else HARMLESS


def by_prompt(rows: Iterable[Response | Failure]) -> dict[str, list[tuple[str, str, float]]]:
    """(rater, response, score) of each prompt: what Kendall's W compares."""
    found: dict[str, list[tuple[str, str, float]]] = {}
    for row in rows:
        if isinstance(row, Response):
            prompt = str(row.prompt)
            scored = [(each.rater, row.id, each.score) for each in row.ratings if each.score is not None]
            found.setdefault(prompt, []).extend(scored)
    return found
