"""Which part of a templated text is the prompt, which the response? What trainers send, turned back into turns. Pure.

Trainers decode whole sequences with their chat template's marks in them. The marks of common templates are recognised;
what is between them stays text, and is never taken for a mark again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from data.records import Message

Role = Literal["system", "user", "assistant"]

_OPENING = re.compile(
    r"<\|im_start\|>[ ]?(?P<chatml>\w+)\n"
    r"|<\|start_header_id\|>(?P<llama>\w+)<\|end_header_id\|>\n\n"
    r"|<start_of_turn>(?P<gemma>\w+)\n"
    r"|<\|(?P<phi>system|user|assistant)\|>\n?"
    r"|(?P<inst>\[INST\])[ ]?"
    r"|[ ]?(?P<answer>\[/INST\])[ ]?"
)
_MARKS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>", "<|begin_of_text|>",
    "<|return|>", "<end_of_turn>", "<s>", "</s>", "<bos>", "<eos>", "<pad>", "<|pad|>",
)  # fmt: skip
_MARK = "|".join(map(re.escape, _MARKS))
_ENDS = re.compile(rf"(?:\s*(?:{'|'.join(re.escape(each[::-1]) for each in _MARKS)}))+\s*")
"""The marks that end a text, read from its end: a search from its beginning takes quadratic time for hostile texts."""
_BEGIN = re.compile(rf"^\s*(?:(?:{_MARK})\s*)+")
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "assistant": "assistant", "model": "assistant"}


def ended(text: str) -> str:
    """A response without the marks that end it: what the model said, as it said it."""
    found = _ENDS.match(text[::-1])
    return text[: len(text) - found.end()] if found else text


def turns(text: str) -> list[Message] | None:
    """The turns of a templated text; None where no template's marks are in it. An empty last turn is left out."""
    found = list(_OPENING.finditer(text))
    if not found:
        return None
    messages: list[Message] = []
    for at, opening in enumerate(found):
        end = found[at + 1].start() if at + 1 < len(found) else len(text)
        content = _BEGIN.sub("", ended(text[opening.end() : end]))
        if at + 1 < len(found) or content:
            messages.append(Message(role=_role(opening), content=content.strip() if at + 1 < len(found) else content))
    return messages


def prompt(text: str) -> str | tuple[Message, ...]:
    """A prompt as people write it: a single user's turn is a plain text."""
    messages = turns(text)
    if not messages:
        return _BEGIN.sub("", ended(text))
    return plain(messages)


def plain(messages: Sequence[Message]) -> str | tuple[Message, ...]:
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return tuple(messages)


def split(query: str, asked: str | None = None) -> tuple[str | tuple[Message, ...], str]:
    """(prompt, response) of a whole decoded text; `asked` is its templated prompt, where it is known.

    The prompt is taken off where the text begins with it, or with its end (it was cut on the left). Else the last turn
    of the template's assistant is the response; else, without any mark, the whole text.
    """
    if asked:
        begun = len(asked) if query.startswith(asked) else _overlap(asked, query)
        if begun:
            return prompt(asked), ended(query[begun:])
    found = [each for each in _OPENING.finditer(query) if _role(each) == "assistant"]
    if found:
        last = found[-1]
        return prompt(asked or query[: last.start()]), ended(query[last.end() :])
    return prompt(asked or ""), ended(query)


def messages_of(values: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages as any client writes them: other roles are a user's, content parts are put together."""
    return [Message(role=_ROLES.get(str(each.get("role")), "user"), content=content_of(each)) for each in values]


def content_of(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        parts = cast("list[Any]", content)
        return "".join(str(part.get("text") or "") if isinstance(part, Mapping) else str(part) for part in parts)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return "" if content is None else str(content)


def _role(opening: re.Match[str]) -> Role:
    if opening["inst"]:
        return "user"
    if opening["answer"]:
        return "assistant"
    name = next(opening[group] for group in ("chatml", "llama", "gemma", "phi") if opening[group])
    return _ROLES.get(name, "user")


_LEAST = 16
"""Characters by which a cut prompt is recognised: fewer could be chance."""


def _overlap(asked: str, query: str) -> int:
    """How much of the query's beginning is the end of the prompt, by the longest border (Knuth, Morris, Pratt 1977)."""
    head = query[: len(asked)]
    text = head + "\0" + asked
    borders = [0] * len(text)
    for at in range(1, len(text)):
        k = borders[at - 1]
        while k and text[at] != text[k]:
            k = borders[k - 1]
        borders[at] = k + (text[at] == text[k])
    return borders[-1] if borders[-1] >= _LEAST else 0
