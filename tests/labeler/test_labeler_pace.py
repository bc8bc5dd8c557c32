"""How fast a server is asked."""

from __future__ import annotations

import asyncio
import functools
import inspect

import pytest

from labeler.options import Limits
from labeler.pace import START, Pace


def timed(test):
    """Run a test in an event loop of its own, for 3 s at most."""

    @functools.wraps(test)
    def run(*values, **named):
        asyncio.run(asyncio.wait_for(test(*values, **named), 3))

    run.__signature__ = inspect.signature(test)
    return run


def now() -> float:
    return asyncio.get_running_loop().time()


async def through(pace: Pace, count: int, tokens: int = 1) -> float:
    """Seconds until so many requests that take no time were let in."""

    async def one():
        pace.leave(await pace.enter(tokens))

    started = now()
    await asyncio.gather(*(one() for _ in range(count)))
    return now() - started


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


class TestWindow:
    @pytest.mark.parametrize("most", [1, 3, 50])
    @timed
    async def test_never_more_than_allowed(self, most):
        pace, running, peak = Pace(Limits(in_flight=most)), 0, 0

        async def one():
            nonlocal running, peak
            entered = await pace.enter(1)
            running += 1
            peak = max(peak, running)
            assert running <= pace.size
            await asyncio.sleep(0.002)
            running -= 1
            pace.leave(entered)

        await asyncio.gather(*(one() for _ in range(200)))
        assert peak == most
        assert pace.size <= most

    @timed
    async def test_first_come_first_served(self):
        pace, order = Pace(Limits(in_flight=2)), []

        async def one(number):
            entered = await pace.enter(1)
            order.append(number)
            await asyncio.sleep(0.001 * (number % 3))
            pace.leave(entered)

        await asyncio.gather(*(one(number) for number in range(30)))
        assert order == list(range(30))

    @timed
    async def test_doubles_each_round_trip_then_adds_one(self):
        pace = Pace(Limits(in_flight=1000))
        assert pace.size == START
        for size in (START, 2 * START):
            for entered in [await pace.enter(1) for _ in range(size)]:
                pace.leave(entered)
            assert pace.size == 2 * size
        await asyncio.sleep(0.002)
        pace.leave(await pace.enter(1), throttled=True)
        assert pace.size == 2 * START
        for _ in range(2):
            before = pace.size
            for entered in [await pace.enter(1) for _ in range(before)]:
                pace.leave(entered)
            assert before <= pace.size <= before + 1
        assert pace.size > 2 * START

    @timed
    async def test_never_beyond_what_is_allowed(self):
        pace = Pace(Limits(in_flight=40))
        await through(pace, 200)
        assert pace.size == 40

    @timed
    async def test_halves_once_for_all_that_were_in_flight(self):
        pace = Pace(Limits(in_flight=64))
        together = [await pace.enter(1) for _ in range(20)]
        await asyncio.sleep(0.002)
        for entered in together:
            pace.leave(entered, throttled=True)
        assert pace.size == START // 2
        await asyncio.sleep(0.002)
        again = [await pace.enter(1) for _ in range(5)]
        await asyncio.sleep(0.002)
        for entered in again:
            pace.leave(entered, throttled=True)
        assert pace.size == START // 4

    @timed
    async def test_one_place_always_stays(self):
        pace = Pace(Limits(in_flight=4))
        for _ in range(6):
            await asyncio.sleep(0.002)
            pace.leave(await pace.enter(1), throttled=True)
        assert pace.size == 1
        assert await through(pace, 3) < 0.5


class TestPause:
    @timed
    async def test_obeyed(self):
        pace = Pace(Limits())
        pace.pause(0.15)
        assert 0.14 < await through(pace, 5) < 0.6

    @timed
    async def test_a_shorter_one_does_not_shorten_it(self):
        pace = Pace(Limits())
        pace.pause(0.15)
        pace.pause(0.01)
        assert 0.14 < await through(pace, 1) < 0.6

    @timed
    async def test_holds_those_who_wait_already(self):
        pace = Pace(Limits(in_flight=1))
        first = await pace.enter(1)
        second = asyncio.create_task(pace.enter(1))
        await settle()
        started = now()
        pace.pause(0.15)
        pace.leave(first)
        assert await second - started > 0.14


class TestAllowance:
    @timed
    async def test_requests_a_minute(self):
        assert 0.9 < await through(Pace(Limits(rpm=1200)), 120 + 20) < 1.8

    @timed
    async def test_tokens_a_minute(self):
        assert 0.9 < await through(Pace(Limits(tpm=60_000)), 6 + 1, tokens=1000) < 1.8

    @timed
    async def test_a_burst_needs_no_waiting(self):
        assert await through(Pace(Limits(rpm=1200, tpm=60_000)), 100, tokens=50) < 0.3

    @timed
    async def test_a_request_larger_than_all_of_it_passes_and_is_paid_for_later(self):
        pace = Pace(Limits(tpm=600))
        assert await through(pace, 1, tokens=100_000) < 0.2
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pace.enter(1), 0.1)

    @timed
    async def test_a_rate_below_ten_a_minute_still_lets_one_in(self):
        assert await through(Pace(Limits(rpm=1)), 1) < 0.2

    @pytest.mark.parametrize(
        "names",
        [
            ("x-ratelimit-limit-requests", "x-ratelimit-limit-tokens"),
            ("anthropic-ratelimit-requests-limit", "anthropic-ratelimit-input-tokens-limit"),
        ],
    )
    @timed
    async def test_learned_from_headers(self, names):
        pace = Pace(Limits())
        pace.learn({names[0]: "600"})
        assert 0.4 < await through(pace, 60 + 5) < 1
        pace = Pace(Limits())
        pace.learn({names[1]: "60000"})
        assert 0.4 < await through(pace, 13, tokens=500) < 1

    @timed
    async def test_what_was_given_goes_before_headers(self):
        pace = Pace(Limits(rpm=600_000, tpm=600_000_000))
        pace.learn({"x-ratelimit-limit-requests": "6", "x-ratelimit-limit-tokens": "6"})
        assert await through(pace, 50) < 0.3

    @pytest.mark.parametrize("said", ["", "0", "-1", "many", "1.5", "inf"])
    @timed
    async def test_headers_that_say_nothing(self, said):
        pace = Pace(Limits())
        pace.learn({"x-ratelimit-limit-requests": said, "x-ratelimit-limit-tokens": said})
        assert await through(pace, 50, tokens=1000) < 0.3


class TestCancelling:
    @timed
    async def test_one_who_waits(self):
        pace = Pace(Limits(in_flight=1))
        first = await pace.enter(1)
        second, third = asyncio.create_task(pace.enter(1)), asyncio.create_task(pace.enter(1))
        await settle()
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        pace.leave(first)
        pace.leave(await third)
        assert await through(pace, 3) < 0.3

    @timed
    async def test_one_who_was_just_let_in(self):
        pace = Pace(Limits(in_flight=1))
        first = await pace.enter(1)
        second, third = asyncio.create_task(pace.enter(1)), asyncio.create_task(pace.enter(1))
        await settle()
        pace.leave(first)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert second.cancelled()
        pace.leave(await third)
        assert await through(pace, 3) < 0.3

    @timed
    async def test_all_who_wait_in_a_pause(self):
        pace = Pace(Limits(in_flight=8))
        pace.pause(0.2)
        waiting = [asyncio.create_task(pace.enter(1)) for _ in range(50)]
        await settle()
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        entered = [await pace.enter(1) for _ in range(8)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pace.enter(1), 0.05)
        for each in entered:
            pace.leave(each)
