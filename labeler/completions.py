"""What comes back from OpenAI's chat completions, and from servers that speak them: only the parts that are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from labeler import top


class _Part(BaseModel):
    """A part of an answer. Servers leave parts out, so all but the choices may be missing."""

    model_config = ConfigDict(frozen=True)


class Token(_Part):
    """A token of the answer, or one that could have stood there."""

    token: str
    logprob: float
    raw: tuple[Annotated[int, Field(ge=0, le=255)], ...] | None = Field(None, alias="bytes")

    @property
    def text(self) -> bytes:
        """Its bytes; servers that do not tell them give the tokenizer's spelling of a blank."""
        if self.raw:
            return bytes(self.raw)
        return self.token.replace("▁", " ").replace("Ġ", " ").encode()


class Place(Token):
    top_logprobs: tuple[Token, ...] = ()


class Logprobs(_Part):
    content: tuple[Place, ...] | None = None


class Message(_Part):
    content: str | None = None
    refusal: str | None = None


class Choice(_Part):
    message: Message = Message()
    logprobs: Logprobs | None = None


class Details(_Part):
    cached_tokens: int | None = None


class Used(_Part):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: Details | None = None

    @property
    def cached(self) -> int:
        return (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0


class Completion(_Part):
    """The whole answer."""

    choices: Annotated[tuple[Choice, ...], Field(min_length=1)]
    usage: Used | None = None

    def tops(self) -> top.Place:
        """The likeliest first tokens. Raises UnusableError where the answer does not tell them."""
        choice = self.choices[0]
        if choice.message.refusal:
            raise top.UnusableError("the model refused to answer")
        places: Sequence[Place] = (choice.logprobs and choice.logprobs.content) or ()
        if not places or not places[0].top_logprobs:
            raise top.UnusableError("the answer has no top log-probabilities")
        return top.place((each.text, each.logprob) for each in places[0].top_logprobs)


class Model(_Part):
    id: str
    owned_by: str = ""


class Models(_Part):
    """What `GET /models` lists."""

    data: tuple[Model, ...] = ()
