"""What is in a file? Its shape, how many rows, which are unusable and why."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from data.errors import FileError
from data.reading import Prompts, Reading, open_comparisons, open_prompts, open_responses
from data.records import Comparison, Failure, Prompted, Rating, Vote
from data.sources import columns

EXAMPLES = 5


@dataclass
class Report:
    source: str
    what: str
    shape: str
    rows: int = 0
    usable: int = 0
    distinct: int = 0
    judged: int = 0
    responses: Counter[int] = field(default_factory=Counter[int])
    raters: Counter[str] = field(default_factory=Counter[str])
    unusable: Counter[str] = field(default_factory=Counter[str])
    examples: list[str] = field(default_factory=list[str])

    def json(self) -> dict[str, Any]:
        return {
            "file": self.source,
            "read_as": self.what,
            "shape": self.shape,
            "rows": self.rows,
            "usable": self.usable,
            "unusable": self.rows - self.usable,
            "reasons": dict(self.unusable),
            "examples": self.examples,
            "distinct": self.distinct,
            "judged": self.judged,
            "responses": {str(count): rows for count, rows in sorted(self.responses.items())},
            "raters": len(self.raters),
        }

    def lines(self) -> list[str]:
        lines = [
            f"{self.source}: {self.what}, read as {self.shape}",
            f"{self.rows} rows, {self.usable} usable, {self.distinct} distinct; "
            f"{self.judged} rows judged by {len(self.raters)} rater(s)",
        ]
        if self.what == "comparisons":
            lines.append(
                "responses a row: " + ", ".join(f"{n} in {rows}" for n, rows in sorted(self.responses.items()))
            )
        if self.unusable:
            lines.append(f"{self.rows - self.usable} unusable rows:")
            lines += [f"  {count} x {reason}" for reason, count in self.unusable.most_common(10)]
            lines += ["for example:", *(f"  {each}" for each in self.examples)]
        return lines


def check(source: str, named: str | None = None) -> Report:
    """Read a whole file and report. Raises FileError where it is neither comparisons, responses nor prompts."""
    reading, what = _open(source, named)
    report = Report(source, what, reading.shape.about)
    ids: set[str] = set()
    for row in reading.rows:
        report.rows += 1
        if isinstance(row, Failure):
            report.unusable[row.message.removeprefix(f"{row.id}: ")[:200]] += 1
            if len(report.examples) < EXAMPLES:
                report.examples.append(row.message)
            continue
        report.usable += 1
        ids.add(row.id)
        if isinstance(row, Prompted):
            continue
        verdicts: tuple[Vote | Rating, ...] = row.votes if isinstance(row, Comparison) else row.ratings
        report.judged += bool(verdicts)
        report.raters.update(each.rater for each in verdicts)
        report.responses[len(row.responses) if isinstance(row, Comparison) else 1] += 1
    report.distinct = len(ids)
    return report


def _open(source: str, named: str | None) -> tuple[Reading | Prompts, str]:
    if named is not None and "response" in columns.parse(named):
        return open_responses(source, named), "responses"
    try:
        return open_comparisons(source, named), "comparisons"
    except FileError as error:
        if named is not None or "cannot be read as comparisons" not in str(error):
            raise
        with suppress(FileError):
            return open_responses(source, named), "responses"
        try:
            return open_prompts(source, named), "prompts alone"
        except FileError:
            raise error from None
