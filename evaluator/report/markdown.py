"""The report as Markdown: the same words and numbers, charts as their tables. Nothing from the data can format it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from evaluator.report.document import Figure, Reading, Report, Section, Table
from evaluator.report.numbers import cells, note, shown

_ACTIVE = re.compile(r"[\\`*_<&|~$]|\](?=[(\[:])")
_FIRST = re.compile(r"^(\d*)([#>+=:.)-])")


def markdown(report: Report) -> str:
    """CommonMark with tables. Blocks are set apart by one empty line."""
    blocks = [f"# {_line(report.title)}", _list(map(_line, report.headlines))]
    for section in report.sections:
        blocks += _section(section)
    if report.readings or report.left_out:
        blocks += ["## What to read", *_left_out(report)]
        for number, reading in enumerate(report.readings, 1):
            blocks += _reading(number, reading)
    if report.facts:
        blocks += ["## How this was made"]
        blocks += [_list(f"{_line(name)}: {_code(value)}" for name, value in report.facts.items())]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _section(section: Section) -> Iterator[str]:
    yield f"## {_line(section.title)}"
    yield from map(_line, section.text)
    for figure in section.figures:
        yield from _figure(figure)
    for table in section.tables:
        yield from _table(table)


def _figure(figure: Figure) -> Iterator[str]:
    yield f"### {_line(figure.title)}"
    yield _line(figure.caption)
    if figure.table is not None:
        yield from _table(figure.table)


def _table(table: Table) -> Iterator[str]:
    rows = cells(table)
    words = [all(isinstance(value, str) for value in column) for column in zip(*table.rows, strict=True)]
    rule = [":---" if word else "---:" for word in words or [True] * len(table.columns)]
    lines = [map(_words, table.columns), rule, *(map(_words, row) for row in rows)]
    yield "\n".join("| " + " | ".join(line) + " |" for line in lines)
    yield note(rows)


def _left_out(report: Report) -> Iterator[str]:
    yield f"{len(report.readings)} items, the most surprising first."
    if report.left_out:
        yield f"{report.left_out:,} more were left out."


def _reading(number: int, reading: Reading) -> Iterator[str]:
    yield f"### {number}. {_words(reading.title)}"
    facts = {name: shown(value) for name, value in reading.facts.items()}
    tags = {"subsets": ", ".join(reading.tags)} if reading.tags else {}
    yield _list(f"{_line(name)}: {_words(value)}" for name, value in (facts | tags).items())
    yield "Prompt:"
    yield _fenced(reading.prompt)
    for index, response in enumerate(reading.responses):
        mark = f" ({_words(reading.marks[index])})" if index < len(reading.marks) and reading.marks[index] else ""
        yield f"Response {index + 1}{mark}:"
        yield _fenced(response)
    if reading.rationale:
        yield "Rationale:"
        yield _fenced(reading.rationale)


def _words(text: str) -> str:
    """Text that means nothing to Markdown within a line."""
    return _ACTIVE.sub(r"\\\g<0>", " ".join(text.split()))


def _line(text: str) -> str:
    """The same for a line of its own, which could also begin as a list or a heading does."""
    return _FIRST.sub(r"\1\\\2", _words(text))


def _list(lines: Iterator[str] | Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _fenced(text: str) -> str:
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}text\n{text}\n{fence}"


def _code(text: str) -> str:
    """A span of code; the spaces inside of its marks are dropped when it is read."""
    marks = "`" * (_longest_run(text) + 1)
    return f"{marks} {' '.join(text.split())} {marks}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
