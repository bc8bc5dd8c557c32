"""Scores of single responses, found again by what they are about: a prompt and a response."""

from __future__ import annotations

import math
from collections.abc import Mapping

from data import tables
from data.errors import FileError, RowError
from data.records import Comparison, Prompt, Response, make
from data.sources.shape import conversation
from data.tables import BadRow

NAMES = ("reward", "score")
"""Columns that hold the number, the first that is there; a reward model's is a reward."""


def scores(source: str) -> dict[str, float]:
    """Numbers by the fingerprint of prompt and response: what `rlaif score` wrote, or rows of prompt, response and
    `reward` or `score`. Raises FileError."""
    found: dict[str, float] = {}
    for each in tables.read(source):
        place = f"{source}:{each.number}"
        if isinstance(each.row, BadRow):
            raise FileError(f"{place}: {each.row.message}")
        number = next((each.row[name] for name in NAMES if each.row.get(name) is not None), None)
        if number is None:
            raise FileError(f"{place}: expected a column {' or '.join(NAMES)}; is this a file of `rlaif score`?")
        try:
            value = float(number)
            content = str(each.row.get("content") or "") or _content(each.row)
        except (TypeError, ValueError, RowError) as error:
            raise FileError(f"{place}: {error}") from None
        if math.isfinite(value):
            found[content] = value
    return found


def of(row: Comparison, at: int, known: Mapping[str, float]) -> float | None:
    """The score of one of a comparison's responses; None where it has none."""
    return known.get(content(row.prompt, row.responses[at]))


def content(prompt: Prompt, response: str) -> str:
    return Response(id="-", prompt=prompt, response=response).content


def _content(row: Mapping[str, object]) -> str:
    if not isinstance(row.get("response"), str):
        raise RowError("expected prompt and response, or the content that `rlaif score` writes")
    fields = {"id": "-", "prompt": conversation(row.get("prompt")), "response": row["response"]}
    return make(Response, fields).content
