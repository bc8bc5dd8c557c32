"""One model on several servers: each request goes where the fewest wait; a server that fails rests for a while."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from labeler.backend import Backend, BackendError, Choose, Failed, Likelihoods, Text, Write
from labeler.wrappers import Around

A = TypeVar("A", Likelihoods, Text)
Q = TypeVar("Q", Choose, Write)

SICK = frozenset({"connection", "timeout", "overloaded", "server_error", "rate_limit", "refused"})
"""Reasons that are the server's and not the question's: another server may answer."""

FIRST_REST, LONGEST_REST = 1.0, 60.0
"""Seconds that a server rests after a failure; doubled each time it fails again."""

TRIES, PAUSE = 8, 2.0
"""How often a question is asked, and the most seconds that it waits where all servers rest."""


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
    """All serve the same model: what one says, any could have said. `inner` is the first of them.

    A question is tried again here and not by the backends: theirs would be with the server that just failed. After
    `patience` seconds nobody waits for it any more, and it is not tried again.
    """

    others: Sequence[Backend] = ()
    servers: list[Server] = field(default_factory=list[Server])
    patience: float = math.inf

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
        answers: dict[int, A | Failed] = {}
        end = time.monotonic() + self.patience
        left = list(range(len(requests)))
        for _ in range(TRIES):
            server = min(self.servers, key=_order)
            if answers and (rest := min(server.back - time.monotonic(), PAUSE)) > 0:
                await asyncio.sleep(rest)
            if answers and time.monotonic() >= end:
                break
            server.waiting += 1
            try:
                found = await verb(server.backend)([requests[at] for at in left])
            except BackendError as error:  # its key, its model or its path is wrong: another's may be right
                found = [Failed("refused", str(error)) for _ in left]
            finally:
                server.waiting -= 1
            answers.update(zip(left, found, strict=True))
            left = [at for at in left if isinstance(each := answers[at], Failed) and each.reason in SICK]
            if not left:
                server.answered()
                break
            server.failed()
        return [answers[at] for at in range(len(requests))]


def _order(server: Server) -> tuple[bool, float, int]:
    """The healthy first, the least busy of them; of the sick, whoever is back soonest."""
    resting = server.back > time.monotonic()
    return resting, server.back if resting else 0.0, server.waiting
