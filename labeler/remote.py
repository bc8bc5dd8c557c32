"""What all backends behind a server have in common: a row a call, many calls at a time."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from labeler.backend import Choose, Failed, Likelihoods, Text, Usage, Write, together
from labeler.options import Limits
from labeler.prices import Price

A = TypeVar("A", Likelihoods, Text)

CHARACTERS = 4
"""Of one token, roughly: for what must be known before an answer tells how many they were."""


AROUND = 16
"""Tokens of a chat around the texts: roles, and what a model is told about its answer."""


class RemoteBackend(ABC):
    """Asks about each request by itself; the server's pace alone decides how many are in flight."""

    rows = 1
    samples = 1

    def __init__(self, name: str, identity: str, limits: Limits, *, price: Price | None, logprobs: bool) -> None:
        self.name, self.identity, self.calls = name, identity, limits.in_flight
        self.price, self.logprobs = price, logprobs

    async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        return await together(self._choose, requests)

    async def texts(self, requests: Sequence[Write]) -> list[Text | Failed]:
        return await together(self._write, requests)

    def overflow(self, request: Choose | Write) -> int:  # noqa: ARG002
        """Only the server can tell, and says so in its answer."""
        return 0

    @abstractmethod
    async def _choose(self, request: Choose) -> Likelihoods | Failed: ...
    @abstractmethod
    async def _write(self, request: Write) -> Text | Failed: ...
    @abstractmethod
    async def count(self, request: Choose | Write) -> int | None: ...
    @abstractmethod
    async def close(self) -> None: ...


def prompt_tokens(request: Choose | Write) -> int:
    """About so many a request has."""
    prompt = request.prompt
    told = sum(map(len, (prompt.system, prompt.before, prompt.context, prompt.after, prompt.request, prompt.answer)))
    return told // CHARACTERS + AROUND


def tokens(request: Choose | Write) -> int:
    """The same, with the most that its answer may have."""
    return prompt_tokens(request) + (request.max_tokens if isinstance(request, Write) else 1)


def timed(answer: A, started: float) -> A:
    """The answer with the seconds since `started`, by time.perf_counter."""
    spent = answer.usage
    seconds = time.perf_counter() - started
    return replace(answer, usage=Usage(spent.tokens_in, spent.tokens_out, spent.usd, seconds))
