"""What stands around a backend: a cache and a meter, with the same protocol. labeler/here.py stacks them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from data.tables import batched
from labeler.backend import Backend, Choose, Failed, Likelihoods, Text, Write, request_key, together
from labeler.prices import Price
from labeler.spending import Meter, Spending

CHOICES, TEXTS = 256, 16
"""Requests whose answers are kept together: what a kill can cost. A local model takes minutes to write 16 texts."""

Q = TypeVar("Q", Choose, Write)
A = TypeVar("A", Likelihoods, Text)


class Store(Protocol):
    """Keeps answers by key. What it returns for a key is what was put there."""

    def get(self, keys: Sequence[str]) -> Mapping[str, Likelihoods | Text]: ...
    def put(self, answers: Iterable[tuple[str, Likelihoods | Text]]) -> None: ...


@dataclass(frozen=True)
class Around:
    """What a wrapper passes on as it is: everything that it does not do itself."""

    inner: Backend

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def identity(self) -> str:
        return self.inner.identity

    @property
    def rows(self) -> int:
        return self.inner.rows

    @property
    def calls(self) -> int:
        return self.inner.calls

    @property
    def price(self) -> Price | None:
        return self.inner.price

    @property
    def samples(self) -> int:
        return self.inner.samples

    @property
    def logprobs(self) -> bool:
        return self.inner.logprobs

    async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        return await self.inner.likelihoods(requests)

    async def texts(self, requests: Sequence[Write]) -> list[Text | Failed]:
        return await self.inner.texts(requests)

    def overflow(self, request: Choose | Write) -> int:
        return self.inner.overflow(request)

    async def count(self, request: Choose | Write) -> int | None:
        return await self.inner.count(request)

    async def close(self) -> None:
        await self.inner.close()


@dataclass(frozen=True)
class Cached(Around):
    """Answers from a store what was asked before, asks `inner` only for the rest, and keeps what it says at once."""

    store: Store

    async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        return await self._through(requests, self.inner.likelihoods, Likelihoods, CHOICES)

    async def texts(self, requests: Sequence[Write]) -> list[Text | Failed]:
        return await self._through(requests, self.inner.texts, Text, TEXTS)

    async def _through(
        self, requests: Sequence[Q], ask: Callable[[Sequence[Q]], Awaitable[list[A | Failed]]], kind: type[A], size: int
    ) -> list[A | Failed]:
        keys = [request_key(self.identity, request) for request in requests]
        known: dict[str, A | Failed] = {k: v for k, v in self.store.get(keys).items() if isinstance(v, kind)}
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}

        async def keep(piece: Sequence[tuple[str, Q]]) -> None:
            fresh = dict(zip((key for key, _ in piece), await ask([request for _, request in piece]), strict=True))
            self.store.put((key, answer) for key, answer in fresh.items() if not isinstance(answer, Failed))
            known.update(fresh)

        if self.inner.calls > 1:  # many small calls: each answer is kept when it comes, whatever happens to the others
            await together(keep, ([each] for each in missing.items()))
        else:
            for piece in batched(missing.items(), size):
                await keep(piece)
        return [known[key] for key in keys]


@dataclass(frozen=True)
class Metered(Around):
    """Counts what goes through: put it inside of the cache to count what is really asked."""

    meter: Meter

    async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        answers = await self.inner.likelihoods(requests)
        self._count(answers)
        return answers

    async def texts(self, requests: Sequence[Write]) -> list[Text | Failed]:
        answers = await self.inner.texts(requests)
        self._count(answers)
        return answers

    def _count(self, answers: Sequence[Likelihoods | Text | Failed]) -> None:
        self.meter.asked += len(answers)
        for answer in answers:
            if isinstance(answer, Failed):
                self.meter.failed += 1
            else:
                self.meter.usage += answer.usage


@dataclass(frozen=True)
class Checked(Around):
    """Looks before each call whether the job may go on; what asks a server looks again before each request."""

    spending: Spending

    async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        self.spending.check()
        return await self.inner.likelihoods(requests)

    async def texts(self, requests: Sequence[Write]) -> list[Text | Failed]:
        self.spending.check()
        return await self.inner.texts(requests)
