"""Conversations as chat models are taught on them: `messages`, of which the last is the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from data.records import Prompted, Response, content_id, make
from data.sources.shape import Fields, Shape, conversation, has, own_id, rest, single, text

USED = frozenset({"messages", "model"})


def _read(fields: Fields) -> Response | Prompted:
    turns = conversation(fields.get("messages"))
    last: Any = turns[-1]
    role = cast("Mapping[str, Any]", last).get("role") if isinstance(last, Mapping) else None
    if role != "assistant" or len(turns) == 1:  # a conversation that waits for its answer
        known = own_id(fields) or content_id(turns, [])
        return make(Prompted, {"id": known, "prompt": turns, "meta": rest(fields, USED)})
    return single(fields, prompt=list(turns[:-1]), response=text(last, "messages"), used=USED)


SHAPE = Shape("messages (the last one is the assistant's)", has("messages"), _read)
