"""Which part of a templated text is the prompt, which the response? What trainers send, turned back into turns. Pure.

Trainers decode whole sequences with their chat template's marks in them. A text belongs to one template, by the mark
that it begins with; only that template's marks part its turns. All else is text, whatever it looks like.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from data.records import Message


class UnreadableError(ValueError):
    """What was sent holds more than texts."""


Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Template:
    """`opening` begins a turn, its group names who speaks; a turn ends before `ends`."""

    opening: re.Pattern[str]
    ends: tuple[str, ...]


_PADS = ("<|endoftext|>", "<|end_of_text|>", "<pad>", "<|pad|>", "<|finetune_right_pad_id|>", "<eos>", "<|return|>")
_BEGINS = ("<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>", "<｜begin▁of▁sentence｜>")

TEMPLATES = (
    Template(re.compile(r"<\|im_start\|>[ ]?(\w+)(?:\n|<\|im_sep\|>)"), ("<|im_end|>",)),
    Template(re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n"), ("<|eot_id|>", "<|eom_id|>")),
    Template(re.compile(r"<start_of_turn>(\w+)\n"), ("<end_of_turn>",)),
    Template(re.compile(r"<\|(system|user|assistant)\|>\n?"), ("<|end|>", "</s>")),
    Template(re.compile(r"[ ]?(\[/?INST\])[ ]?"), ("</s>",)),
    Template(re.compile(r"<｜(User|Assistant)｜>"), ("<｜end▁of▁sentence｜>",)),
)
"""ChatML, Llama 3, Gemma, Phi and Zephyr, Mistral, DeepSeek. A new template is one line."""

_ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("assistant", "model", "Assistant", "[/INST]"), "assistant"),
}

DEFAULTS = frozenset(
    {
        "You are a helpful assistant.",
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    }
)
"""What templates say of themselves where nobody said anything: no part of what was asked."""

_USER = dict(
    zip(
        TEMPLATES,
        (
            "<|im_start|>user\n",
            "<|start_header_id|>user<|end_header_id|>\n\n",
            "<start_of_turn>user\n",
            "<|user|>\n",
            "[INST] ",
            "<｜User｜>",
        ),
        strict=True,
    )
)
"""How a user's turn begins: where a text was cut on the left, it begins with the rest of one."""

_UNMISTAKABLE = (*_PADS, "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<｜end▁of▁sentence｜>")
_BLANKS = re.compile(r"\s*")
_EMPTY_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*")


def ended(text: str, template: Template | None = None) -> str:
    """A response without the marks that end it: what the model said, as it said it.

    `</s>` closes a text in some templates and strikes a word in HTML: without a template it is a mark where no `<s>`
    was opened.
    """
    marks = (*_UNMISTAKABLE, *(template.ends if template else () if "<s>" in text else ("</s>",)))
    end = len(text)
    while True:  # by places, not by pieces: a text of nothing but marks must not take quadratic time
        bare = end
        while bare and text[bare - 1].isspace():
            bare -= 1
        mark = next((each for each in marks if text.endswith(each, 0, bare)), None)
        if mark is None:
            return text[:bare] if end < len(text) else text
        end = bare - len(mark)


def template_of(text: str) -> Template | None:
    """The template whose mark a text begins with; None where it is plain text."""
    start = _begun(text)
    return next((each for each in TEMPLATES if each.opening.match(text, start)), None)


def turns(text: str) -> list[Message] | None:
    """The turns of a templated text, the last one as it stands; None where it is plain text."""
    template = template_of(text)
    if template is None:
        return None
    found = list(template.opening.finditer(text))
    ends = [*(each.start() for each in found[1:]), len(text)]
    messages: list[Message] = []
    for at, (opening, end) in enumerate(zip(found, ends, strict=True)):
        content = ended(text[opening.end() : end], template)
        last = at == len(found) - 1
        messages.append(Message(role=_role(opening), content=content if last else content.strip()))
    if messages and messages[0].role == "system" and messages[0].content.strip() in DEFAULTS:
        messages = messages[1:]
    return messages


def apart(asked: str, response: str) -> tuple[str | tuple[Message, ...], str]:
    """(prompt, response) where both come apart: a single user's turn is a plain text, and what the prompt begins of the
    response belongs to the response."""
    question, opened = _asked(asked)
    return question, opened + ended(response)


def _asked(text: str) -> tuple[str | tuple[Message, ...], str]:
    """A prompt, and what it begins the response with: some templates open a thought."""
    messages = turns(text)
    if messages is None:
        return ended(text[_begun(text) :]), ""
    begun = messages.pop().content if messages and messages[-1].role == "assistant" else ""
    return plain(messages), "" if _EMPTY_THOUGHT.fullmatch(begun) or not begun.strip() else begun


def plain(messages: Sequence[Message]) -> str | tuple[Message, ...]:
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return tuple(messages) or ""


def split(query: str, asked: str | None = None) -> tuple[str | tuple[Message, ...], str]:
    """(prompt, response) of a whole decoded text; `asked` is its templated prompt, where it is known.

    The prompt is taken off where the text begins with it, or with its end (it was cut on the left). Else the response
    begins with the first turn of the assistant after the last one of the user; whatever follows is its text, marks and
    all, as it is the policy that writes there. Without a template the whole text is the response.
    """
    if asked:
        for whole in dict.fromkeys((query, query[_begun(query) :])):  # the prompt may lack the text's first mark
            begun = len(asked) if whole.startswith(asked) else _overlap(asked, whole)
            if begun:
                question, opened = _asked(asked)
                return question, opened + ended(whole[begun:], template_of(asked))
    template = template_of(query)
    if template is None and (template := _cut(query)) is not None:
        first = next(template.opening.finditer(query)).start()
        return split(f"{_USER[template]}{query[:first].rstrip()}{query[first:]}", asked)
    if template is not None:
        found = list(template.opening.finditer(query))
        last = max((at for at, each in enumerate(found) if _role(each) == "user"), default=-1)
        answer = next((each for each in found[last + 1 :] if _role(each) == "assistant"), None)
        if answer is not None:
            question = _asked(asked or query[: answer.start()])[0]
            response = ended(query[answer.end() :], template)
            thought = _EMPTY_THOUGHT.match(response)  # nowhere else: further on it is what the model said
            return question, response[thought.end() :] if thought else response
    return _asked(asked or "")[0], ended(query)


def messages_of(values: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages as any client writes them: other roles are a user's, content parts are put together."""
    return [Message(role=_ROLES.get(str(each.get("role")), "user"), content=content_of(each)) for each in values]


def content_of(message: Mapping[str, Any]) -> str:
    """The text of a message. Raises UnreadableError for parts that are none, such as images: what is left out cannot
    be judged."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(_part(part) for part in cast("list[Any]", content))
    return "" if content is None else str(content)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping):
        fields = cast("Mapping[str, Any]", part)
        for name in ("text", "refusal"):
            if isinstance(fields.get(name), str):
                return fields[name]
    raise UnreadableError("content: a part of a message is no text, and cannot be judged")


def _cut(text: str) -> Template | None:
    """The template of a text that was cut on the left: its first mark comes after the end of a turn."""
    for template in TEMPLATES:
        first = template.opening.search(text)
        if first is None:
            continue
        before = text[: first.start()].rstrip()
        if first[1] == "[/INST]" or before.endswith(template.ends):
            return template
    return None


def _begun(text: str) -> int:
    """Where a text begins after the marks of its beginning."""
    at = 0
    while True:
        after = _BLANKS.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess]
        mark = next((each for each in _BEGINS if text.startswith(each, after)), None)
        if mark is None:
            return after if at else at
        at = after + len(mark)


def _role(opening: re.Match[str]) -> Role:
    return _ROLES.get(opening[1], "user")


_LEAST = 16
"""Characters by which a cut prompt is recognised: fewer could be chance."""

_TRIES = 1000


def _overlap(asked: str, query: str) -> int:
    """How much of the query's beginning is the end of the prompt: its tail from wherever the query's first words stand
    in it. 0 where there is none, or the words stand there more than a thousand times."""
    first, at = query[:_LEAST], -1
    if len(first) < _LEAST:
        return 0
    for _ in range(_TRIES):
        at = asked.find(first, at + 1)
        if at < 0:
            return 0
        if query.startswith(asked[at:]):
            return len(asked) - at
    return 0
