"""`chosen` and `rejected`, as HH transcripts, message lists, or replies to a `prompt` column.

These files always put the better response first. A labeler that likes the first position must not profit from that, so
the chosen response is placed by a hash of the row's id. A column `p` says how surely the chosen one is better, as
`rlaif export` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from data.errors import RowError
from data.records import Comparison, Vote, content_id, fingerprint, make
from data.sources.shape import Fields, Shape, conversation, has, number, own_id, rest, text

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_ROLES = {HUMAN: "user", ASSISTANT: "assistant"}
_USED = frozenset({"prompt", "chosen", "rejected", "p"})


def _read(fields: Fields) -> Comparison:
    prompt, chosen, rejected = _split(fields)
    identity = own_id(fields) or content_id(prompt, (chosen, rejected))
    index = place(identity)
    return make(
        Comparison,
        {
            "id": identity,
            "prompt": prompt,
            "responses": (chosen, rejected) if index == 0 else (rejected, chosen),
            "votes": (_vote(index, fields.get("p")),),
            "meta": rest(fields, _USED),
        },
    )


def _vote(chosen: int, p: object) -> Vote:
    """For the chosen response; where the file says how surely it is the better one, for the likelier of the two."""
    if p is None or p == "":
        return Vote(choice=chosen)
    sure = number(p, "p")
    if not 0 <= sure <= 1:
        raise RowError(f"p: expected the probability, 0 to 1, that the chosen response is better, got {sure:g}")
    first = sure if chosen == 0 else 1 - sure
    return Vote(choice="tie" if first == 0.5 else int(first < 0.5), p=first)


def place(identity: str) -> int:
    """Where the chosen response stands: 0 or 1, a fair coin that falls the same way for the same id every time."""
    return int(fingerprint(["position of chosen", identity]), 16) & 1


def _split(fields: Fields) -> tuple[object, str, str]:
    chosen, rejected = fields["chosen"], fields["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        if fields.get("prompt"):
            return conversation(fields["prompt"]), chosen, rejected
        return _transcripts(chosen, rejected)
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _messages(cast("list[object]", chosen), cast("list[object]", rejected), fields.get("prompt"))
    raise RowError("chosen, rejected: expected two texts or two lists of messages")


def _transcripts(chosen: str, rejected: str) -> tuple[object, str, str]:
    (prompt, good), (other, bad) = (
        _last_reply(side, name) for side, name in ((chosen, "chosen"), (rejected, "rejected"))
    )
    if prompt != other:
        raise RowError("chosen, rejected: the two transcripts do not share the prompt (all but the last reply)")
    return _turns(prompt), good, bad


def _last_reply(transcript: str, name: str) -> tuple[str, str]:
    """Everything up to the LAST "Assistant:" is the prompt: most rows have more than one human turn."""
    prompt, found, reply = transcript.rpartition(ASSISTANT)
    if not found:
        raise RowError(f'{name}: expected a transcript with "\\n\\nAssistant:" or a prompt column beside it')
    return prompt, reply.strip()


def _turns(transcript: str) -> list[dict[str, str]]:
    """A transcript as messages. Text before the first marker counts as the user's."""
    turns: list[dict[str, str]] = []
    role, rest_of_it = "user", transcript
    while rest_of_it:
        cuts = {marker: at for marker in _ROLES if (at := rest_of_it.find(marker)) >= 0}
        marker = min(cuts, key=lambda each: cuts[each], default=None)
        content = (rest_of_it if marker is None else rest_of_it[: cuts[marker]]).strip()
        if content:
            turns.append({"role": role, "content": content})
        if marker is None:
            break
        role, rest_of_it = _ROLES[marker], rest_of_it[cuts[marker] + len(marker) :]
    if not turns:
        raise RowError("chosen, rejected: expected a prompt before the last reply, found none")
    return turns


def _messages(chosen: list[object], rejected: list[object], prompt: Any) -> tuple[object, str, str]:
    """Message lists, with the prompt in them or in a column of its own (TRL writes both)."""
    if not chosen or not rejected:
        raise RowError("chosen, rejected: expected at least one message in each")
    good, bad = text(_last_turn(chosen), "chosen"), text(_last_turn(rejected), "rejected")
    if chosen[:-1] != rejected[:-1]:
        raise RowError("chosen, rejected: the two conversations do not share the prompt (all but the last message)")
    if chosen[:-1]:
        return chosen[:-1], good, bad
    return conversation(prompt), good, bad


def _last_turn(messages: list[object]) -> object:
    last = messages[-1]
    if not isinstance(last, Mapping):
        raise RowError(f"chosen, rejected: expected messages of role and content, got {type(last).__name__}")
    return cast("object", last)


SHAPE = Shape("chosen, rejected (transcripts, messages, or replies to a prompt)", has("chosen", "rejected"), _read)
