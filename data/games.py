"""Who won against whom? Head-to-head results out of comparisons with models, or of tables without texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data import tables
from data.errors import RlaifError
from data.reading import comparisons
from data.records import Comparison, Failure, Label, Vote, hashed
from data.tables import BadRow, Numbered
from data.where import kept, parse

TABLES = (("left", "right"), ("model_a", "model_b"))
"""Columns of tables with a `winner` beside them: evalica's, and Chatbot Arena's."""

_TIES = ("tie", "draw", "both")


@dataclass(frozen=True, slots=True)
class Game:
    """One result: `score` is 1 where `first` won, 0 where `second` did, .5 for a tie, or a probability.

    Games of one `cluster` were about the same prompt, and are resampled together. `chars` are the responses' lengths.
    """

    first: str
    second: str
    score: float
    cluster: str
    item: str
    rater: str = "human"
    chars: tuple[int, int] | None = None


def games(source: str, columns: str | None = None, where: Iterable[str] = ()) -> Iterator[Game | Failure]:
    """The results in a file, in its order. Raises FileError."""
    if columns is None and (pair := _table(source)) is not None:
        return _tabled(source, *pair, list(where))
    return of_comparisons(kept(comparisons(source, columns), list(where)), source)


def _table(source: str) -> tuple[str, str] | None:
    row = _first(source)
    if "winner" not in row or "prompt" in row:
        return None
    return next((pair for pair in TABLES if all(name in row for name in pair)), None)


def _tabled(source: str, left: str, right: str, where: Sequence[str]) -> Iterator[Game | Failure]:
    tests, seen, kept_rows = parse(where), 0, 0
    for each in tables.read(source):
        seen += 1
        if not isinstance(each.row, BadRow) and not all(test.fits(each.row.get(test.column)) for test in tests):
            continue
        kept_rows += 1
        place = f"{source}:{each.number}"
        found = _cells(each, left, right, place)
        if isinstance(found, str):
            yield Failure(id=place, stage="read", reason="bad_row", message=f"{place}: {found}")
        else:
            yield found
    if where and not kept_rows:
        raise RlaifError(f"--where {' --where '.join(where)}: fits none of {seen} rows")


def _cells(each: Numbered, left: str, right: str, place: str) -> Game | str:
    if isinstance(each.row, BadRow):
        return each.row.message
    first, second, said = each.row.get(left), each.row.get(right), str(each.row.get("winner") or "").lower()
    if not first or not second:
        return f"{left}, {right}: expected two names"
    if said.startswith(_TIES):
        score = 0.5
    elif said in {left, "first", "a"}:
        score = 1.0
    elif said in {right, "second", "b"}:
        score = 0.0
    else:
        return f"winner: expected {left}, {right} or tie, got {said[:40]!r}"
    rater = str(each.row.get("judge") or each.row.get("rater") or "human")
    return Game(str(first), str(second), score, str(each.row.get("question_id") or place), place, rater)


def of_comparisons(rows: Iterable[Comparison | Failure], source: str = "") -> Iterator[Game | Failure]:
    """A game for each vote; of more than two responses, the chosen one wins against each other one. Ids of different
    sources are different items; a prompt is the same everywhere."""
    for row in rows:
        if isinstance(row, Failure):
            yield row
            continue
        cluster, names = _cluster(row), _names(row)
        for vote in row.votes:
            for i, j, score in _results(vote, len(row.responses)):
                chars = (len(row.responses[i]), len(row.responses[j]))
                yield Game(names[i], names[j], score, cluster, f"{source}:{row.id}", vote.rater, chars)


def _results(vote: Vote, count: int) -> Iterator[tuple[int, int, float]]:
    if vote.p is not None and count == 2:
        yield 0, 1, vote.p
    elif vote.choice == "tie":
        yield from ((i, j, 0.5) for i in range(count) for j in range(i + 1, count))
    else:
        # in the order of the row, so that the pair keeps its sides
        for other in range(count):
            if other != vote.choice:
                low = other < vote.choice
                yield (other, vote.choice, 0.0) if low else (vote.choice, other, 1.0)


def of_labels(labels: Iterable[Label], rows: Mapping[str, Comparison] | None) -> Iterator[Game | Failure]:
    """A game for each soft label; a failure for one that is about none of the rows. Without the comparisons there are
    no names and no lengths."""
    for label in labels:
        row = None if rows is None else rows.get(label.id)
        if rows is not None and (row is None or (label.content and row.content != label.content)):
            why = "no comparison has its id" if row is None else "the comparison of its id has other texts"
            yield Failure(id=label.id, stage="join", reason="unmatched", message=f"label {label.id}: {why}")
            continue
        names = _names(row) if row else ("response 0", "response 1")
        chars = (len(row.responses[0]), len(row.responses[1])) if row else None
        yield Game(names[0], names[1], label.p, _cluster(row) if row else label.id, label.id, label.model, chars)


def is_labels(source: str) -> bool:
    """Whether a file holds labels, by its first row."""
    return {"p", "orders"} <= _first(source).keys()


def _first(source: str) -> Mapping[str, Any]:
    for each in tables.read(source):
        if not isinstance(each.row, BadRow):
            return each.row
    return {}


def _names(row: Comparison) -> tuple[str, ...]:
    return row.models or tuple(f"response {at}" for at in range(len(row.responses)))


def _cluster(row: Comparison) -> str:
    prompt = row.prompt
    return hashed([prompt] if isinstance(prompt, str) else [f"{each.role}:{each.content}" for each in prompt])
