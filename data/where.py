"""Which rows are meant? `--where type=contrast_*`: rows whose column fits a pattern, `!=` for those that do not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from data.errors import RlaifError
from data.records import Comparison, Failure, Response

R = TypeVar("R", Comparison, Response)

_CONDITION = re.compile(r"(?P<column>[^=!]+)(?P<sign>!?=)(?P<pattern>.*)", re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """That a column fits a pattern, or does not."""

    column: str
    pattern: str
    wanted: bool

    def fits(self, value: Any) -> bool:
        return (value is not None and fnmatchcase(str(value), self.pattern)) == self.wanted


def parse(conditions: Sequence[str]) -> list[Condition]:
    """Raises RlaifError for a text that is no condition."""
    return [_condition(each) for each in conditions]


def kept(rows: Iterable[R | Failure], conditions: Sequence[str]) -> Iterator[R | Failure]:
    """The rows that fit all conditions; failures pass. Raises RlaifError where none fits."""
    tests, seen = parse(conditions), 0
    columns: set[str] = set()
    count = 0
    for row in rows:
        if isinstance(row, Failure):
            yield row
            continue
        seen += 1
        columns.update(row.meta)
        if all(test.fits(cell(row, test.column)) for test in tests):
            count += 1
            yield row
    if tests and seen and not count:
        raise RlaifError(
            f"--where {' --where '.join(conditions)}: fits none of {seen} rows; columns: "
            + (", ".join(sorted(columns)[:20]) or "none besides id and model")
        )


def cell(row: Comparison | Response, column: str) -> Any:
    """What a row says in a column; None where it has none."""
    if column in row.meta:
        return row.meta[column]
    if column == "id":
        return row.id
    return row.model if column == "model" and isinstance(row, Response) else None


def _condition(text: str) -> Condition:
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise RlaifError(f"--where {text}: expected COLUMN=PATTERN or COLUMN!=PATTERN, for example type=contrast_*")
    return Condition(found["column"].strip(), found["pattern"].strip(), found["sign"] == "=")
