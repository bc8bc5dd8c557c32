"""What both providers' batches share: rows are answered in shuffled order, and may go wrong one by one or together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import ModuleType
from typing import Any

from provider_answers import answers_to
from provider_faults import spoiled
from provider_replies import RefusedError
from provider_settings import BATCHES, ROWS
from provider_state import State
from pydantic_core import to_json

BREATH = 100
"""Rows between which other requests get their turn."""


@dataclass(frozen=True, slots=True)
class Row:
    """`kind` is "succeeded", "errored", "expired" or "canceled"; `right` is the question's key where it is answered."""

    name: str
    kind: str
    status: int = 0
    body: dict[str, Any] | None = None
    right: str = ""


def batch_fault(state: State, name: str) -> str | None:
    return state.faults.drawn(state.settings, name, BATCHES)


async def rows_of(
    state: State,
    wire: ModuleType,
    asked: Sequence[tuple[str, Any]],
    *,
    share: float,
    rest: str,
    headers: Mapping[str, str],
) -> list[Row]:
    """The first `share` of the rows is answered, the others are of the kind `rest`."""
    found: list[Row] = []
    order = list(asked)
    Random(f"{state.settings.seed} {len(order)}").shuffle(order)
    for at, (name, body) in enumerate(order):
        if at % BREATH == BREATH - 1:
            await asyncio.sleep(0)
        found += _rows(state, wire, name, body, headers) if at < share * len(order) else [Row(name, rest)]
    return found


def written(state: State, rows: Sequence[Row], line: Callable[[Row], dict[str, Any]], *, truncated: bool) -> bytes:
    """JSONL; where it is truncated, the last half is missing and the last line ends in its middle."""
    lines = [to_json(line(row)) + b"\n" for row in rows]
    whole = len(lines) // 2 if truncated else len(lines)
    for row in rows[:whole]:
        if row.right:
            state.seen.answered[row.right] += 1
    content = b"".join(lines[:whole])
    return content + lines[whole][: len(lines[whole]) // 2] if truncated and lines else content


def _rows(state: State, wire: ModuleType, name: str, body: Any, headers: Mapping[str, str]) -> list[Row]:
    try:
        question = wire.read(body, state.settings, headers)
    except RefusedError as refused:
        return [Row(name, "errored", refused.status, wire.error_body(refused, state.fresh("req_")))]
    state.seen.question(question.key)
    fault = state.faults.drawn(state.settings, f"row {question.key}", (*ROWS, *wire.content_faults(question)))
    match fault:
        case "row_missing":
            return []
        case "row_expired":
            return [Row(name, "expired")]
        case "row_errored":
            error = wire.error_body(wire.fault_error("http_500", state.settings), state.fresh("req_"))
            return [Row(name, "errored", 500, error)]
        case _:
            return _answered(state, wire, name, question, fault)


def _answered(state: State, wire: ModuleType, name: str, question: Any, fault: str | None) -> list[Row]:
    again = state.seen.answered[question.key] if state.settings.vary_repeats else 0
    answers = spoiled(answers_to(question, again * question.n), fault)
    body = wire.body_of(question, answers, state.caches, state.settings)
    if fault == "row_unknown_id":
        return [Row(f"unknown-{name}"[:64], "succeeded", 200, body)]
    row = Row(name, "succeeded", 200, body, question.key if fault in (None, "row_duplicated") else "")
    return [row, Row(name, "succeeded", 200, body)] if fault == "row_duplicated" else [row]
