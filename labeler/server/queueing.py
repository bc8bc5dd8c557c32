"""Whose turn is it? One bounded queue that serves its clients in turn, however many items each of them brought."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """First in, first out for each client; among clients, one item each in turn. Holds at most `bound` items. One that
    several clients brought stands in the line of each, and is taken once: when the first of their turns comes."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._lines: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()
        self._brought: dict[T, set[str]] = {}
        self._takers: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._brought)

    def put(self, client: str, item: T) -> bool:
        """Whether there was room."""
        if item not in self._brought and len(self) >= self.bound:
            return False
        self._lines.setdefault(client, OrderedDict())[item] = None
        self._brought.setdefault(item, set()).add(client)
        self.wake()
        return True

    def give_up(self, client: str, item: T) -> None:
        """This client does not wait for it any more: its place is another's."""
        clients = self._brought.get(item, set())
        if client in clients:
            clients.discard(client)
            if not clients:
                del self._brought[item]
            self._leave(client, item)

    async def take(self, most: int, linger: float, few: Callable[[], bool]) -> list[T]:
        """Up to `most` items, at least one. Where `few` says that fewer than `most` will do, waits `linger` seconds for
        company; else until there are `most`. `wake` has `few` asked again."""
        while True:
            while not self._ready(most, few):
                await self._woken()
            if len(self) >= most or linger <= 0:
                break
            await asyncio.sleep(linger)
            if self._ready(most, few):  # all may have given up meanwhile
                break
        return [self._next() for _ in range(min(most, len(self)))]

    def _ready(self, most: int, few: Callable[[], bool]) -> bool:
        return len(self) >= most or (len(self) > 0 and few())

    async def _woken(self) -> None:
        taker = asyncio.get_running_loop().create_future()
        self._takers.append(taker)
        try:
            await taker
        except asyncio.CancelledError:
            if taker.done() and not taker.cancelled():
                self.wake()  # the turn that was given to this one is another's
            raise

    def _next(self) -> T:
        client, line = self._lines.popitem(last=False)
        item, _ = line.popitem(last=False)
        if line:
            self._lines[client] = line
        for other in self._brought.pop(item) - {client}:
            self._leave(other, item)
        return item

    def _leave(self, client: str, item: T) -> None:
        line = self._lines[client]
        del line[item]
        if not line:
            del self._lines[client]

    def wake(self) -> None:
        """Let one who waits look again."""
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return
