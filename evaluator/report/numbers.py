"""How is a number shown? The same way on the page and in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite

from evaluator.intervals import Interval
from evaluator.report.document import Cell, Table

MISSING = "–"
_DASH = re.compile(rf"^{MISSING}$|[\[ ]{MISSING}[\],]")
NOTE = f"{MISSING} where the data cannot say."


def shown(value: Cell) -> str:
    return column([value])[0]


def cells(table: Table) -> list[Sequence[str]]:
    """The table's rows as texts. All of a column have the same number of decimals."""
    return list(zip(*map(column, zip(*table.rows, strict=True)), strict=True))


def column(values: Sequence[Cell]) -> list[str]:
    parts = [part for value in values for part in _parts(value) if isfinite(part)]
    largest = max(map(abs, parts), default=0.0)
    whole = all(isinstance(part, int) for part in parts)
    decimals = 0 if whole or largest >= 1000 else 1 if largest >= 10 else 3
    return [_text(value, decimals) for value in values]


def note(rows: Sequence[Sequence[str]]) -> str:
    """What is said below a table that has a dash in a number's place; nothing where it has none."""
    return NOTE if any(_DASH.search(text) for row in rows for text in row) else ""


def _parts(value: Cell) -> list[float]:
    if isinstance(value, Interval):
        return [value.value, value.low, value.high]
    return [] if value is None or isinstance(value, str) else [value]


def _text(value: Cell, decimals: int) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Interval):
        middle, low, high = (_number(each, decimals) for each in (value.value, value.low, value.high))
        return f"{middle} [{low}, {high}]"
    return MISSING if value is None else _number(value, decimals)


def _number(value: float, decimals: int) -> str:
    return f"{value:,.{decimals}f}" if isfinite(value) else MISSING
