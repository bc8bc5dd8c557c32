"""`info`, `summaries`, `choice`: the shape of the TL;DR summarization comparisons (Stiennon et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from data.errors import RowError
from data.records import Comparison
from data.sources.shape import Fields, Shape, has, pair, vote

_USED = frozenset({"info", "summaries", "choice", "worker"})


def _read(fields: Fields) -> Comparison:
    info, summaries = fields["info"], fields["summaries"]
    if not isinstance(info, Mapping):
        raise RowError(f"info: expected an object, got {type(info).__name__}")
    if not isinstance(summaries, list) or len(cast("list[object]", summaries)) != 2:
        raise RowError("summaries: expected a list of two objects with a text each")
    known = cast("Mapping[str, Any]", info)
    sides = cast("list[Any]", summaries)
    texts, policies = ([_get(side, name) for side in sides] for name in ("text", "policy"))
    return pair(
        fields,
        prompt=_post(known),
        responses=(texts[0], texts[1]),
        models=(policies[0], policies[1]),
        votes=vote(_choice(fields.get("choice")), fields.get("worker")),
        used=_USED,
    )


def _get(side: Any, name: str) -> Any:
    if not isinstance(side, Mapping):
        raise RowError(f"summaries: expected objects with a text, got {type(side).__name__}")
    return cast("Mapping[str, Any]", side).get(name)


def _post(info: Mapping[str, Any]) -> str:
    body = info.get("post") or info.get("article")
    if not isinstance(body, str):
        raise RowError("info.post: expected a text")
    heads = [("SUBREDDIT: r/", info.get("subreddit")), ("TITLE: ", info.get("title"))]
    lines = [f"{name}{value}" for name, value in heads if isinstance(value, str) and value]
    return "\n".join([*lines, f"POST: {body}"]) if lines else body


def _choice(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or str(value) not in {"0", "1"}:
        raise RowError(f"choice: expected 0 or 1, the index of the better summary, got {str(value)[:40]!r}")
    return int(str(value))


SHAPE = Shape("info.post, summaries, choice (TL;DR comparisons)", has("info", "summaries"), _read)
