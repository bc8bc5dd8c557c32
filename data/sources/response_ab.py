"""`prompt`, `response_a`, `response_b` and a person's verdict in `human`."""

from __future__ import annotations

from data.records import Comparison
from data.sources.shape import Fields, Shape, choice, has, pair, vote

NAMES = {"a": 0, "b": 1, "response_a": 0, "response_b": 1, "model_a": 0, "model_b": 1}
_USED = frozenset({"prompt", "response_a", "response_b", "human", "rater", "strength", "model_a", "model_b"})


def _read(fields: Fields) -> Comparison:
    verdict = choice(fields.get("human"), NAMES, "human")
    return pair(
        fields,
        prompt=fields["prompt"],
        responses=(fields["response_a"], fields["response_b"]),
        models=(fields.get("model_a"), fields.get("model_b")),
        votes=vote(verdict, fields.get("rater"), fields.get("strength") or None),
        used=_USED,
    )


SHAPE = Shape("prompt, response_a, response_b, human", has("prompt", "response_a", "response_b"), _read)
