"""One model on several servers: each request goes where the fewest wait; a server that fails rests for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from labeler.backend import Backend, Choose, Failed, Likelihoods, Text, Write
from labeler.wrappers import Around

A = TypeVar("A", Likelihoods, Text)
Q = TypeVar("Q", Choose, Write)

SICK = frozenset({"connection", "timeout", "overloaded", "server_error", "rate_limit", "stopped"})
"""Reasons that are the server's and not the question's: another server may answer."""

FIRST_REST, LONGEST_REST = 1.0, 60.0
"""Seconds that a server rests after a failure; doubled each time it fails again."""


@dataclass
class Server:
    """One of them, and how it is doing."""

    backend: Backend
    waiting: int = 0
    rest: float = FIRST_REST
    back: float = 0.0

    def failed(self) -> None:
        """Of all requests that fail together, one makes it rest longer."""
        if self.back > time.monotonic():
            return
        self.back = time.monotonic() + self.rest
        self.rest = min(2 * self.rest, LONGEST_REST)

    def answered(self) -> None:
        self.back, self.rest = 0.0, FIRST_REST


@dataclass(frozen=True)
class Spread(Around):
    """All serve the same model: what one says, any could have said. `inner` is the first of them."""

    others: Sequence[Backend] = ()
    servers: list[Server] = field(default_factory=list[Server])

    def __post_init__(self) -> None:
        self.servers.extend(Server(each) for each in (self.inner, *self.others))

    @property
    def calls(self) -> int:
        return sum(each.backend.calls for each in self.servers)

    async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        return await self._spread(requests, lambda backend: backend.likelihoods)

    async def texts(self, requests: Sequence[Write]) -> list[Text | Failed]:
        return await self._spread(requests, lambda backend: backend.texts)

    async def close(self) -> None:
        await asyncio.gather(*(each.backend.close() for each in self.servers))

    async def _spread(
        self, requests: Sequence[Q], verb: Callable[[Backend], Callable[[Sequence[Q]], Awaitable[list[A | Failed]]]]
    ) -> list[A | Failed]:
        tried: list[Server] = []
        while True:
            server = min((each for each in self.servers if each not in tried), key=_order)
            tried.append(server)
            server.waiting += 1
            try:
                found = await verb(server.backend)(requests)
            finally:
                server.waiting -= 1
            if not any(isinstance(each, Failed) and each.reason in SICK for each in found):
                server.answered()
                return found
            server.failed()
            if len(tried) == len(self.servers):
                return found


def _order(server: Server) -> tuple[bool, float, int]:
    """The healthy first, the least busy of them; of the sick, whoever is back soonest."""
    resting = server.back > time.monotonic()
    return resting, server.back if resting else 0.0, server.waiting
