"""One model on several servers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from labeler.backend import BackendError, Choose, Failed, Likelihoods
from labeler.fake import RULES, FakeBackend
from labeler.server import spread
from labeler.server.spread import Spread
from prompts.render import Prompt

ASKED = Choose(Prompt("", "", "a question", "", "", ""), ("1", "2"))


@dataclass(frozen=True)
class Other(FakeBackend):
    """A server that can be ill; counts what it is asked."""

    asked: list[int] = field(default_factory=list)
    ill: list[str] = field(default_factory=list)

    async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        self.asked.append(len(requests))
        if self.ill:
            return [Failed(self.ill[0], "told to") for _ in requests]
        return await super().likelihoods(requests)


def server(seconds: float = 0.0, *ill: str) -> Other:
    return Other("fake:first", RULES["first"], rows=1, calls=4, seconds=seconds, ill=list(ill))


def ask(both: Spread, times: int) -> list[Likelihoods | Failed]:
    async def all_of_them() -> list[Likelihoods | Failed]:
        return [found[0] for found in await asyncio.gather(*(both.likelihoods([ASKED]) for _ in range(times)))]

    return asyncio.run(all_of_them())


def test_requests_go_where_the_fewest_wait():
    one, other = server(0.01), server(0.01)
    assert not any(isinstance(each, Failed) for each in ask(Spread(one, [other]), 20))
    assert (len(one.asked), len(other.asked)) == (10, 10)


def test_what_a_sick_server_cannot_answer_another_does_and_it_rests():
    sick, well = server(0.0, "connection"), server()
    both = Spread(sick, [well])
    assert not any(isinstance(each, Failed) for each in ask(both, 1) + ask(both, 5))
    assert (len(sick.asked), len(well.asked)) == (1, 6)


def test_a_server_that_is_well_again_is_asked_again(monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr(spread.time, "monotonic", lambda: now[0])
    sick, well = server(0.0, "overloaded"), server()
    both = Spread(sick, [well])
    ask(both, 1)
    sick.ill.clear()
    now[0] += spread.FIRST_REST + 0.1
    ask(both, 1)
    assert len(sick.asked) == 2


def test_a_question_that_no_server_can_answer_is_not_a_sickness():
    one, other = server(0.0, "too_long"), server()
    (found,) = ask(Spread(one, [other]), 1)
    assert isinstance(found, Failed)
    assert other.asked == []


def test_nothing_is_tried_again_when_nobody_waits_any_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spread, "PAUSE", 0.06)
    one, other = server(0.0, "timeout"), server(0.0, "timeout")
    (found,) = ask(Spread(one, [other], patience=0.1), 1)
    assert isinstance(found, Failed)
    assert len(one.asked) + len(other.asked) == 3  # at once, at once elsewhere, after one pause, not after two


def test_when_all_are_sick_they_are_tried_again_and_then_the_failure_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spread, "PAUSE", 0.01)
    one, other = server(0.0, "connection"), server(0.0, "timeout")
    (found,) = ask(Spread(one, [other]), 1)
    assert isinstance(found, Failed)
    assert len(one.asked) + len(other.asked) == spread.TRIES
    assert min(len(one.asked), len(other.asked)) > 0


def test_all_that_are_sick_for_a_moment_cost_a_moment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spread, "PAUSE", 0.01)

    @dataclass(frozen=True)
    class Recovering(Other):
        async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
            found = await super().likelihoods(requests)
            self.ill[:] = self.ill[1:]
            return found

    one, other = (Recovering("fake:first", RULES["first"], rows=1, ill=["connection"] * 2) for _ in range(2))
    assert not any(isinstance(each, Failed) for each in ask(Spread(one, [other]), 1))
    assert len(one.asked) + len(other.asked) > 2


def test_a_server_with_a_wrong_key_or_model_is_sick_too():
    """It answers in no time: without a rest it would get nearly all."""

    @dataclass(frozen=True)
    class Wrong(Other):
        async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
            self.asked.append(len(requests))
            raise BackendError("status 404: no such model")

    wrong, well = Wrong("fake:first", RULES["first"], rows=1, calls=4), server(0.01)
    assert not any(isinstance(each, Failed) for each in ask(Spread(wrong, [well]), 40))
    assert len(wrong.asked) < 40
    assert not any(isinstance(each, Failed) for each in ask(Spread(wrong, [well]), 1))


def test_of_several_questions_only_what_failed_is_asked_elsewhere():
    @dataclass(frozen=True)
    class Half(Other):
        async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
            found = await super().likelihoods(requests)
            return [found[0], *(Failed("server_error", "told to") for _ in requests[1:])]

    half, well = Half("fake:first", RULES["first"], rows=4, calls=4), server()
    found = asyncio.run(Spread(half, [well]).likelihoods([ASKED] * 3))
    assert not any(isinstance(each, Failed) for each in found)
    assert (half.asked, well.asked) == ([3], [2])


def test_as_many_calls_go_at_a_time_as_all_take_together():
    assert Spread(server(), [server(), server()]).calls == 12
