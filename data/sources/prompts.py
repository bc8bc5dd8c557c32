"""Prompts alone: what a policy is to be tried on, and what a model's answers are to be revised of."""

from __future__ import annotations

from data.errors import RowError
from data.records import Prompted, content_id, make
from data.sources.shape import Fields, Shape, conversation, own_id, rest

NAMES = ("prompt", "instruction", "question", "text")


def _matches(columns: frozenset[str]) -> bool:
    return bool(columns.intersection(NAMES))


def _read(fields: Fields) -> Prompted:
    name = next((each for each in NAMES if fields.get(each) is not None), None)
    if name is None:
        raise RowError(f"expected a prompt ({', '.join(NAMES)})")
    prompt = conversation(fields[name])
    known = own_id(fields) or content_id(prompt, [])
    return make(Prompted, {"id": known, "prompt": prompt, "meta": rest(fields, frozenset({name}))})


SHAPE = Shape("prompt | instruction | question | text", _matches, _read)
