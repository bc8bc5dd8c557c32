"""How fast may a server be asked? One window of requests that widens while answers come and halves when told to wait.

Additive increase, multiplicative decrease, as TCP does; a server's Retry-After stops everybody until then; requests and
tokens a minute are held where they are given, or read from the headers of the answers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping

from labeler.options import Limits

START = 32
"""Requests in flight at first; doubled every round trip until the server says no."""

BURST = 6.0
"""Seconds of an allowance that may be used at once."""

HEADERS = (
    ("x-ratelimit-limit-requests", "x-ratelimit-limit-tokens"),
    ("anthropic-ratelimit-requests-limit", "anthropic-ratelimit-input-tokens-limit"),
)


class Pace:
    """The gate before a server: first come, first served, so that the two orders of a pair stay neighbours.

    `enter` waits for a place; `leave` gives it back and says how it went.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._size = float(min(START, limits.in_flight))
        self._doubling = True
        self._running = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._shrunk = self._closed_until = -1.0
        self._requests = _Allowance(limits.rpm)
        self._tokens = _Allowance(limits.tpm)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def size(self) -> int:
        """Requests that may be in flight now."""
        return int(self._size)

    async def enter(self, tokens: int) -> float:
        """Wait for a place, for a request of about so many tokens; returns when it was given, for `leave`."""
        loop = asyncio.get_running_loop()
        if not self._waiting and self._running < self.size and self._delay(loop.time(), tokens) <= 0:
            self._take(tokens)
            return loop.time()
        place = loop.create_future()
        self._waiting.append((place, tokens))
        self._wake()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._release()
            self._again()  # who stood behind may need less
            raise
        return loop.time()

    def leave(self, entered: float, *, throttled: bool = False) -> None:
        """Give the place back. Of all requests that were in flight when the window shrank, one shrinks it."""
        if throttled:
            if entered > self._shrunk:
                self._size = max(1.0, self._size / 2)
                self._shrunk = asyncio.get_running_loop().time()
            self._doubling = False
        else:
            self._size = min(self._limits.in_flight, self._size + (1.0 if self._doubling else 1 / self._size))
        self._release()

    def pause(self, seconds: float) -> None:
        """Nobody enters for so long: the server said when to come back."""
        self._closed_until = max(self._closed_until, asyncio.get_running_loop().time() + seconds)

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take limits from an answer's headers where none were given."""
        for requests, tokens in HEADERS:
            if self._limits.rpm is None and (number := headers.get(requests, "")).isdigit():
                self._requests.per_minute = int(number) or None
            if self._limits.tpm is None and (number := headers.get(tokens, "")).isdigit():
                self._tokens.per_minute = int(number) or None

    def _take(self, tokens: int) -> None:
        self._running += 1
        now = asyncio.get_running_loop().time()
        self._requests.spend(1, now)
        self._tokens.spend(tokens, now)

    def _release(self) -> None:
        self._running -= 1
        self._wake()

    def _delay(self, now: float, tokens: int) -> float:
        return max(self._closed_until - now, self._requests.delay(1, now), self._tokens.delay(tokens, now))

    def _wake(self) -> None:
        """Let in who may enter; if the next one only lacks time, come back then."""
        while self._waiting and self._running < self.size:
            place, tokens = self._waiting[0]
            if place.done():
                self._waiting.popleft()
                continue
            loop = asyncio.get_running_loop()
            delay = self._delay(loop.time(), tokens)
            if delay > 0:
                if self._timer is None:
                    self._timer = loop.call_later(delay, self._again)
                return
            self._waiting.popleft()
            self._take(tokens)
            place.set_result(None)

    def _again(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._wake()


class _Allowance:
    """So much a minute, no more than BURST seconds of it at once; a single request is never too large for it."""

    def __init__(self, per_minute: int | None) -> None:
        self.per_minute = per_minute
        self._left, self._at = 0.0, -1e9

    def delay(self, amount: int, now: float) -> float:
        if self.per_minute is None:
            return 0.0
        return max(0.0, (min(amount, self._most()) - self._filled(now)) * 60 / self.per_minute)

    def spend(self, amount: int, now: float) -> None:
        if self.per_minute is not None:
            self._left, self._at = self._filled(now) - amount, now

    def _filled(self, now: float) -> float:
        assert self.per_minute is not None
        return min(self._most(), self._left + (now - self._at) * self.per_minute / 60)

    def _most(self) -> float:
        return max(1.0, (self.per_minute or 0) * BURST / 60)
