"""From verdicts to the rows of the votes file: the project's own records, responses in the order of the input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from data.records import Comparison, Rating, Vote
from evaluator.annotate.items import Items, Row
from evaluator.annotate.verdicts import Verdict


def rows(items: Items, votes: Mapping[int, Mapping[str, Verdict]]) -> Iterator[dict[str, Any]]:
    """One row for each item that somebody judged."""
    for number, said in votes.items():
        yield judged(items[number], said).model_dump()


def judged(row: Row, said: Mapping[str, Verdict]) -> Row:
    """A row with what its raters said; `meta.shown` has the order in which each saw the responses."""
    if isinstance(row, Comparison):
        given = tuple(
            Vote(rater=rater, choice=each.choice, strength=each.strength)
            for rater, each in said.items()
            if isinstance(each.choice, int) or each.choice == "tie"
        )
        shown = {rater: list(each.shown) for rater, each in said.items()}
        return row.model_copy(update={"votes": given, "meta": {**row.meta, "shown": shown}})
    ratings = tuple(Rating(rater=rater, harmful=each.choice == "harmful") for rater, each in said.items())
    return row.model_copy(update={"ratings": ratings})
