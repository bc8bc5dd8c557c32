"""A model that runs in this process, as a backend: what `local:` and `vllm:` have in common.

One batch at a time in a thread, so that the job's journal and progress go on beside it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Lock
from typing import Protocol, TypeVar

from labeler.backend import Choose, Failed, Likelihoods, Text, Usage, Write
from labeler.prices import FREE
from lm.chat import Encoder
from lm.rows import Tokens
from lm.sample import Draw, Written
from lm.strings import Ask
from prompts.render import Prompt

A = TypeVar("A")

AHEAD = 2
"""Calls in hand: one computes, and the prompts of the next are encoded."""

ROOM = 4
"""Tokens that an option may take beyond its prompt."""

CHAT = 128
"""Tokens that a chat template may add to a prompt."""


class Engine(Protocol):
    """What computes: likelihoods of options after prompts, and texts, in the order of what was asked."""

    def log_probabilities(self, asks: Sequence[Ask]) -> list[list[float]]: ...
    def write(self, draws: Sequence[Draw]) -> list[Written]: ...
    def close(self) -> None: ...


class InProcess:
    """A backend around an engine: encodes prompts, runs one call after another, makes failures values."""

    calls = samples = 1
    price = FREE
    logprobs = True

    def __init__(self, name: str, identity: str, engine: Engine, encoder: Encoder, *, context: int, rows: int) -> None:
        self.name, self.identity, self.rows = name, identity, rows
        self._engine, self._encoder, self._context = engine, encoder, context
        self._one = Lock()  # a cancelled call's thread runs to its end; the next one waits for it
        self._threads = ThreadPoolExecutor(AHEAD)  # its own: calls that wait must not fill up the event loop's
        self._closed = False

    async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        return await self._aside(lambda: self._likelihoods(requests))

    async def texts(self, requests: Sequence[Write]) -> list[Text | Failed]:
        return await self._aside(lambda: self._texts(requests))

    def overflow(self, request: Choose | Write) -> int:
        room = self._context - (request.max_tokens if isinstance(request, Write) else ROOM)
        text = request.prompt.plain()
        # A token is at least one byte, so most prompts need not be encoded to know that they fit; megabytes that
        # cannot fit are not encoded either, since a server's event loop waits meanwhile.
        if len(text.encode("utf-8", "replace")) + CHAT <= room:
            return 0
        if (least := len(text) // self._encoder.longest) > room:
            return least - room
        return max(0, len(self._encode(request.prompt)) - room)

    async def count(self, request: Choose | Write) -> int | None:
        return len(self._encode(_asked(request) if isinstance(request, Write) else request.prompt))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._aside(self._close)
        self._threads.shutdown(wait=False)

    def _close(self) -> None:
        with self._one:
            self._engine.close()

    async def _aside(self, work: Callable[[], A]) -> A:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _computed(self, compute: Callable[[], A]) -> tuple[A | Failed, float]:
        """What the engine says, and its seconds. One call computes; the prompts of the next are encoded meanwhile."""
        with self._one:
            if self._closed:
                return Failed("stopped", "the model was closed before it came to this"), 0.0
            started = time.perf_counter()
            found = _caught(compute)
            return found, time.perf_counter() - started

    def _encode(self, prompt: Prompt) -> Tokens:
        return self._encoder.encode(prompt.system, prompt.user, prompt.answer)

    def _ask(self, request: Choose) -> Ask:
        prompt = request.prompt
        tokens = self._encode(prompt)
        cuts = self._encoder.cuts(tokens, prompt.system, prompt.beginnings, prompt.answer)
        return Ask(tokens, self._encoder.continuations(prompt.answer, request.options), cuts)

    def _likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        asks = [self._ask(each) for each in requests]
        found, seconds = self._computed(lambda: self._engine.log_probabilities(asks))
        if isinstance(found, Failed):
            return [found for _ in requests]
        share = seconds / max(1, len(requests))
        return [
            Failed("nan", "the model gave NaN in place of log-probabilities")
            if any(math.isnan(value) for value in values)
            else Likelihoods(tuple(values), Usage(len(ask.prompt), 1, 0.0, share))
            for ask, values in zip(asks, found, strict=True)
        ]

    def _texts(self, requests: Sequence[Write]) -> list[Text | Failed]:
        draws = [
            Draw(self._encode(_asked(each)), each.max_tokens, each.temperature, each.top_k, each.seed, each.stop)
            for each in requests
        ]
        found, seconds = self._computed(lambda: self._engine.write(draws))
        if isinstance(found, Failed):
            return [found for _ in requests]
        share = seconds / max(1, len(requests))
        return [
            Text(each.text, Usage(len(draw.prompt), each.tokens, 0.0, share))
            for draw, each in zip(draws, found, strict=True)
        ]


def _asked(request: Write) -> Prompt:
    """An engine continues the answer that a prompt begins; an object of numbers has to begin anew."""
    if not request.numbers:
        return request.prompt
    return replace(request.prompt, request=f"{request.prompt.request}\n\n{request.instruction}", answer="")


def _caught(compute: Callable[[], A]) -> A | Failed:
    """The result, or what the machine or the model could not do with this batch."""
    try:
        return compute()
    except FloatingPointError as error:
        return Failed("nan", str(error))
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        return Failed("out_of_memory", "the model's machine ran out of memory on this batch")
