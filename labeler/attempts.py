"""One request, until it is answered or cannot be: what an attempt's errors mean, and trying again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from labeler.backend import Failed, Usage
from labeler.options import Limits
from labeler.pace import Pace
from labeler.spending import Spending

T = TypeVar("T")

BACKOFF = tenacity.wait_random_exponential(multiplier=0.5, max=30)


@dataclass
class AgainError(Exception):
    """This attempt gave nothing; another may. `after` is when the server wants to be asked again, `usage` what an
    answer of no use cost."""

    reason: str
    message: str
    throttled: bool = False
    after: float | None = None
    usage: Usage | None = None


@dataclass
class RefusedError(Exception):
    """The server will not answer this request, however often it is asked."""

    reason: str
    message: str
    usage: Usage | None = None


class Attempts:
    """Asks at the server's pace, again where that may help; what cannot be answered is a value."""

    def __init__(self, limits: Limits, spending: Spending) -> None:
        self._limits, self._spending = limits, spending
        self.pace = Pace(limits)

    async def ask(self, attempt: Callable[[], Awaitable[T]], tokens: int) -> T | Failed:
        """The answer of the first attempt that has one. Attempts raise AgainError or RefusedError."""
        try:
            return await self._once(attempt, tokens)  # most requests need no more, and never meet tenacity
        except RefusedError as error:
            return Failed(error.reason, error.message)
        except AgainError as error:
            return await self._again(attempt, tokens, error)

    async def _again(self, attempt: Callable[[], Awaitable[T]], tokens: int, first: AgainError) -> T | Failed:
        """The same, after a first attempt that gave nothing."""
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(AgainError),
            stop=tenacity.stop_after_attempt(self._limits.attempts) | tenacity.stop_after_delay(self._limits.patience),
            wait=_wait,
            reraise=True,
        )
        number = 1
        try:
            async for each in retrying:
                number = each.retry_state.attempt_number
                with each:
                    if number == 1:
                        raise first
                    return await self._once(attempt, tokens)
        except (AgainError, RefusedError) as error:
            return Failed(error.reason, error.message, number)
        raise AssertionError("tenacity ends with an answer or an error")

    async def _once(self, attempt: Callable[[], Awaitable[T]], tokens: int) -> T:
        entered, throttled = await self.pace.enter(tokens), False
        try:
            self._spending.check()
            return await attempt()
        except (AgainError, RefusedError) as error:
            if error.usage is not None:
                self._spending.waste(error.usage)
            if isinstance(error, AgainError):
                throttled = error.throttled
                if error.after is not None:
                    self.pace.pause(min(error.after, self._limits.longest_wait))
            raise
        finally:
            self.pace.leave(entered, throttled=throttled)


def _wait(state: tenacity.RetryCallState) -> float:
    """Exponential with full jitter; where the server said when to come back, the gate keeps everybody until then."""
    error = state.outcome.exception() if state.outcome else None
    return 0.0 if isinstance(error, AgainError) and error.after is not None else BACKOFF(state)
