"""What does each choice change? Cells of a grid on one set of comparisons, each held against the first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.records import Comparison, Label
from evaluator.alignment import Alignment, Versus, evaluate
from evaluator.intervals import Interval, NoDataError
from evaluator.significance import holm


@dataclass(frozen=True)
class Entry:
    """One cell: its name, what was varied, and its labels."""

    name: str
    settings: Mapping[str, Any]
    labels: Sequence[Label]
    failures: Mapping[str, int]


@dataclass(frozen=True)
class Row:
    """One cell's numbers. `versus` is this cell minus the first, `adjusted` its p-value by Holm; None for the first.
    `why` there are no numbers."""

    name: str
    settings: Mapping[str, Any]
    alignment: Alignment | None
    versus: Versus | None
    adjusted: float | None
    usd: float | None
    tokens_in: int
    tokens_out: int
    seconds: float
    failed: int
    why: str | None

    def json(self) -> dict[str, Any]:
        known = self.alignment
        return {
            "name": self.name,
            **self.settings,
            "alignment": known and known.alignment.json(),
            "same_position": known and known.same_position and known.same_position.json(),
            "first_shown": known and known.first_shown and known.first_shown.json(),
            "kappa": known and known.kappa.json(),
            "difference": self.versus and self.versus.difference.json(),
            "p_value": self.versus and self.versus.p_value,
            "p_value_holm": self.adjusted,
            "usd": self.usd,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "seconds_per_label": self.seconds,
            "labels": known.labels if known else 0,
            "failed": self.failed,
            "why": self.why,
        }


@dataclass(frozen=True)
class Ablation:
    rows: Sequence[Row]

    def json(self) -> dict[str, Any]:
        return {"cells": [row.json() for row in self.rows]}


def compare(entries: Iterable[Entry], human: Mapping[str, Comparison]) -> Ablation:
    """Each cell against people, and against the first cell on the items that both answered."""
    every = list(entries)
    first = every[0].labels
    rows = [_row(entry, human, None if at == 0 else first) for at, entry in enumerate(every)]
    tested = [at for at, row in enumerate(rows) if row.versus is not None]
    adjusted = dict(zip(tested, holm([_p(rows[at]) for at in tested]), strict=True))
    return Ablation([replace(row, adjusted=adjusted.get(at)) for at, row in enumerate(rows)])


def markdown(found: Ablation) -> str:
    """The table as papers print it."""
    head = "| cell | alignment % | against the first | p (Holm) | same position % | USD | s/label | failed |"
    lines = [head, "|" + "---|" * 8]
    for row in found.rows:
        known, versus = row.alignment, row.versus
        cells = [
            row.name.replace("|", "\\|").replace("\n", " "),
            _percent(known.alignment) if known else f"none: {row.why}",
            "" if versus is None else f"{100 * versus.difference.value:+.1f}",
            "" if row.adjusted is None else f"{row.adjusted:.3f}",
            _percent(known.same_position) if known and known.same_position else "",
            "" if row.usd is None else f"{row.usd:.4f}",
            f"{row.seconds:.2f}",
            str(row.failed),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _percent(interval: Interval) -> str:
    low, high = ("-" if math.isnan(bound) else f"{100 * bound:.1f}" for bound in (interval.low, interval.high))
    return f"{100 * interval.value:.1f} [{low}, {high}]"


def _row(entry: Entry, human: Mapping[str, Comparison], first: Sequence[Label] | None) -> Row:
    found, versus, why = None, None, None
    try:
        found = evaluate(entry.labels, human, versus=first or None) if entry.labels else None
        versus = found and found.versus
    except NoDataError as error:
        why = str(error)
    if not entry.labels:
        why = "no labels; failed: " + ", ".join(f"{count} {reason}" for reason, count in entry.failures.items())
    usd = [label.usd for label in entry.labels if label.usd is not None]
    count = max(1, len(entry.labels))
    return Row(
        entry.name,
        entry.settings,
        found,
        versus,
        None,
        sum(usd) if usd else None,
        sum(label.tokens_in for label in entry.labels),
        sum(label.tokens_out for label in entry.labels),
        sum(label.seconds for label in entry.labels) / count,
        sum(entry.failures.values()),
        why,
    )


def _p(row: Row) -> float:
    assert row.versus is not None
    return row.versus.p_value
