"""What does a report say? Pure data: the evaluator's commands fill it, `page.write` sets it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from math import isfinite
from typing import Any, TypeAlias, TypeVar, cast

from evaluator.intervals import Interval

Cell: TypeAlias = str | float | Interval | None
"""NaN and None are shown as a dash: the data cannot say."""

MOST = 200
LONGEST = 20_000
_ROOM = 3_000_000
_MARKUP = 4
"""A `<`, `>`, `&` or quote takes up to this many characters more in HTML."""


@dataclass(frozen=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Figure:
    """A chart (`charts` makes them) and the same numbers as a table, for whoever cannot see the picture."""

    title: str
    caption: str
    chart: Mapping[str, Any]
    table: Table | None = None


@dataclass(frozen=True)
class Section:
    title: str
    text: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Reading:
    """One item to read. Responses are numbered from 1, as the labeler is asked about them."""

    title: str
    prompt: str
    responses: Sequence[str]
    marks: Sequence[str] = ()
    """What stands beside each response's number: who wrote it, who chose it."""
    facts: Mapping[str, Cell] = field(default_factory=dict[str, Cell])
    rationale: str | None = None
    tags: Sequence[str] = ()
    """The subsets that the page can be narrowed to."""
    weight: float = 0.0
    """How surprising: the heaviest comes first."""


@dataclass(frozen=True)
class Report:
    title: str
    headlines: Sequence[str]
    sections: Sequence[Section] = ()
    readings: Sequence[Reading] = ()
    left_out: int = 0
    """Readings that there were and are not in `readings`."""
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    """How it was made: command, versions, digests, files."""
    result: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The numbers for programs: `report.json` has them under this name."""


T = TypeVar("T")

_UNFIT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def clean(value: T) -> T:
    """The same with every character that XML cannot hold replaced: half surrogates, NUL and other controls.

    Neither UTF-8, nor HTML, nor the drawing of charts takes them all; one NUL in a model's name would end the process.
    """
    found: Any = value
    if isinstance(found, str):
        found = _UNFIT.sub("\ufffd", found)
    elif isinstance(found, Mapping):
        pairs = cast("Mapping[Any, Any]", found)
        found = {clean(name): clean(each) for name, each in pairs.items()}
    elif isinstance(found, list | tuple):
        found = [clean(each) for each in cast("Sequence[Any]", found)]
    elif is_dataclass(found) and not isinstance(found, type):
        found = replace(found, **{each.name: clean(getattr(found, each.name)) for each in fields(found)})
    return cast("T", found)


def plain(value: object) -> Any:
    """A value as JSON has it: a number that is none (NaN, infinite) becomes null."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in cast("Sequence[Any]", value)]
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    return value


def fitted(report: Report, most: int = MOST) -> Report:
    """The report with at most so many readings, heaviest first, none longer than a page can bear."""
    ordered = sorted(report.readings, key=lambda each: -each.weight if isfinite(each.weight) else float("inf"))
    kept: list[Reading] = []
    room = _ROOM
    for reading in map(_shortened, ordered[:most]):
        room -= _size(reading)
        if room < 0:
            break
        kept.append(reading)
    return replace(report, readings=kept, left_out=report.left_out + len(ordered) - len(kept))


def _shortened(reading: Reading) -> Reading:
    return replace(
        reading,
        prompt=_cut(reading.prompt),
        responses=[_cut(each) for each in reading.responses],
        rationale=reading.rationale and _cut(reading.rationale),
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST:,} more characters)"


def _size(reading: Reading) -> int:
    texts = [reading.title, reading.prompt, *reading.responses, reading.rationale or ""]
    texts += [str(each) for pair in reading.facts.items() for each in pair]
    return sum(len(each.encode()) + _MARKUP * len(re.findall("[<>&\"']", each)) for each in texts)
