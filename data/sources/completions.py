"""Single responses under the names that scripts give them: `completion`, `output`, `generation`, `answer`."""

from __future__ import annotations

from data.errors import RowError
from data.records import Response
from data.sources.shape import Fields, Shape, conversation, single, text

PROMPTS = ("prompt", "instruction", "question")
REPLIES = ("completion", "output", "generation", "answer")


def _matches(columns: frozenset[str]) -> bool:
    return bool(columns.intersection(PROMPTS)) and bool(columns.intersection(REPLIES))


def _read(fields: Fields) -> Response:
    asked = next((name for name in PROMPTS if fields.get(name) is not None), None)
    replied = next((name for name in REPLIES if fields.get(name) is not None), None)
    if asked is None or replied is None:
        raise RowError(f"expected a prompt ({', '.join(PROMPTS)}) and a reply ({', '.join(REPLIES)})")
    prompt, reply = conversation(fields[asked]), text(fields[replied], replied)
    return single(fields, prompt=prompt, response=reply, used=frozenset({asked, replied}))


SHAPE = Shape("prompt | instruction | question, completion | output | generation | answer", _matches, _read)
