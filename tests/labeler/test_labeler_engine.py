"""Two calls in hand of an engine in this process: one computes, and the prompts of the next are encoded meanwhile."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from threading import Event
from typing import Any

from labeler.backend import Choose, Failed, Likelihoods
from labeler.engine import InProcess
from prompts.render import Prompt

PATIENCE = 20


class Encoder:
    """A token a character; `seen` is set when the second prompt comes."""

    longest = 1

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.seen = Event()

    def encode(self, _system: str, user: str, _answer: str) -> tuple[int, ...]:
        self.prompts.append(user)
        if len(self.prompts) == 2:
            self.seen.set()
        return tuple(map(ord, user))

    def cuts(self, *_: Any) -> tuple[int, ...]:
        return ()

    def continuations(self, _answer: str, options: Sequence[str]) -> tuple[tuple[tuple[int, ...], ...], ...]:
        return tuple(((ord(each),),) for each in options)


class Engine:
    """Its first call waits for `let`."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.begun, self.let = Event(), Event()

    def log_probabilities(self, asks: Sequence[Any]) -> list[list[float]]:
        self.log.append("begins")
        self.begun.set()
        assert self.let.wait(PATIENCE)
        self.log.append("ends")
        return [[math.log(0.5)] * len(ask.variants) for ask in asks]

    def write(self, draws: Sequence[Any]) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        self.log.append("closes")


def made() -> tuple[InProcess, Any, Any]:
    engine, encoder = Engine(), Encoder()
    backend = InProcess("test:", "test:", engine, encoder, context=1000, rows=4)  # pyright: ignore[reportArgumentType]
    return backend, engine, encoder


def asked(text: str) -> list[Choose]:
    return [Choose(Prompt("", text, "", "", ""), ("1", "2"))]


async def in_hand(backend: InProcess, engine: Any, encoder: Any) -> list[asyncio.Task[Any]]:
    """Two calls: the first computes, the second is encoded."""
    first = asyncio.create_task(backend.likelihoods(asked("first")))
    assert await asyncio.to_thread(engine.begun.wait, PATIENCE)
    second = asyncio.create_task(backend.likelihoods(asked("second")))
    assert await asyncio.to_thread(encoder.seen.wait, PATIENCE)
    return [first, second]


def test_a_call_is_encoded_while_another_computes_and_computes_after_it():
    backend, engine, encoder = made()

    async def run() -> Any:
        first, second = await in_hand(backend, engine, encoder)
        await asyncio.sleep(0.2)
        assert engine.log == ["begins"]
        engine.let.set()
        return (*await first, *await second)

    first, second = asyncio.run(run())
    assert engine.log == ["begins", "ends"] * 2
    assert encoder.prompts == ["first", "second"]
    assert isinstance(first, Likelihoods)
    assert isinstance(second, Likelihoods)
    assert second.usage.seconds < 0.1 < first.usage.seconds, "who waits for its turn does not compute"


def test_a_call_that_waits_when_the_model_is_closed_is_not_computed():
    backend, engine, encoder = made()

    async def run() -> Any:
        first, second = await in_hand(backend, engine, encoder)
        closing = asyncio.create_task(backend.close())
        await asyncio.sleep(0.1)
        engine.let.set()
        await closing
        return await second, await first

    ((second,), (first,)) = asyncio.run(run())
    assert engine.log == ["begins", "ends", "closes"]
    assert isinstance(first, Likelihoods)
    assert isinstance(second, Failed)
    assert second.reason == "stopped"
