"""OpenAI's chat completions, and every server that speaks them: vLLM, SGLang, llama.cpp, LM Studio, ...

Likelihoods are read from `top_logprobs` of the first generated token. Never from prompt log-probabilities: servers
compute those without their prefix cache.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol, TypeVar

import numpy as np

from labeler import top
from labeler.attempts import AgainError, RefusedError
from labeler.backend import BackendError, Choose, Failed, Likelihoods, Text, Usage, Write, only, together
from labeler.completions import Choice, Completion, Models, Used, first_place, used_of
from labeler.http import Client, parsed
from labeler.options import Limits
from labeler.prices import Price
from labeler.remote import RemoteBackend, timed, tokens
from labeler.spending import Spending
from prompts.render import Prompt

T = TypeVar("T")

OFFICIAL = "https://api.openai.com/v1"
PATH = "/chat/completions"
CONTINUING = frozenset({"vllm", "sglang"})
"""`owned_by` of the servers that go on with a last assistant message when asked to."""

REASONING = re.compile(r"o\d|gpt-[5-9](?!.*chat)")
"""OpenAI's models that think first: they tell no log-probabilities, and take neither temperature nor stops."""

MOST_SAMPLES = 128
"""That one request may ask for."""

THINKING = 8192
"""Tokens that such a model may think before its answer."""

BLANK = b" "
LEAST = math.log(1e-4)
"""A blank less likely than this moves no label: the strings after it are not worth a request."""


@dataclass(frozen=True)
class Server:
    """What is known about a server before it is asked: whether it continues an answer that was begun for it, is
    OpenAI's own; whether the model thinks first, tells log-probabilities, and takes a temperature and a seed."""

    continues: bool = False
    official: bool = False
    reasoning: bool = False
    logprobs: bool = True
    sampling: bool = True


@dataclass(frozen=True)
class Chat:
    """One model in OpenAI's words: requests to bodies, answers to values. Pure."""

    model: str
    server: Server
    price: Price | None

    def choose(self, request: Choose) -> dict[str, Any]:
        """Asks for the likeliest tokens of the first place."""
        most = "max_completion_tokens" if self.server.official else "max_tokens"
        return {
            **self._begun(request.prompt, only(request.options), continues=self.server.continues),
            most: 1,
            "temperature": 1,  # some servers tell log-probabilities after it; the token itself is not used
            "top_p": 1,
            "logprobs": True,
            "top_logprobs": top.MOST,
        }

    def chosen(self, options: Sequence[str], answer: bytes) -> Likelihoods:
        """Options outside of the list have their bound. Raises AgainError where the answer says nothing of them."""
        tops, usage = self.tops(answer, options)
        least = top.bound(tops)
        return Likelihoods(tuple(tops.get(option.encode(), least) for option in options), usage)

    def tops(self, answer: bytes, options: Sequence[str], *, blank: bool = False) -> tuple[top.Place, Usage]:
        """The likeliest first tokens. Raises AgainError where no option, nor a wanted blank, is among them."""
        try:
            tops, used = first_place(answer)
        except top.UnusableError as error:
            raise AgainError("unparsable", str(error), usage=self._usage(used_of(answer))) from None
        if options and not any(option.encode() in tops for option in options) and not (blank and BLANK in tops):
            message = f"none of the options {', '.join(options)} is among the {len(tops)} likeliest tokens"
            raise AgainError("unparsable", message, usage=self._usage(used))
        return tops, self._usage(used)

    def write(self, request: Write, count: int = 1) -> dict[str, Any]:
        """Asks for `count` samples."""
        continues = self.server.continues and not request.numbers
        prompt = replace(request.prompt, answer="") if request.numbers else request.prompt
        body = self._begun(prompt, request.instruction, continues=continues)
        if request.numbers:
            named = {"name": "numbers", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        if count > 1:
            body["n"] = count
        if self.server.reasoning:
            return {**body, "max_completion_tokens": THINKING + request.max_tokens}
        body["max_completion_tokens" if self.server.official else "max_tokens"] = request.max_tokens
        if self.server.sampling:
            body |= {"temperature": request.temperature, "seed": request.seed % 2**31}
        if request.stop:
            body["stop"] = list(request.stop)
        if request.top_k and self.server.continues:
            body["top_k"] = request.top_k
        return body

    def longest(self, request: Choose | Write) -> int:
        """The most tokens that an answer can have."""
        most = request.max_tokens if isinstance(request, Write) else 1
        return most + THINKING if self.server.reasoning else most

    def written(self, answer: bytes) -> list[Text | Failed]:
        """The samples; the first has what the prompt cost. Raises AgainError or RefusedError where none is a text."""
        said = parsed(Completion, answer)
        usage = self._usage(said.usage or Used())
        parts = _parts(usage, len(said.choices))
        found = [_text(choice, part) for choice, part in zip(said.choices, parts, strict=True)]
        failed = [each for each in found if isinstance(each, Failed)]
        if len(failed) == len(found):
            kind = AgainError if failed[0].reason == "unparsable" else RefusedError
            raise kind(failed[0].reason, failed[0].message, usage=usage)
        return found

    def _begun(self, prompt: Prompt, instruction: str, *, continues: bool) -> dict[str, Any]:
        system = {"role": "system", "content": prompt.system}
        if continues:
            user, begun = {"role": "user", "content": prompt.user}, {"role": "assistant", "content": prompt.answer}
            flags = {"continue_final_message": True, "add_generation_prompt": False}
            return {"model": self.model, **flags, "messages": [system, user, begun]}
        turns = [{"role": role, "content": text} for role, text in prompt.turns(instruction)]
        return {"model": self.model, "messages": [system, *turns]}

    def _usage(self, used: Used) -> Usage:
        usd = None
        if self.price is not None:
            usd = self.price.usd(used.prompt_tokens, used.completion_tokens, cached=used.cached, written=used.written)
        return Usage(used.prompt_tokens, used.completion_tokens, usd)


class Transport(Protocol):
    """The way to a model: bodies go there, and what `read` makes of an answer comes back."""

    async def ask(self, body: Mapping[str, Any], read: Callable[[bytes], T], tokens: int) -> T | Failed: ...
    async def count(self, body: Mapping[str, Any]) -> int | None: ...
    async def close(self) -> None: ...


class _Http:
    """A server's chat completions over HTTP."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.close = client.close

    async def ask(self, body: Mapping[str, Any], read: Callable[[bytes], T], tokens: int) -> T | Failed:
        return await self._client.ask(PATH, body, tokens, read)

    async def count(self, body: Mapping[str, Any]) -> int | None:
        """OpenAI's count of input tokens, else vLLM's tokenizer: whichever the server has; both are free."""
        base, asked = self._client.base_url, {"model": body["model"], "input": body["messages"]}
        if (told := await self._client.free(f"{base}/responses/input_tokens", asked)) is None:
            flags = {name: body[name] for name in ("add_generation_prompt", "continue_final_message") if name in body}
            asked = {"model": body["model"], "messages": body["messages"], **flags}
            told = await self._client.free(f"{base.removesuffix('/v1')}/tokenize", asked)
        number = told and told.get("input_tokens", told.get("count"))
        return number if isinstance(number, int) else None


class OpenAIBackend(RemoteBackend):
    """A model that is asked in OpenAI's words. `samples` says whether one request can ask for several."""

    def __init__(
        self, name: str, identity: str, chat: Chat, transport: Transport, limits: Limits, *, samples: bool = True
    ) -> None:
        super().__init__(name, identity, limits, price=chat.price, logprobs=chat.server.logprobs)
        self.chat, self._transport = chat, transport
        self._samples: dict[Write, list[tuple[Write, asyncio.Future[Text | Failed]]]] = defaultdict(list)
        self._asking: set[asyncio.Task[None]] = set()
        self.samples = MOST_SAMPLES if samples else 1

    async def count(self, request: Choose | Write) -> int | None:
        body = self.chat.choose(request) if isinstance(request, Choose) else self.chat.write(request)
        return await self._transport.count(body)

    async def close(self) -> None:
        await self._transport.close()

    async def _choose(self, request: Choose) -> Likelihoods | Failed:
        started = time.perf_counter()
        if not self.chat.server.continues:
            found = await self._ask(
                request, self.chat.choose(request), lambda said: self.chat.chosen(request.options, said)
            )
            return found if isinstance(found, Failed) else timed(found, started)
        strings = await self._strings(request, blank=True)
        if isinstance(strings, Failed):
            return strings
        values, least, usage = strings
        return timed(Likelihoods(tuple(least if value is None else value for value in values), usage), started)

    async def _strings(self, request: Choose, *, blank: bool) -> tuple[list[float | None], float, Usage] | Failed:
        """Each option's log-probability over the token strings that write it, None where no list has it; and the most
        that such a one can have. For a server that continues an answer.

        One request tells the options that are one token. Two more kinds of string need another: a longer option in two
        tokens, P("10") = P("1") P("0" | "1"), which is taken from "1" alone; and, with `blank`, a token of its own for
        the blank, P(" 1") = P(" ") P("1" | " ").
        """
        options, chat = request.options, self.chat
        found = await self._ask(request, chat.choose(request), lambda said: chat.tops(said, options, blank=blank))
        if isinstance(found, Failed):
            return found
        tops, usage = found
        values = [tops.get(option.encode()) for option in options]
        for at, option in enumerate(options):
            if values[at] is not None or option[:-1] not in options:
                continue
            shorter = options.index(option[:-1])
            if (alone := values[shorter]) is None:
                continue
            after = Choose(_answered(request.prompt, option[:-1]), (option[-1],))
            more = await self._ask(after, chat.choose(after), lambda said: chat.tops(said, ()))
            if isinstance(more, Failed):
                return more
            share = top.chance(more[0], option[-1])
            values[at], values[shorter] = alone + top.log(share), alone + top.log(1 - share)
            usage += more[1]
        if blank and (gap := tops.get(BLANK, -math.inf)) > LEAST:
            after = await self._strings(Choose(_answered(request.prompt, " "), options), blank=False)
            if isinstance(after, Failed):
                return after
            spaced = [None if value is None else gap + value for value in after[0]]
            values = [_either(value, other) for value, other in zip(values, spaced, strict=True)]
            usage += after[2]
        return values, top.bound(tops), usage

    async def _write(self, request: Write) -> Text | Failed:
        """Samples of one prompt that are wanted at the same moment are one request: the prompt is paid for once."""
        kind, future = replace(request, seed=0), asyncio.get_running_loop().create_future()
        group = self._samples[kind]
        group.append((request, future))
        if len(group) == 1:
            asyncio.get_running_loop().call_soon(self._begin, kind)  # after all that ask in this turn of the loop
        return await future

    def _begin(self, kind: Write) -> None:
        """Ask for a group in a task of its own: one of them may be cancelled, the others still get their answers."""
        group = self._samples.pop(kind)
        task = asyncio.create_task(self._settle(group))

        def ended(_: object) -> None:
            if all(future.cancelled() for _, future in group):
                task.cancel()

        for _, future in group:
            future.add_done_callback(ended)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _settle(self, group: Sequence[tuple[Write, asyncio.Future[Text | Failed]]]) -> None:
        try:
            found = await self._sample([request for request, _ in group])
        except BaseException as error:
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), text in zip(group, found, strict=True):
            if not future.done():
                future.set_result(text)

    async def _sample(self, requests: Sequence[Write]) -> list[Text | Failed]:
        """As many texts as requests. Servers that do not know `n` give one: from then on each is asked for alone."""
        started = time.perf_counter()
        count = min(len(requests), self.samples)
        found = await self._ask(requests[0], self.chat.write(requests[0], count), self.chat.written)
        if isinstance(found, Failed):
            first: list[Text | Failed] = [found] * count
        else:
            self.samples = self.samples if len(found) >= count else 1
            first = [each if isinstance(each, Failed) else timed(each, started) for each in found[:count]]
        rest = requests[len(first) :]
        pieces = [rest[at : at + self.samples] for at in range(0, len(rest), self.samples)]
        return [*first, *chain.from_iterable(await together(self._sample, pieces))]

    async def _ask(self, request: Choose | Write, body: Mapping[str, Any], read: Callable[[bytes], T]) -> T | Failed:
        return await self._transport.ask(body, read, tokens(request))


def _text(choice: Choice, usage: Usage) -> Text | Failed:
    message = choice.message
    if message.refusal:
        return Failed("refusal", "the model refused to answer")
    if message.content is None:
        return Failed("unparsable", "the answer has no text")
    if not message.content and choice.finish_reason == "length":
        return Failed("cut_off", "the model used up its tokens before it answered")
    return Text(message.content, usage)


def _parts(usage: Usage, count: int) -> list[Usage]:
    """One answer's cost over its samples: the prompt's tokens on the first, what was written evenly."""
    share, rest = divmod(usage.tokens_out, count)
    usd = None if usage.usd is None else usage.usd / count
    return [Usage(0 if at else usage.tokens_in, share + (at < rest), usd) for at in range(count)]


def _either(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return float(np.logaddexp(first, second))


def _answered(prompt: Prompt, text: str) -> Prompt:
    return replace(prompt, answer=prompt.answer + text)


def open_openai(
    model: str,
    *,
    base_url: str | None,
    key: str | None,
    limits: Limits,
    price: Price | None,
    spending: Spending | None = None,
) -> OpenAIBackend:
    """Look at the server's models, which costs nothing, then make the backend. Raises BackendError."""
    official = base_url is None
    if official and not key:
        raise BackendError(f"openai:{model} needs a key in OPENAI_API_KEY, or --base-url for a server of your own")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    client = Client(base_url or OFFICIAL, headers, limits, secret=key or "", spending=spending)
    server = asyncio.run(_look(client, model, official=official))
    name = f"openai:{model}"
    identity = name if official else f"{name}@{client.base_url}"
    return OpenAIBackend(name, identity, Chat(model, server, price), _Http(client), limits)


async def _look(client: Client, model: str, *, official: bool) -> Server:
    try:
        listed = parsed(Models, await client.get("/models")).data
    except (AgainError, RefusedError) as error:
        raise BackendError(f"--base-url {client.shown}: {error.message}; is a server running there?") from None
    finally:
        await client.close()
    continues = any(each.owned_by in CONTINUING for each in listed)
    names = [each.id for each in listed]
    if names and model not in names and (official or continues):
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise BackendError(f"--model openai:{model}: {client.shown} has no such model; it has {shown}")
    reasoning = not continues and REASONING.match(model) is not None
    return Server(continues, official, reasoning, logprobs=not reasoning)
