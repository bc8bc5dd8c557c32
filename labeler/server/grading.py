"""One task on one model, asked by many at once: what is known is answered, what is asked already is waited for."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from data.errors import RlaifError
from data.records import Comparison, Failure, ModelReward, Ranking, Response, Score
from labeler.server.metrics import defect
from labeler.server.queueing import FairQueue

Row = TypeVar("Row", Response, Comparison)
Good = TypeVar("Good", Score, ModelReward, Ranking)

LOG = logging.getLogger("rlaif.server")

LINGER = 0.002
"""Seconds that a batch waits for company, when the model has nothing else to do."""

SHARED = frozenset({"internal", "out_of_memory", "nan"})
"""Failures of a whole batch that one of its rows may have brought: the others are asked without it."""

REMEMBERED = 20_000
"""Answers kept in memory; the store behind the model has all of them."""


class Watch(Protocol):
    """Told what happens, for metrics."""

    def batch(self, size: int) -> None: ...
    def hit(self) -> None: ...
    def joined(self) -> None: ...


@dataclass(eq=False)
class _Flight(Generic[Row, Good]):
    """A question on its way, and how many of which clients wait for it. It stands in the line of each."""

    row: Row
    answer: asyncio.Future[Good | Failure]
    waiting: Counter[str] = field(default_factory=Counter[str])
    begun: bool = False


@dataclass
class Grader(Generic[Row, Good]):
    """`ask` is a compiled Scorer or Ranker; `rows` of them go in a call, `calls` at a time. Where calls are of several
    rows, the prompts of a next full one are made ready while the model still computes, and it begins without a pause.

    A row is known by its content, so retries of one request ask the model once. Answers are kept, failures are not.
    Answers whose label mass is below `least_mass` are failures.
    """

    ask: Callable[[Sequence[Row]], Awaitable[Sequence[Good | Failure]]]
    rows: int
    calls: int
    bound: int
    watch: Watch
    least_mass: float = 0.0
    linger: float = LINGER
    _known: OrderedDict[str, Good] = field(default_factory=OrderedDict[str, Good])
    _flying: dict[str, _Flight[Row, Good]] = field(default_factory=dict[str, "_Flight[Row, Good]"])
    _running: int = 0
    _workers: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])

    def __post_init__(self) -> None:
        self.queue: FairQueue[_Flight[Row, Good]] = FairQueue(self.bound)

    def start(self) -> None:
        """In the event loop that will ask."""
        ahead = 1 if self.rows > 1 else 0
        self._workers = [asyncio.create_task(self._work()) for _ in range(self.calls + ahead)]

    async def stop(self) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def grade(self, row: Row, client: str, patience: float) -> tuple[Good | Failure, bool]:
        """The answer, and whether it was known already. After `patience` seconds a failure; what the model was asked
        already goes on, and is known then."""
        key = row.content
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            self.watch.hit()
            return known, True
        flight = self._flying.get(key)
        if flight is not None:
            self.watch.joined()
            if not flight.begun and not flight.waiting[client]:
                self.queue.put(client, flight)  # its turn may come before that of who asked first
        else:
            flight = _Flight[Row, Good](row, asyncio.get_running_loop().create_future())
            if not self.queue.put(client, flight):
                return _failure(row, "overloaded", f"{self.queue.bound} questions wait already"), False
            self._flying[key] = flight
        flight.waiting[client] += 1
        try:
            done, _ = await asyncio.wait([flight.answer], timeout=patience)
            if not done:
                return _failure(row, "timeout", f"no answer within {patience:g} s"), False
            return flight.answer.result(), False
        finally:
            flight.waiting[client] -= 1
            if not flight.waiting[client]:
                del flight.waiting[client]
                self.queue.give_up(client, flight)
                if not flight.waiting and not flight.begun and self._flying.get(key) is flight:
                    del self._flying[key]

    async def _work(self) -> None:
        while True:
            taken = await self.queue.take(self.rows, self.linger if self.rows > 1 else 0.0, self._free)
            self._running += 1
            try:
                await self._asked(taken)
            finally:
                self._running -= 1
                self.queue.wake()

    async def _asked(self, taken: Sequence[_Flight[Row, Good]]) -> None:
        for flight in taken:
            flight.begun = True
        self.watch.batch(len(taken))
        answers = await self._answers([each.row for each in taken])
        if len(taken) > 1 and all(isinstance(each, Failure) and each.reason in SHARED for each in answers):
            answers = [(await self._answers([each.row]))[0] for each in taken]
        for flight, answer in zip(taken, answers, strict=True):
            self._settle(flight, answer)

    def _free(self) -> bool:
        """Whether the model waits for work: then fewer rows than a call can have are asked at once."""
        return self._running < self.calls

    async def _answers(self, rows: Sequence[Row]) -> Sequence[Good | Failure]:
        try:
            found = await self.ask(rows)
            return [self._checked(row, answer) for row, answer in zip(rows, found, strict=True)]
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            return [_failure(row, "internal", "the model's own call was cancelled") for row in rows]
        except RlaifError as error:
            return [_failure(row, "stopped", str(error)) for row in rows]
        except Exception as error:  # a defect of ours or of an engine: these rows fail, the server goes on
            LOG.error("a call to the model failed: %s", defect(error))  # noqa: TRY400  its message may quote a text
            return [_failure(row, "internal", f"{type(error).__name__}; the server's log tells where") for row in rows]

    def _checked(self, row: Row, answer: Good | Failure) -> Good | Failure:
        if isinstance(answer, Failure):
            return answer
        numbers = answer.strengths if isinstance(answer, Ranking) else (answer.reward,)
        if not all(map(math.isfinite, numbers)):
            return _failure(row, "nan", "the model gave no number")
        if not isinstance(answer, ModelReward) and answer.mass < self.least_mass:
            return _failure(row, "low_mass", f"the answers got {answer.mass:.2g} of the probability; --least-mass")
        return answer

    def _settle(self, flight: _Flight[Row, Good], answer: Good | Failure) -> None:
        key = flight.row.content
        if self._flying.get(key) is flight:
            del self._flying[key]
        if not isinstance(answer, Failure):
            self._known[key] = answer
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        if not flight.answer.done():
            flight.answer.set_result(answer)


def _failure(row: Response | Comparison, reason: str, message: str) -> Failure:
    return Failure(id=row.id, stage="serve", reason=reason, message=message)
