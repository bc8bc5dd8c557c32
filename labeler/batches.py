"""Providers' batches: thousands of requests handed in at once, answered within a day, at about half the price.

The journal knows every batch from before it is handed in until its answers are stored. A client that was killed finds
its batches again; one whose name it never heard is looked for at the provider before anything is handed in twice.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

from pydantic_core import to_json

from labeler.attempts import AgainError, RefusedError
from labeler.backend import BackendError, Choose, Failed, Likelihoods, Text, Write, request_key
from labeler.journal import Journal, OpenBatch
from labeler.prices import Price
from labeler.remote import prompt_tokens
from labeler.spending import BudgetError, Meter

Request: TypeAlias = Choose | Write
Answer: TypeAlias = Likelihoods | Text

ROUNDS = 8
"""How often a request is handed in before its row fails."""

TRIES = 8
"""How often a batch is handed in where the provider does not answer."""

DOWNLOADS = 3
"""How often results are fetched that are empty, or end in the middle of a line."""

MARGIN = 0.95
"""Of what a provider takes in one batch."""

SEARCHES = (0.2, 2.0)
"""Seconds before each look for a batch of which it is not known whether the provider has it."""

LOOK = (0.1, 60.0)
"""How long to wait before the next look at a batch: this share of its age, and no more than so many seconds."""


@dataclass(frozen=True)
class Row:
    """One row of a batch's results: the answer as the provider sends it, or why there is none."""

    key: str
    answer: bytes | Exception


class SpoiltError(BackendError):
    """A batch that is wrong as a whole, as the next one would be."""


@dataclass(frozen=True)
class Lost:
    """A whole batch that came to nothing; `full` says that there was no room for it, which is no try."""

    error: AgainError | RefusedError
    full: bool = False


class Desk(Protocol):
    """Where one provider takes batches. Methods raise AgainError, RefusedError or BackendError."""

    name: str
    identity: str
    logprobs: bool
    price: Price | None
    requests: int
    size: int

    def entry(self, key: str, request: Request) -> dict[str, Any]:
        """What is handed in for one request."""
        ...

    def longest(self, request: Request) -> int:
        """The most tokens that its answer can have."""
        ...

    def read(self, options: Sequence[str] | None, answer: bytes) -> Answer:
        """The likelihoods of the options, or the text where there are none."""
        ...

    async def submit(self, entries: Sequence[Mapping[str, Any]], tag: str) -> str:
        """Hand in a batch, once; its name."""
        ...

    async def find(self, batch: OpenBatch, known: Sequence[str]) -> str | None:
        """The name of a batch that was handed in, as its tag, its size and its time tell."""
        ...

    async def results(self, name: str) -> list[Row] | Lost | None:
        """None while it is under way. AgainError where it cannot be seen just now."""
        ...

    async def close(self) -> None: ...


@dataclass
class _Filling:
    """A batch that is being made."""

    entries: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    keys: list[str] = field(default_factory=list[str])
    size: int = 0
    cost: float = 0.0

    def full(self, entry: Mapping[str, Any], desk: Desk, most: int) -> bool:
        """Whether one more would be more than the provider takes."""
        count, size = len(self.entries), self.size + _length(entry)
        return count > 0 and (count >= min(desk.requests * MARGIN, most) or size > desk.size * MARGIN)

    def add(self, key: str, entry: dict[str, Any], cost: float) -> None:
        self.entries.append(entry)
        self.keys.append(key)
        self.size += _length(entry)
        self.cost += cost


def _length(entry: Mapping[str, Any]) -> int:
    return len(to_json(entry)) + 1


@dataclass
class Batched:
    """A backend that asks by batches, and keeps its answers in the journal by itself."""

    desk: Desk
    meter: Meter
    budget: float | None = None
    store: Journal | None = None
    tell: Callable[[str], None] = lambda _: None
    rows: int = 5_000
    calls: int = 8
    samples: int = 1
    _collecting: dict[str, asyncio.Task[None]] = field(default_factory=dict[str, asyncio.Task[None]])
    _untried: set[str] = field(default_factory=set[str])
    _naming: dict[str, asyncio.Event] = field(default_factory=dict[str, asyncio.Event])
    _unsure: set[str] = field(default_factory=set[str])
    _foreign: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    _searching: asyncio.Lock = field(default_factory=asyncio.Lock)
    _most: int = sys.maxsize
    _errors: dict[str, AgainError | RefusedError] = field(default_factory=dict[str, AgainError | RefusedError])

    @property
    def name(self) -> str:
        return self.desk.name

    @property
    def identity(self) -> str:
        return self.desk.identity

    @property
    def logprobs(self) -> bool:
        return self.desk.logprobs

    @property
    def price(self) -> Price | None:
        return self.desk.price

    def overflow(self, request: Request) -> int:  # noqa: ARG002
        """Only the provider can tell, and says so in its answer."""
        return 0

    async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        found = await self._answers(requests, requests[0].options if requests else ())
        return [each for each in found if not isinstance(each, Text)]

    async def texts(self, requests: Sequence[Write]) -> list[Text | Failed]:
        found = await self._answers(requests, None)
        return [each for each in found if not isinstance(each, Likelihoods)]

    async def count(self, request: Request) -> int | None:  # noqa: ARG002
        return None

    async def close(self) -> None:
        await self.desk.close()

    async def _answers(self, requests: Sequence[Request], options: Sequence[str] | None) -> list[Answer | Failed]:
        """Answers from the journal, from batches that are under way, and from new ones, until nothing is missing."""
        keys = [request_key(self.identity, request) for request in requests]
        missing = dict(zip(keys, requests, strict=True))
        found: dict[str, Answer | Failed] = {}
        tries: Counter[str] = Counter()
        while True:
            found.update(self._journal.get(list(missing)))
            missing = {key: request for key, request in missing.items() if key not in found}
            if under_way := self._under_way(missing):
                await asyncio.gather(*map(self._collected, under_way))
                continue
            for key in list(missing):
                if (error := self._errors.pop(key, None)) is None:
                    continue
                tries[key] += key not in self._untried
                self._untried.discard(key)
                if isinstance(error, RefusedError) or tries[key] >= ROUNDS:
                    found[key] = Failed(error.reason, error.message, tries[key])
                    del missing[key]
            if not missing:
                return [found[key] for key in keys]
            await self._hand_in(missing, options)

    @property
    def _journal(self) -> Journal:
        assert self.store is not None, "a batch is asked for without a journal"
        return self.store

    def _under_way(self, keys: Mapping[str, Request]) -> list[OpenBatch]:
        return [each for each in self._journal.open_batches() if not each.keys.isdisjoint(keys)]

    async def _hand_in(self, missing: Mapping[str, Request], options: Sequence[str] | None) -> None:
        """Hand in what the budget allows, in as many batches as the provider's limits make of it."""
        batch = _Filling()
        handed = False
        for key, request in missing.items():
            cost = self._cost(request)
            if not self._affordable(batch.cost + cost):
                if not handed and not batch.entries:
                    raise BudgetError(self._spent_message())
                break
            entry = self.desk.entry(key, request)
            if batch.full(entry, self.desk, self._most):
                await self._submit(batch, options)
                handed, batch = True, _Filling()
            batch.add(key, entry, cost)
        if batch.entries:
            await self._submit(batch, options)

    def _cost(self, request: Request) -> float:
        """About what it will cost; 0 where no price is known."""
        price = self.desk.price
        return 0.0 if price is None else price.usd(prompt_tokens(request), self.desk.longest(request))

    def _affordable(self, cost: float) -> bool:
        """Whether the budget has room for so much beside what is spent and what all batches under way will cost."""
        if self.budget is None:
            return True
        promised = sum(batch.cost for batch in self._journal.open_batches())
        return (self.meter.usage.usd or 0.0) + promised + cost <= self.budget

    def _spent_message(self) -> str:
        spent = self.meter.usage.usd or 0.0
        return (
            f"--budget {self.budget:g}: this run has spent ${spent:.4f}, and the next request would go beyond; what was"
            " answered is kept, and the same command goes on there, with a budget of its own"
        )

    async def _submit(self, filled: _Filling, options: Sequence[str] | None) -> None:
        keys, told = frozenset(filled.keys), None if options is None else tuple(options)
        batch = OpenBatch(secrets.token_hex(12), None, keys, told, time.time(), filled.cost)
        self._journal.open_batch(batch)
        naming = self._naming[batch.tag] = asyncio.Event()
        try:
            name = await self._named(batch, filled.entries)
            self._journal.name_batch(batch.tag, name)
        finally:
            del self._naming[batch.tag]
            naming.set()
        self.tell(f"batch {name}: {len(keys)} requests handed in")

    async def _named(self, batch: OpenBatch, entries: Sequence[dict[str, Any]]) -> str:
        """Hand in; after an error that leaves open whether the provider has it, look before doing it again."""
        said = ""
        for attempt in range(TRIES):
            try:
                return await self.desk.submit(entries, batch.tag)
            except AgainError as error:
                said = error.message
                for seconds in SEARCHES:  # it may have come, and be listed a little later
                    await asyncio.sleep(seconds)
                    if (name := await self._sought(batch)) is not None:
                        return name
                await asyncio.sleep(min(error.after or 0.2 * 2**attempt, 30))
            except RefusedError as error:
                said = error.message
                break
        self._journal.close_batch(batch.tag)
        raise BackendError(f"no batch could be handed in: {said}")

    async def _sought(self, batch: OpenBatch) -> str | None:
        """The provider's name of a batch of ours that it may have, noted at once so that no two find the same."""
        try:
            async with self._searching:
                named = {each.name for each in self._journal.open_batches() if each.name}
                known = named - self._unsure  # what another may have found wrongly can still be this one's
                foreign = [name for tag, name in self._foreign if tag == batch.tag]
                name = await self.desk.find(batch, [*known, *foreign])
                if name is not None:
                    self._unsure.add(name)
                    self._journal.name_batch(batch.tag, name)
                return name
        except AgainError as error:
            raise BackendError(f"cannot see whether a batch was handed in: {error.message}; run again later") from None

    async def _collected(self, batch: OpenBatch) -> None:
        """Wait for a batch and store its answers: once, whoever waits."""
        if batch.tag not in {each.tag for each in self._journal.open_batches()}:
            return  # somebody else has, since it was seen
        if batch.tag not in self._collecting:
            task = self._collecting[batch.tag] = asyncio.create_task(self._collect(batch))
            task.add_done_callback(lambda _: self._collecting.pop(batch.tag, None))
        await asyncio.shield(self._collecting[batch.tag])

    async def _collect(self, batch: OpenBatch) -> None:
        if (naming := self._naming.get(batch.tag)) is not None:  # it is being handed in just now
            await naming.wait()
        now = [each for each in self._journal.open_batches() if each.tag == batch.tag]
        if not now:
            return
        batch = now[0]
        name = batch.name
        if name is None:  # the client was killed while it handed this in
            name = await self._sought(batch)
            if name is None:
                self._journal.close_batch(batch.tag)
                return
        try:
            found = await self._waited(name, batch)
        except SpoiltError:  # the next run shall not meet it again
            self._journal.close_batch(batch.tag)
            raise
        if batch.name is None and found and batch.keys.isdisjoint(row.key for row in found):
            self._foreign.add((batch.tag, name))  # of another job, of the same size and time: ours may still be there
            self._journal.name_batch(batch.tag, None)
            await self._collect(batch)
            return
        self._keep_all(found, replace(batch, name=name))

    def _keep_all(self, found: Sequence[Row], batch: OpenBatch) -> None:
        """Store a batch's answers and close it. Raises BackendError after that where a row says what stops the job."""
        stop: BackendError | None = None
        seen: set[str] = set()
        for row in found:
            if row.key not in batch.keys or row.key in seen:
                continue
            try:
                self._keep(row, batch)
                seen.add(row.key)
            except BackendError as error:
                stop = error
        for key in batch.keys - seen:
            self._errors.setdefault(key, AgainError("missing", f"batch {batch.name} has no answer to this request"))
        self._journal.close_batch(batch.tag)
        good = sum(key not in self._errors for key in seen)
        self.tell(f"batch {batch.name}: {good} of {len(batch.keys)} requests answered")
        if stop is not None:
            raise stop

    def _keep(self, row: Row, batch: OpenBatch) -> None:
        try:
            if isinstance(row.answer, Exception):
                raise row.answer
            answer = self.desk.read(batch.options, row.answer)
        except (AgainError, RefusedError) as error:
            self._errors[row.key] = error
            if error.usage is not None:
                self.meter.usage += error.usage
            return
        self.meter.asked += 1
        self.meter.usage += answer.usage
        self._journal.put([(row.key, answer)])

    async def _waited(self, name: str, batch: OpenBatch) -> list[Row]:
        """The batch's results when it has ended; none where it has to be handed in again."""
        share, most = LOOK
        blind = False
        while True:
            try:
                found = await self.desk.results(name)
            except AgainError as error:  # a provider that is away for an hour still has the batch
                found = None
                if not blind:
                    self.tell(f"batch {name}: cannot be seen just now, still looking: {error.message}")
                blind = True
            if isinstance(found, Lost):
                if found.full:
                    self._untried |= batch.keys
                    if len(self._journal.open_batches()) == 1:
                        self._most = max(1, len(batch.keys) // 2)  # nothing else is in the queue: this was too large
                self._errors.update(dict.fromkeys(batch.keys, found.error))
                await asyncio.sleep(getattr(found.error, "after", None) or 0)
                return []
            if found is not None:
                return found
            await asyncio.sleep(min(max(0.05, share * (time.time() - batch.at)), most))
