"""Anthropic's messages. They tell no log-probabilities: labeler/ladder.py makes likelihoods of what the model writes.

No temperature is ever sent, as new models take none. What prompts begin with is marked for the provider's prompt cache.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, Field

from labeler.attempts import AgainError, RefusedError
from labeler.backend import BackendError, Choose, Failed, Likelihoods, Text, Usage, Write
from labeler.http import Client, parsed
from labeler.options import Limits
from labeler.prices import Price
from labeler.remote import RemoteBackend, timed, tokens
from labeler.spending import Spending

OFFICIAL = "https://api.anthropic.com/v1"
VERSION = "2023-06-01"
PATH = "/messages"

COUNTED = ("model", "system", "messages")
"""What a count of tokens takes of a request."""

CACHEABLE = 4096
"""Characters; what is shorter than about 1,024 tokens is not cached by the provider."""


@dataclass(frozen=True)
class Messages:
    """One model in Anthropic's words: requests to bodies, answers to values. Pure."""

    model: str
    price: Price | None

    def write(self, request: Write) -> dict[str, Any]:
        blocks, later = _blocks(request), _turns(request)[1:]
        turns = [{"role": "user", "content": blocks[1:]}]
        turns += [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in later]
        body: dict[str, Any] = {"model": self.model, "max_tokens": request.max_tokens}
        body |= {"system": blocks[:1], "messages": turns}
        if request.stop:
            body["stop_sequences"] = list(request.stop)
        if request.numbers:
            body["output_config"] = {"format": {"type": "json_schema", "schema": request.schema}}
        return body

    def written(self, answer: bytes) -> list[Text]:
        """The one text. Raises AgainError or RefusedError."""
        said = parsed(_Said, answer)
        used = said.usage
        read, kept = used.cache_read_input_tokens, used.cache_creation_input_tokens
        whole = used.input_tokens + read + kept
        usd = None if self.price is None else self.price.usd(whole, used.output_tokens, cached=read, written=kept)
        usage = Usage(whole, used.output_tokens, usd)
        if said.stop_reason == "refusal":
            raise RefusedError("refusal", "the model refused to answer", usage)
        text = "".join(part.text for part in said.content if part.type == "text")
        if not text and said.stop_reason == "max_tokens":
            raise RefusedError("cut_off", "the model used up its tokens before it answered", usage)
        if not text:
            raise AgainError("unparsable", "the answer has no text", usage=usage)
        return [Text(text, usage)]


class AnthropicBackend(RemoteBackend):
    """Anthropic's server, asked for texts."""

    def __init__(self, dialect: Messages, client: Client, limits: Limits) -> None:
        name = f"anthropic:{dialect.model}"
        identity = name if client.base_url == OFFICIAL else f"{name}@{client.base_url}"
        super().__init__(name, identity, limits, price=dialect.price, logprobs=False)
        self.dialect, self._client, self._warm = dialect, client, _Warm()

    async def count(self, request: Choose | Write) -> int | None:
        assert isinstance(request, Write), "Anthropic is asked for texts"
        body = self.dialect.write(request)
        url = f"{self._client.base_url}{PATH}/count_tokens"
        told = await self._client.free(url, {name: body[name] for name in COUNTED if name in body})
        number = told and told.get("input_tokens")
        return number if isinstance(number, int) else None

    async def close(self) -> None:
        await self._client.close()

    async def _choose(self, request: Choose) -> Likelihoods | Failed:  # noqa: ARG002
        return Failed("no_logprobs", f"{self.name} tells no log-probabilities")

    async def _write(self, request: Write) -> Text | Failed:
        body = self.dialect.write(request)
        async with self._warm.after(_prefixes(request)):
            started = time.perf_counter()
            found = await self._client.ask(PATH, body, tokens(request), self.dialect.written)
        return found if isinstance(found, Failed) else timed(found[0], started)


class _Warm:
    """Lets the first request of a prefix go alone: those after it find it in the provider's cache, at a tenth of the
    price. A cache can be read as soon as the request that fills it is answered."""

    KEPT = 100_000

    def __init__(self) -> None:
        self._begun: OrderedDict[int, asyncio.Event] = OrderedDict()

    @asynccontextmanager
    async def after(self, prefixes: Sequence[str]) -> AsyncGenerator[None]:
        """Wait for whoever was first with one of these prefixes; `prefixes` from the shortest to the longest."""
        mine: list[asyncio.Event] = []
        try:
            for prefix in prefixes:
                if (event := self._begun.get(hash(prefix))) is not None:
                    await event.wait()
                    continue
                mine.append(self._begun.setdefault(hash(prefix), asyncio.Event()))
                if len(self._begun) > self.KEPT:
                    self._begun.popitem(last=False)
            yield
        finally:
            for event in mine:
                event.set()


def _turns(request: Write) -> list[tuple[Any, str]]:
    prompt = replace(request.prompt, answer="") if request.numbers else request.prompt
    return prompt.turns(request.instruction)


def _blocks(request: Write) -> list[dict[str, Any]]:
    """The system's text, then the first user's turn in the parts that other requests share, each marked for the cache
    where it is long enough: what is the same for the whole job, for both orders of a pair, for all samples."""
    prompt = request.prompt
    user = _turns(request)[0][1]
    cuts = [0, len(prompt.before), len(prompt.before) + len(prompt.context), len(user)]
    blocks = [{"type": "text", "text": prompt.system}]
    start = 0
    for cut in cuts[1:]:
        if user[start:cut].strip():  # a block of blanks is refused: it goes to the next one
            blocks.append({"type": "text", "text": user[start:cut]})
            start = cut
    length = 0
    marked: list[dict[str, Any]] = []
    for block in blocks:
        length += len(block["text"])
        marked.append({**block, "cache_control": {"type": "ephemeral"}} if length >= CACHEABLE else block)
    return marked


def _prefixes(request: Write) -> list[str]:
    """The texts that the marks end."""
    texts: list[str] = []
    found: list[str] = []
    for block in _blocks(request):
        texts.append(block["text"])
        if "cache_control" in block:
            found.append("\x1f".join(texts))
    return found


class _Block(BaseModel):
    type: str
    text: str = ""


class _Used(BaseModel):
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class _Said(BaseModel):
    content: tuple[_Block, ...]
    stop_reason: str | None = None
    usage: Annotated[_Used, Field(default_factory=_Used)]


def open_anthropic(
    model: str,
    *,
    base_url: str | None,
    key: str | None,
    limits: Limits,
    price: Price | None,
    spending: Spending | None = None,
) -> AnthropicBackend:
    """Look whether the model is there, which costs nothing, then make the backend. Raises BackendError."""
    if not key:
        raise BackendError(f"anthropic:{model} needs a key in ANTHROPIC_API_KEY")
    client = Client(
        base_url or OFFICIAL, {"x-api-key": key, "anthropic-version": VERSION}, limits, secret=key, spending=spending
    )
    asyncio.run(_look(client, model))
    return AnthropicBackend(Messages(model, price), client, limits)


async def _look(client: Client, model: str) -> None:
    try:
        await client.get(f"/models/{model}")
    except (AgainError, RefusedError) as error:
        raise BackendError(f"anthropic:{model}: {error.message}") from None
    finally:
        await client.close()
