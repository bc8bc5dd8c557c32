"""The model behind the server fails in every way there is: no wrong reward, no wait beyond the deadline."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import running
from provider_settings import CONTENT, REFUSALS, WIRE
from rewarding import MEMORY, Web, good, native, served

from labeler.backend import Backend
from labeler.opening import Reach
from labeler.options import Limits
from labeler.server.options import Rewarding
from labeler.server.serving import Model, opened

WITHIN = 3.0
"""Seconds that the server has for an answer."""

RESPONSES = [f"Answer {at}." for at in range(60)]

PASSING = ("http_500", "http_503", "rate_limit_bare", "disconnect", "disconnect_body")
RUBBISH = (*CONTENT, "truncated", "empty", "html_502")


@pytest.fixture(scope="module")
def stand_in() -> Iterator[running.Provider]:
    with running.provider() as it:
        yield it


@pytest.fixture
def provider(stand_in: running.Provider) -> running.Provider:
    stand_in.control(reset=True, faults={}, next=[], fault_seconds=1.0)
    return stand_in


def model(*urls: str, **limits: Any) -> Backend:
    """Behind these addresses, tried again as long as anybody waits."""
    reach = Reach(f"{urls[0]}/v1", {"openai": "key"}, Limits(longest_wait=0.05, **limits))
    named = Model(("helpfulness",), "openai:gpt-4o", Path(), reach=reach, also=tuple(f"{url}/v1" for url in urls[1:]))
    return opened(named, WITHIN)


async def asked(web: Web, responses: Sequence[str] = RESPONSES) -> list[dict[str, Any]]:
    """Each by a request of its own, all at once; none takes longer than the server has for it."""

    async def one(response: str) -> dict[str, Any]:
        started = time.monotonic()
        (found,) = good(await web.post("/v1/rewards", native(response, timeout_s=WITHIN)))["items"]
        assert time.monotonic() - started < WITHIN + 2
        return found

    return await asyncio.gather(*map(one, responses))


@pytest.fixture(scope="module")
def clean(stand_in: running.Provider) -> list[float]:
    """The rewards where nothing fails."""
    stand_in.control(faults={}, latency=0.0)
    backend = model(stand_in.url)

    async def run() -> list[float]:
        async with served(backend) as web:
            return [each["reward"] for each in await asked(web)]

    found = asyncio.run(run())
    assert len(set(found)) == len(RESPONSES)
    return found


def right(found: Sequence[dict[str, Any]], clean: Sequence[float]) -> int:
    """How many were answered: each as without any fault, and what was not says why and has no number."""
    for each, wanted in zip(found, clean, strict=True):
        if each["status"] == "ok":
            assert each["reward"] == pytest.approx(wanted, abs=1e-9)
        else:
            assert each["reward"] is None
            assert each["reason"]
    return sum(each["status"] == "ok" for each in found)


@pytest.mark.parametrize("kinds", [PASSING, RUBBISH, (*REFUSALS, *WIRE, *CONTENT)], ids=["passing", "rubbish", "all"])
def test_a_model_that_fails_now_and_then_costs_time_and_no_wrong_reward(provider, clean, kinds):
    rates = {kind: 0.3 / len(kinds) for kind in kinds if kind != "quota"}
    provider.control(faults=rates, fault_seconds=0.2)
    backend = model(provider.url)

    async def run() -> list[dict[str, Any]]:
        async with served(backend) as web:
            return await asked(web)

    assert right(asyncio.run(run()), clean) > len(RESPONSES) / 2
    assert sum(provider.seen(answers=False)["faults"].values()) > 5


@pytest.mark.parametrize("kind", [*PASSING, *RUBBISH])
def test_a_model_that_always_fails_gives_no_reward_on_any_wire(provider, kind):
    provider.control(faults={kind: 1.0})
    backend = model(provider.url, attempts=3)

    async def run() -> Any:
        async with served(backend) as web:
            numbers = await web.post("/get_reward", {"query": ["a text"], "prompts": ["a"], "labels": [None]})
            return await asked(web, RESPONSES[:3]), numbers

    found, numbers = asyncio.run(run())
    assert [each["status"] for each in found] == ["failed"] * 3
    assert numbers.status == 503
    assert list(numbers.json) == ["error"]


def test_a_slow_model_is_a_failure_at_the_deadline_and_right_within_it(provider, clean):
    async def run(backend: Backend) -> list[dict[str, Any]]:
        async with served(backend) as web:
            return await asked(web)

    def after(seconds: float) -> list[dict[str, Any]]:
        provider.control(latency=seconds)
        try:
            return asyncio.run(run(model(provider.url)))
        finally:
            provider.control(latency=0.0)

    assert right(after(0.5), clean) == len(RESPONSES)
    late = after(WITHIN + 1.5)
    assert right(late, clean) == 0
    assert {each["reason"] for each in late} == {"timeout"}


def test_a_model_that_died_is_a_failure_and_right_when_it_is_back(clean):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

    providers = [running.start(port=port)]
    backend = model(providers[0].url)

    async def run() -> tuple[list[dict[str, Any]], ...]:
        async with served(backend) as web:
            before = await asked(web, RESPONSES[:20])
            providers[0].stop()
            dead = await asked(web, RESPONSES[20:40])
            providers.append(running.start(port=port))
            back = await asked(web, RESPONSES[20:])
            async with asyncio.timeout(30):  # as clients do: some joined a try that was failing
                while again := [at for at, each in enumerate(back) if each["status"] != "ok"]:
                    for at, each in zip(again, await asked(web, [RESPONSES[20 + at] for at in again]), strict=True):
                        back[at] = each
            return before, dead, back

    try:
        before, dead, back = asyncio.run(run())
    finally:
        for each in providers:
            each.stop()
    assert right(before, clean[:20]) == 20
    assert right(dead, clean[20:40]) == 0
    assert right(back, clean[20:]) == 40


def test_of_two_servers_one_that_comes_and_goes_costs_nothing(provider, clean):
    """The other one answers what this one cannot."""

    async def flap(it: running.Provider) -> None:
        while True:
            for faults in ({"http_503": 0.5, "disconnect": 0.5}, {}):
                await asyncio.to_thread(it.control, faults=faults)
                await asyncio.sleep(0.1)

    async def run(backend: Backend) -> list[dict[str, Any]]:
        async with served(backend) as web:
            flapping = asyncio.create_task(flap(provider))
            found: list[dict[str, Any]] = []
            for at in range(0, len(RESPONSES), 10):
                found += await asked(web, RESPONSES[at : at + 10])
                await asyncio.sleep(0.1)
            flapping.cancel()
            return found

    with running.provider() as other:
        assert right(asyncio.run(run(model(provider.url, other.url))), clean) == len(RESPONSES)


@pytest.mark.parametrize("silent", [True, False], ids=["says nothing", "is gone"])
def test_of_two_servers_one_that_is_dead_costs_time_and_no_reward(provider, clean, silent):
    with running.provider() as other:
        backend = model(provider.url, other.url)

        async def run() -> list[dict[str, Any]]:
            async with served(backend) as web:
                return await asked(web)

        other.process.send_signal(signal.SIGSTOP if silent else signal.SIGKILL)
        try:
            assert right(asyncio.run(run()), clean) == len(RESPONSES)
        finally:
            other.process.send_signal(signal.SIGCONT if silent else signal.SIGKILL)


def test_a_mean_stands_in_for_a_failure_and_says_so(provider, clean):
    """With `group-mean` too, no number comes from a broken answer."""
    provider.control(faults={kind: 0.5 / len(RUBBISH) for kind in RUBBISH})
    backend = model(provider.url, attempts=1)

    async def run() -> list[dict[str, Any]]:
        async with served(backend, rewarding=Rewarding(on_failure="group-mean", kept=MEMORY.kept)) as web:
            return good(await web.post("/v1/rewards", native(*RESPONSES)))["items"]

    found = asyncio.run(run())
    own = [each["reward"] for each in found if each["source"] == "model"]
    (mean,) = {each["reward"] for each in found if each["source"] == "group-mean"}
    assert mean == pytest.approx(sum(own) / len(own))
    answered = [(each, wanted) for each, wanted in zip(found, clean, strict=True) if each["source"] == "model"]
    assert right(*zip(*answered, strict=True)) == len(own) < len(RESPONSES)
