"""Our own records: rows with `responses` (a comparison) or `response` (a single one)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from data.errors import RowError
from data.records import Comparison, Response, content_id, make
from data.sources.shape import Fields, Shape, conversation, has, own_id, rest

_COMPARISON = frozenset({"prompt", "responses", "models", "votes"})
_RESPONSE = frozenset({"prompt", "response", "model", "ratings"})


def _comparison(fields: Fields) -> Comparison:
    prompt, responses = conversation(fields.get("prompt")), fields["responses"]
    if not isinstance(responses, list | tuple):
        raise RowError(f"responses: expected a list of texts, got {type(responses).__name__}")
    texts = list(responses)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return make(
        Comparison,
        {
            "id": own_id(fields) or content_id(prompt, [str(each) for each in texts]),  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            "prompt": prompt,
            "responses": texts,
            "models": fields.get("models"),
            "votes": [_vote(vote) for vote in fields.get("votes") or ()],
            "meta": rest(fields, _COMPARISON),
        },
    )


def _vote(vote: Any) -> Any:
    """A column of Parquet has one type, so there a choice next to a "tie" is the text of its index."""
    if isinstance(vote, Mapping):
        fields = dict(cast("Mapping[str, Any]", vote))
        if isinstance(fields.get("choice"), str) and fields["choice"].isdecimal():
            return {**fields, "choice": int(fields["choice"])}
    return cast("Any", vote)


def _response(fields: Fields) -> Response:
    prompt, response = conversation(fields.get("prompt")), fields["response"]
    return make(
        Response,
        {
            "id": own_id(fields) or content_id(prompt, [str(response)]),
            "prompt": prompt,
            "response": response,
            "model": fields.get("model"),
            "ratings": fields.get("ratings") or (),
            "meta": rest(fields, _RESPONSE),
        },
    )


COMPARISONS = Shape("prompt, responses, votes (our own shape)", has("prompt", "responses"), _comparison)
RESPONSES = Shape("prompt, response, ratings (our own shape)", has("prompt", "response"), _response)
