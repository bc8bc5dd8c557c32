"""OpenAI's chat completions, and every server that speaks them: vLLM, SGLang, llama.cpp, LM Studio, ...

Likelihoods are read from `top_logprobs` of the first generated token. Never from prompt log-probabilities: servers
compute those without their prefix cache.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from pydantic_core import to_json

from labeler import top
from labeler.attempts import AgainError, RefusedError
from labeler.backend import BackendError, Choose, Failed, Likelihoods, Text, Usage, Write, together
from labeler.completions import Completion, Models, Used
from labeler.http import Client, parsed
from labeler.options import Limits
from labeler.prices import Price
from prompts.render import Prompt

T = TypeVar("T")

OFFICIAL = "https://api.openai.com/v1"
CONTINUING = frozenset({"vllm", "sglang"})
"""`owned_by` of the servers that go on with a last assistant message when asked to."""

BLANK = b" "
LEAST = math.log(1e-4)
"""A blank less likely than this moves no label: the strings after it are not worth a request."""

CHARACTERS = 4
"""Of one token, roughly: for the allowance of tokens a minute before an answer tells how many they were."""


@dataclass(frozen=True)
class Server:
    """What is known about a server before it is asked: whether it continues an answer that was begun for it."""

    continues: bool
    official: bool


class OpenAIBackend:
    """A row a call and many calls at a time: the pace alone decides how many requests are in flight."""

    rows = 1

    def __init__(self, model: str, client: Client, server: Server, price: Price | None, limits: Limits) -> None:
        self.name = f"openai:{model}"
        self.identity = self.name if server.official else f"{self.name}@{client.base_url}"
        self.calls = limits.in_flight
        self.priced = price is not None
        self._client, self._server, self._price = client, server, price
        self._fixed: dict[str, Any] = {"model": model}
        if server.continues:
            self._fixed |= {"continue_final_message": True, "add_generation_prompt": False}

    async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        return await together(self._choose, requests)

    async def texts(self, requests: Sequence[Write]) -> list[Text | Failed]:
        return await together(self._write, requests)

    def overflow(self, request: Choose | Write) -> int:  # noqa: ARG002
        """Only the server can tell, and says so in its answer."""
        return 0

    async def close(self) -> None:
        await self._client.close()

    async def _choose(self, request: Choose) -> Likelihoods | Failed:
        started = time.perf_counter()
        found = await self._strings(request, blank=self._server.continues)
        if isinstance(found, Failed):
            return found
        values, least, usage = found
        bounded = tuple(least if value is None else value for value in values)
        return Likelihoods(bounded, replace(usage, seconds=time.perf_counter() - started))

    async def _strings(self, request: Choose, *, blank: bool) -> tuple[list[float | None], float, Usage] | Failed:
        """Each option's log-probability over the token strings that write it, None where no list has it; and the most
        that such a one can have.

        One request tells the options that are one token. Two more kinds of string need a server that goes on with an
        answer: a longer option in two tokens, P("10") = P("1") P("0" | "1"), which is taken from "1" alone; and, with
        `blank`, a token of its own for the blank, P(" 1") = P(" ") P("1" | " ").
        """

        def read(said: Completion) -> tuple[top.Place, Usage]:
            tops = said.tops()
            if not any(option.encode() in tops for option in request.options) and not (blank and BLANK in tops):
                shown = ", ".join(request.options)
                raise top.UnusableError(f"none of the options {shown} is among the {len(tops)} likeliest tokens")
            return tops, self._usage(said)

        found = await self._ask(self._choice(request), read)
        if isinstance(found, Failed):
            return found
        tops, usage = found
        values = [tops.get(option.encode()) for option in request.options]
        for at, option in enumerate(request.options):
            if values[at] is not None or option[:-1] not in request.options or not self._server.continues:
                continue
            shorter = request.options.index(option[:-1])
            if (alone := values[shorter]) is None:
                continue
            after = Choose(_answered(request.prompt, option[:-1]), (option[-1],))
            more = await self._ask(self._choice(after), lambda said: (said.tops(), self._usage(said)))
            if isinstance(more, Failed):
                return more
            share = top.chance(more[0], option[-1])
            values[at], values[shorter] = alone + top.log(share), alone + top.log(1 - share)
            usage += more[1]
        if blank and (gap := tops.get(BLANK, -math.inf)) > LEAST:
            after = await self._strings(Choose(_answered(request.prompt, " "), request.options), blank=False)
            if isinstance(after, Failed):
                return after
            spaced = [None if value is None else gap + value for value in after[0]]
            values = [_either(value, other) for value, other in zip(values, spaced, strict=True)]
            usage += after[2]
        return values, top.bound(tops), usage

    async def _write(self, request: Write) -> Text | Failed:
        started = time.perf_counter()

        def read(said: Completion) -> Text:
            text = self._text(said)
            return replace(text, usage=replace(text.usage, seconds=time.perf_counter() - started))

        body = {
            "messages": self._messages(request.prompt, ""),
            self._most: request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed % 2**31,
            "stop": list(request.stop),
        }
        if request.top_k and self._server.continues:
            body["top_k"] = request.top_k
        return await self._ask(body, read)

    async def _ask(self, body: Mapping[str, Any], read: Callable[[Completion], T]) -> T | Failed:
        """Ask until there is an answer that `read` can use; those of no use fail as `unparsable` in the end."""

        def usable(answer: bytes) -> T:
            try:
                return read(parsed(Completion, answer))
            except top.UnusableError as error:
                raise AgainError("unparsable", str(error)) from None

        encoded = to_json({**self._fixed, **body})
        return await self._client.ask("/chat/completions", encoded, len(encoded) // CHARACTERS, usable)

    @property
    def _most(self) -> str:
        """OpenAI's newer models know only the longer name, other servers only the older one."""
        return "max_completion_tokens" if self._server.official else "max_tokens"

    def _choice(self, request: Choose) -> dict[str, Any]:
        labels = ", ".join(request.options)
        return {
            "messages": self._messages(request.prompt, f"Answer with one of {labels} and nothing else."),
            self._most: 1,
            "temperature": 1,  # some servers tell log-probabilities after it; the token itself is not used
            "top_p": 1,
            "logprobs": True,
            "top_logprobs": top.MOST,
        }

    def _messages(self, prompt: Prompt, instruction: str) -> list[dict[str, str]]:
        """Turns whose text is the prompt's; a rationale stands in a turn of the assistant's own."""
        system = {"role": "system", "content": prompt.system}
        if self._server.continues:
            return [system, {"role": "user", "content": prompt.user}, {"role": "assistant", "content": prompt.answer}]
        reason, _, ending = prompt.answer.rpartition("\n\n")
        last = "\n\n".join(part for part in (instruction, ending) if part)
        if not reason:
            return [system, {"role": "user", "content": f"{prompt.user}\n\n{last}"}]
        turns = [("user", prompt.user), ("assistant", reason), ("user", last)]
        return [system, *({"role": role, "content": content} for role, content in turns)]

    def _text(self, said: Completion) -> Text:
        message = said.choices[0].message
        if message.refusal:
            raise RefusedError("refusal", "the model refused to answer")
        if message.content is None:
            raise AgainError("unparsable", "the answer has no text")
        return Text(message.content, self._usage(said))

    def _usage(self, said: Completion) -> Usage:
        used = said.usage or Used()
        usd = None if self._price is None else self._price.usd(used.prompt_tokens, used.cached, used.completion_tokens)
        return Usage(used.prompt_tokens, used.completion_tokens, usd)


def _either(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return float(np.logaddexp(first, second))


def _answered(prompt: Prompt, text: str) -> Prompt:
    return replace(prompt, answer=prompt.answer + text)


def open_openai(
    model: str, *, base_url: str | None, key: str | None, limits: Limits, price: Price | None
) -> OpenAIBackend:
    """Look at the server's models, which costs nothing, then make the backend. Raises BackendError."""
    official = base_url is None
    if official and not key:
        raise BackendError(f"openai:{model} needs a key in OPENAI_API_KEY, or --base-url for a server of your own")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    client = Client(base_url or OFFICIAL, headers, limits, secret=key or "")
    server = asyncio.run(_look(client, model, official=official))
    return OpenAIBackend(model, client, server, price, limits)


async def _look(client: Client, model: str, *, official: bool) -> Server:
    try:
        listed = parsed(Models, await client.get("/models")).data
    except (AgainError, RefusedError) as error:
        raise BackendError(f"--base-url {client.base_url}: {error.message}; is a server running there?") from None
    finally:
        await client.close()
    continues = any(each.owned_by in CONTINUING for each in listed)
    names = [each.id for each in listed]
    if names and model not in names and (official or continues):
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise BackendError(f"--model openai:{model}: {client.base_url} has no such model; it has {shown}")
    return Server(continues=continues, official=official)
