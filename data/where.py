"""Which rows are meant? `--where type=contrast_*`: rows whose column fits a pattern, `!=` for those that do not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from data.errors import RlaifError
from data.records import Comparison, Failure, Response

R = TypeVar("R", Comparison, Response)
Test = Callable[[Comparison | Response], bool]

_CONDITION = re.compile(r"(?P<column>[^=!]+)(?P<sign>!?=)(?P<pattern>.*)", re.DOTALL)


def parse(conditions: Sequence[str]) -> list[Test]:
    """Raises RlaifError for a text that is no condition."""
    return [_test(each) for each in conditions]


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
        if all(test(row) for test in tests):
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


def fits(fields: Mapping[str, Any], conditions: Sequence[str]) -> bool:
    """Whether a plain row fits all conditions."""
    return all(_matches(*_parsed(each), fields.get) for each in conditions)


def _parsed(condition: str) -> tuple[str, str, str]:
    found = _CONDITION.fullmatch(condition)
    if found is None:
        raise RlaifError(
            f"--where {condition}: expected COLUMN=PATTERN or COLUMN!=PATTERN, for example type=contrast_*"
        )
    return found["column"].strip(), found["sign"], found["pattern"].strip()


def _matches(column: str, sign: str, pattern: str, cell_of: Callable[[str], Any]) -> bool:
    value = cell_of(column)
    return (value is not None and fnmatchcase(str(value), pattern)) == (sign == "=")


def _test(condition: str) -> Test:
    column, sign, pattern = _parsed(condition)
    return lambda row: _matches(column, sign, pattern, lambda name: cell(row, name))
