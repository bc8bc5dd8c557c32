"""Reading back what a job wrote: labels out of Parquet or JSONL, and how many rows failed beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data import tables
from data.errors import FileError, RowError
from data.records import Label, Ranking, make
from data.sources import llmbar
from data.tables import BadRow, Fields


def labels(source: str) -> Iterator[Label]:
    """The labels of a file. Raises FileError: a row that is not a label, with its place."""
    path = Path(source)
    if path.is_file() and path.stat().st_size == 0:
        raise FileError(f"{source}: holds no labels; if rows failed, {path.name}.failures.jsonl says why")
    for each in tables.read(source):
        if isinstance(each.row, BadRow):
            raise FileError(f"{source}:{each.number}: {each.row.message}")
        try:
            yield _label(each.row)
        except RowError as error:
            raise FileError(f"{source}:{each.number}: not a label (made by `rlaif label`): {error}") from None


def judgements(source: str) -> Iterator[Label | Ranking]:
    """What a labeler said of comparisons: the rows of `rlaif label` or of `rlaif rank`. Raises FileError."""
    first = next((each.row for each in tables.read(source)), None)
    if first is None or isinstance(first, BadRow) or "strengths" not in first:
        yield from labels(source)
        return
    for each in tables.read(source):
        if isinstance(each.row, BadRow):
            raise FileError(f"{source}:{each.number}: {each.row.message}")
        try:
            yield make(Ranking, {name: value for name, value in each.row.items() if name in Ranking.model_fields})
        except RowError as error:
            raise FileError(f"{source}:{each.number}: not a ranking (made by `rlaif rank`): {error}") from None


def _label(fields: Fields) -> Label:
    if llmbar.matches(frozenset(fields)):
        return llmbar.read(fields)
    return make(Label, {name: value for name, value in fields.items() if name in Label.model_fields})


def failures(source: str) -> dict[str, int]:
    """How many rows failed, by reason, from the failures file beside a labels file."""
    beside = Path(source + ".failures.jsonl")
    if not beside.is_file() or beside.stat().st_size == 0:
        return {}
    rows = [each.row for each in tables.read(str(beside))]
    return dict(Counter(str(row.get("reason")) for row in rows if not isinstance(row, BadRow)))
