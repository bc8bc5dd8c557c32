"""What comes back from OpenAI's chat completions, and from servers that speak them: only the parts that are read."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from labeler import top


class _Part(BaseModel):
    """A part of an answer. Servers leave parts out, so all but the choices may be missing."""

    model_config = ConfigDict(frozen=True)


class Message(_Part):
    content: str | None = None
    refusal: str | None = None


class Choice(_Part):
    message: Message = Message()
    finish_reason: str | None = None


class Details(_Part):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class Used(_Part):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: Details | None = None

    @property
    def cached(self) -> int:
        return (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0

    @property
    def written(self) -> int:
        return (self.prompt_tokens_details and self.prompt_tokens_details.cache_write_tokens) or 0


class Completion(_Part):
    """The texts of an answer."""

    choices: Annotated[tuple[Choice, ...], Field(min_length=1)]
    usage: Used | None = None


def first_place(answer: bytes) -> tuple[top.Place, Used]:
    """The likeliest first tokens, and what they cost. Raises UnusableError where the answer does not tell them.

    Read by hand: this is done for every answer, and a record for each of its tokens takes as long as the rest of it.
    """
    try:
        said: Any = from_json(answer)
        used = Used.model_validate(said.get("usage") or {})
        choice: Any = said["choices"][0]
        refused = choice.get("message", {}).get("refusal")
        listed: list[Any] = [] if refused else choice["logprobs"]["content"][0]["top_logprobs"]
        tokens = [(_text(each), float(each["logprob"])) for each in listed]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise top.UnusableError("the answer has no readable log-probabilities; --needs votes does without") from None
    if not tokens:
        raise top.UnusableError("the model refused to answer" if refused else "the answer has no top log-probabilities")
    return top.place(tokens), used


def used_of(answer: bytes) -> Used:
    """What an answer cost of which nothing else may be of use."""
    try:
        said: Any = from_json(answer)
        return Used.model_validate(said.get("usage") or {})
    except (ValueError, AttributeError):
        return Used()


def _text(token: dict[str, Any]) -> bytes:
    """Its bytes; servers that do not tell them give the tokenizer's spelling of a blank."""
    if raw := token.get("bytes"):
        return bytes(raw)
    return token["token"].replace("▁", " ").replace("Ġ", " ").encode()


class Model(_Part):
    id: str
    owned_by: str = ""


class Models(_Part):
    """What `GET /models` lists."""

    data: tuple[Model, ...] = ()
