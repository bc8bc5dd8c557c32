"""What a source shape is: how to recognise it by its columns, and how to read one row of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from data.errors import RowError
from data.records import Comparison, Prompted, Response, Vote, content_id, make

Fields = Mapping[str, Any]
Choice = int | str | None

TIES = frozenset({"tie", "ties", "tied", "equal", "equally good", "both", "same", "draw", "neither"})


@dataclass(frozen=True)
class Shape:
    """`about` names the shape to a person; `matches` looks at column names only; `read` raises RowError."""

    about: str
    matches: Callable[[frozenset[str]], bool]
    read: Callable[[Fields], Comparison | Response | Prompted]


def has(*columns: str) -> Callable[[frozenset[str]], bool]:
    """A test for shapes that are recognised by columns which must all be there."""
    needed = frozenset(columns)
    return needed.issubset


def pair(
    fields: Fields,
    *,
    prompt: object,
    responses: tuple[object, object],
    votes: tuple[Vote, ...],
    used: frozenset[str],
    models: tuple[object, object] | None = None,
) -> Comparison:
    """A comparison of two, where columns that the shape does not know are kept in `meta`."""
    first, second = (text(response, f"response {number}") for number, response in enumerate(responses, start=1))
    prompt = conversation(prompt)
    return make(
        Comparison,
        {
            "id": own_id(fields) or content_id(prompt, (first, second)),
            "prompt": prompt,
            "responses": (first, second),
            "models": None if models is None or None in models else tuple(str(model) for model in models),
            "votes": votes,
            "meta": rest(fields, used),
        },
    )


def single(fields: Fields, *, prompt: str | list[Any], response: str, used: frozenset[str]) -> Response:
    """A response with who wrote it, where columns that the shape does not know are kept in `meta`."""
    return make(
        Response,
        {
            "id": own_id(fields) or content_id(prompt, [response]),
            "prompt": prompt,
            "response": response,
            "model": fields.get("model"),
            "meta": rest(fields, used | {"model"}),
        },
    )


def own_id(fields: Fields) -> str | None:
    value = fields.get("id")
    if value is None or value == "":
        return None
    try:
        str(value).encode("utf-8")
    except UnicodeEncodeError:
        raise RowError("id: holds half a character (a lone surrogate); expected a text") from None
    return str(value)


def rest(fields: Fields, used: frozenset[str]) -> dict[str, Any]:
    """What a row says besides: its `meta`, and every column that no field of the record took."""
    meta: Any = fields.get("meta") or {}
    if not isinstance(meta, Mapping):
        raise RowError(f"meta: expected an object, got {_kind(meta)}")
    others = {key: value for key, value in fields.items() if key not in used and key not in {"id", "meta"}}
    return {**others, **dict(cast("Mapping[str, Any]", meta))}


def text(value: Any, name: str) -> str:
    """A text, also out of a message's content, or a list of one."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return text(cast("Mapping[str, Any]", value).get("content"), name)
    if isinstance(value, list) and len(cast("list[Any]", value)) == 1:
        return text(cast("list[Any]", value)[0], name)
    raise RowError(f"{name}: expected a text, got {_kind(value)}")


def number(value: object, name: str) -> float:
    """A number, also as the text that a CSV file has."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        if math.isfinite(found):
            return found
    raise RowError(f"{name}: expected a number, got {str(value)[:40]!r}")


def conversation(value: Any) -> str | list[Any]:
    """A prompt as it stands: a text, or a list of messages that the record will check."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and value:
        return list(cast("list[Any]", value))
    raise RowError(f"prompt: expected a text or a list of messages, got {_kind(value)}")


def _kind(value: Any) -> str:
    return type(value).__name__ if value is not None and value != [] else "nothing"


def choice(value: object, names: Mapping[str, int], column: str) -> Choice:
    """A vote in a file's own words: an index, "tie", or None where nobody voted.

    Bare 0/1 and 1/2 are not guessed at where `names` does not list them: guessing wrong turns x % into 100 - x %.
    """
    if value is None or value == "":
        return None
    word = str(value).strip().lower()
    if word in TIES:
        return "tie"
    if word in names:
        return names[word]
    raise RowError(f"{column}: expected {', '.join(names)} or tie, got {str(value)[:40]!r}")


def vote(decision: Choice, rater: object = None, strength: object = None) -> tuple[Vote, ...]:
    """The votes of a file with one vote a row: none where nobody voted."""
    if decision is None:
        return ()
    fields: dict[str, object] = {"rater": "human" if rater is None or rater == "" else str(rater), "choice": decision}
    return (make(Vote, {**fields, "strength": strength}),)
