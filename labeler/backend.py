"""What can a model be asked? One narrow protocol, two verbs; a batch goes in, as many answers come out, in order.

A failed request is a value (`Failed`), never an exception and never a number. Caching and metering are wrappers with
the same protocol (labeler/wrappers.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from data.errors import RlaifError
from data.records import Method, hashed
from labeler.prices import Price
from prompts.render import Prompt

Q = TypeVar("Q")
A = TypeVar("A")


class BackendError(RlaifError):
    """A backend cannot be opened, or cannot do what the job needs."""


@dataclass(frozen=True)
class Choose:
    """How likely is each option as the continuation of the prompt's answer?"""

    prompt: Prompt
    options: tuple[str, ...]


@dataclass(frozen=True)
class Write:
    """Continue the prompt's answer with text, up to a stop string (which is left out).

    `instruction` is for chat models, which do not continue an answer: it says what the answer is to be. With `numbers`
    that is a JSON object with a number for each of these names. Requests that differ in `seed` alone are samples.
    """

    prompt: Prompt
    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    instruction: str = ""
    numbers: tuple[str, ...] = ()

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of an object with these numbers."""
        properties = {name: {"type": "number"} for name in self.numbers}
        return {
            "type": "object",
            "properties": properties,
            "required": list(self.numbers),
            "additionalProperties": False,
        }


@dataclass(frozen=True)
class Usage:
    """What an answer cost; `usd` is None where no price is known."""

    tokens_in: int = 0
    tokens_out: int = 0
    usd: float | None = None
    seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        known = [each for each in (self.usd, other.usd) if each is not None]
        return Usage(
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            sum(known) if known else None,
            self.seconds + other.seconds,
        )

    def __sub__(self, other: Usage) -> Usage:
        usd = None if self.usd is None else self.usd - (other.usd or 0.0)
        tokens = (self.tokens_in - other.tokens_in, self.tokens_out - other.tokens_out)
        return Usage(*tokens, usd, self.seconds - other.seconds)


@dataclass(frozen=True)
class Likelihoods:
    """Log-probabilities of the options, in their order, and how they were found out."""

    values: tuple[float, ...]
    usage: Usage = field(default_factory=Usage)
    method: Method = "logprobs"
    votes: int | None = None
    """Samples that the values were counted from, where they were."""


@dataclass(frozen=True)
class Text:
    """What the model wrote."""

    text: str
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Failed:
    """A request without an answer, and why."""

    reason: str
    message: str
    attempts: int = 1


class Backend(Protocol):
    """A model that can be asked.

    `name` is what the user called it; `identity` also changes with its weights and goes into digests. A call carries
    about `rows` rows of a job, and `calls` of them run at a time: large batches for a local engine, many small ones for
    a remote one. One call more than `calls` may be made ahead: what of it can be got ready is, and it waits its turn.
    `price` is None where none is known. `logprobs` says that it tells likelihoods; where it does not, only `texts` may
    be asked (labeler/ladder.py makes likelihoods of them). `samples` of one prompt are one request, so
    that its tokens are paid for once.
    """

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def calls(self) -> int: ...
    @property
    def price(self) -> Price | None: ...
    @property
    def logprobs(self) -> bool: ...
    @property
    def samples(self) -> int: ...

    async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]: ...
    async def texts(self, requests: Sequence[Write]) -> list[Text | Failed]: ...
    def overflow(self, request: Choose | Write) -> int:
        """By how many tokens the request is too long; 0 where it fits, or where the backend cannot tell."""
        ...

    async def count(self, request: Choose | Write) -> int | None:
        """The tokens of a request, for nothing; None where that cannot be told."""
        ...

    async def close(self) -> None: ...


def only(options: Sequence[str]) -> str:
    """What a chat model is told so that it answers with a label alone."""
    return f"Answer with one of {', '.join(options)} and nothing else."


async def together(one: Callable[[Q], Awaitable[A]], requests: Iterable[Q]) -> list[A]:
    """All at once, in order. What stops the job is raised when every one has ended: their answers were paid for."""
    requests = list(requests)
    if len(requests) == 1:
        return [await one(requests[0])]
    found = await asyncio.gather(*map(one, requests), return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return [each for each in found if not isinstance(each, BaseException)]


def request_key(identity: str, request: Choose | Write) -> str:
    """The same for the same question to the same model, in every process: a hash of all that it is made of."""
    prompt = request.prompt
    parts = [identity, prompt.system, prompt.before, prompt.context, prompt.after, prompt.request, prompt.answer]
    if isinstance(request, Choose):
        parts += ["choose", *request.options]
    else:
        numbers = (request.max_tokens, request.temperature, request.top_k, request.seed, len(request.stop))
        parts += ["write", *map(str, numbers), *request.stop, request.instruction, *request.numbers]
    return hashed(parts, 32)
