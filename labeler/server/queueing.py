"""Whose turn is it? One bounded queue that serves its clients in turn, however many items each of them brought."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """First in, first out for each client; among clients, one item each in turn. Holds at most `bound` items, no two
    of a client equal."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._lines: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()
        self._size = 0
        self._takers: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return self._size

    def put(self, client: str, item: T) -> bool:
        """Whether there was room."""
        if self._size >= self.bound:
            return False
        self._lines.setdefault(client, OrderedDict())[item] = None
        self._size += 1
        self._wake()
        return True

    def give_up(self, client: str, item: T) -> None:
        """Nobody waits for it any more: its place is another's."""
        line = self._lines.get(client)
        if line is not None and item in line:
            del line[item]
            self._size -= 1
            if not line:
                del self._lines[client]

    async def take(self, most: int, linger: float) -> list[T]:
        """Up to `most` items: waits for the first, then `linger` seconds for company. None where all gave up then."""
        while not self._size:
            taker = asyncio.get_running_loop().create_future()
            self._takers.append(taker)
            try:
                await taker
            except asyncio.CancelledError:
                if taker.done() and not taker.cancelled():
                    self._wake()  # the turn that was given to this one is another's
                raise
        if self._size < most and linger > 0:
            await asyncio.sleep(linger)
            if not self._size:  # all have given up meanwhile
                return []
        return [self._next() for _ in range(min(most, self._size))]

    def _next(self) -> T:
        client, line = self._lines.popitem(last=False)
        item, _ = line.popitem(last=False)
        if line:
            self._lines[client] = line
        self._size -= 1
        return item

    def _wake(self) -> None:
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return
