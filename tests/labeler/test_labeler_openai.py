"""The backend for OpenAI's protocol, against the stand-in provider."""

from __future__ import annotations

import asyncio
import gc
import math
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tenacity
from labeler_support import comparisons

import labeler.attempts
from data.records import Failure, Label
from labeler.backend import BackendError, Choose, Failed, Likelihoods, Text, Write
from labeler.http import Client
from labeler.openai import Chat, OpenAIBackend, Server, _Http, open_openai
from labeler.options import Limits, Options
from labeler.preference import Labeler
from labeler.prices import Price
from prompts import answers
from prompts.render import Style, pair_question, score_question
from prompts.task import load

sys.path.append(str(Path(__file__).parents[1] / "provider"))

import provider_openai
from provider_answers import label_probabilities
from provider_settings import Settings
from running import Provider, provider

KEY = "sk-the-key-of-these-tests-0123456789"
LIMITS = Limits(in_flight=16, longest_wait=0.05, timeout=10)
TASK = load("helpfulness")


@pytest.fixture(scope="module")
def stand_in():
    with provider() as it:
        yield it


@pytest.fixture
def it(stand_in: Provider, monkeypatch: pytest.MonkeyPatch) -> Provider:
    """As new for each test, and reached without a proxy and without long waits between attempts."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(labeler.attempts, "BACKOFF", tenacity.wait_random_exponential(multiplier=0.005, max=0.05))
    stand_in.control(reset=True, **asdict(Settings(retry_after=0.02)))
    return stand_in


def opened(
    it: Provider, model: str = "gpt-4o", key: str = KEY, limits: Limits = LIMITS, price: Price | None = None
) -> OpenAIBackend:
    return open_openai(model, base_url=f"{it.url}/v1", key=key, limits=limits, price=price)


def continuing(it: Provider, model: str, limits: Limits = LIMITS, price: Price | None = None) -> OpenAIBackend:
    """A server that goes on with an answer that was begun for it."""
    client = Client(f"{it.url}/v1", {"authorization": f"Bearer {KEY}"}, limits, secret=KEY)
    name = f"openai:{model}"
    return OpenAIBackend(name, name, Chat(model, Server(continues=True), price), _Http(client), limits)


def pairs(count: int) -> list[Choose]:
    question = pair_question(TASK, Style())
    return [
        Choose(question.ask(row.prompt, *row.responses), answers.PAIR)  # pyright: ignore[reportArgumentType]
        for row in comparisons(count)
    ]


def scores(count: int) -> list[Choose]:
    question = score_question(TASK)
    return [Choose(question.ask(f"Question {n}?", f"Answer {n}."), answers.SCALE) for n in range(count)]


def writes(count: int, **options: Any) -> list[Write]:
    return [Write(each.prompt, **{"max_tokens": 200, **options}) for each in pairs(count)]


def asked(backend: OpenAIBackend, requests: Sequence[Choose | Write]) -> list[Any]:
    async def ask() -> list[Any]:
        try:
            verb: Any = backend.likelihoods if isinstance(requests[0], Choose) else backend.texts
            return await verb(requests)
        finally:
            await backend.close()

    return asyncio.run(ask())


def values(found: Sequence[Any]) -> list[tuple[float, ...]]:
    assert all(isinstance(each, Likelihoods) for each in found), found
    return [each.values for each in found]


def told(backend: OpenAIBackend, request: Choose) -> tuple[float, ...]:
    """What the stand-in means by its answer: the share of each option."""
    body = backend._chat.choose(request)
    labels, _ = label_probabilities(provider_openai.read(body, Settings()))
    return tuple(share for _, share in labels)


class TestAnswers:
    def test_one_for_each_request_in_order(self, it):
        backend = opened(it)
        found = asked(backend, pairs(40))
        assert len(found) == 40
        for request, each in zip(pairs(40), values(found), strict=True):
            assert answers.first_probability(each) == pytest.approx(told(backend, request)[0], abs=1e-5)
        assert it.seen()["asked"] == it.seen()["answered_distinct"] == 40

    def test_the_same_one_by_one(self, it):
        together = values(asked(opened(it), pairs(6)))
        assert [values(asked(opened(it), [each]))[0] for each in pairs(6)] == together

    def test_none_for_none(self, it):
        assert asyncio.run(opened(it).likelihoods([])) == []

    def test_both_spellings_of_a_label_count(self, it):
        (only,) = values(asked(opened(it), pairs(1)))
        assert 0.88 < math.fsum(map(math.exp, only)) < 1

    def test_a_label_that_is_not_listed_is_nearly_impossible_and_no_failure(self, it):
        for one, two in values(asked(opened(it, "gpt-4o-lowmass"), pairs(8))):
            assert -math.inf < two < math.log(0.02) < one

    def test_texts_end_before_a_stop_and_are_the_seeds(self, it):
        found = asked(opened(it), writes(5, stop=("Preferred Response=",), seed=3, temperature=0.7))
        assert all(isinstance(each, Text) and each.text and "Preferred" not in each.text for each in found)
        again = asked(opened(it), writes(5, stop=("Preferred Response=",), seed=3, temperature=0.7))
        assert [each.text for each in again] == [each.text for each in found]

    def test_a_labeler(self, it):
        rows = comparisons(20)

        async def label() -> list[Label | Failure]:
            backend = opened_backend
            try:
                return await Labeler(TASK, backend, Options())(rows)
            finally:
                await backend.close()

        opened_backend = opened(it)
        found = asyncio.run(label())
        assert [each.id for each in found] == [row.id for row in rows]
        assert all(isinstance(each, Label) and len(each.orders) == 2 and each.tokens_in > 0 for each in found)
        assert len({each.p for each in found if isinstance(each, Label)}) > 10

    def test_a_labeler_with_rationales(self, it):
        backend = opened(it)

        async def label() -> list[Label | Failure]:
            try:
                return await Labeler(TASK, backend, Options(cot=True, samples=2))(comparisons(4))
            finally:
                await backend.close()

        for each in asyncio.run(label()):
            assert isinstance(each, Label), each
            assert each.orders[0].rationale


class TestTenIsTwoTokens:
    @pytest.mark.parametrize("model", ["vllm-llama", "vllm-split"])
    def test_where_the_server_continues_each_score_has_its_own_share(self, it, model):
        backend = continuing(it, model)
        found = asked(backend, scores(12))
        for request, each in zip(scores(12), values(found), strict=True):
            shares = told(backend, request)
            # Of twenty tokens that are listed, not all scores have both of their spellings.
            assert answers.distribution(each) == pytest.approx(shares, abs=3e-3)
            if model == "vllm-split":
                assert each[9] - each[0] == pytest.approx(math.log(shares[9] / shares[0]), abs=1e-4)
        assert it.seen()["asked"] == (24 if model == "vllm-split" else 12)

    def test_the_second_question_is_in_the_usage(self, it):
        (one,), (two,) = asked(continuing(it, "vllm-llama"), scores(1)), asked(continuing(it, "vllm-split"), scores(1))
        assert two.usage.tokens_in in {2 * one.usage.tokens_in, 2 * one.usage.tokens_in + 1}
        assert two.usage.tokens_out == 2

    def test_elsewhere_ten_is_bounded(self, it):
        for each in values(asked(opened(it, "gpt-4o-split"), scores(6))):
            assert -math.inf < each[9] <= min(each[:9])
        assert it.seen()["asked"] == 6

    def test_a_failed_second_question_fails_the_request(self, it):
        it.control(next=[None, *["no_top"] * 9])
        (found,) = asked(continuing(it, "vllm-split", replace(LIMITS, attempts=2)), scores(1))
        assert isinstance(found, Failed)
        assert found.reason == "unparsable"


class TestCost:
    def test_cached_tokens_have_their_own_price(self, it):
        (request,) = pairs(1)
        long = replace(request, prompt=replace(request.prompt, context="word " * 500))
        (first,) = asked(opened(it, price=Price(1, 0, 0)), [long])
        (again,) = asked(opened(it, price=Price(1, 0, 0)), [long])
        assert first.usage.usd * 1e6 == pytest.approx(first.usage.tokens_in)
        cached = round(again.usage.tokens_in - again.usage.usd * 1e6, 6)
        assert cached > 0
        assert cached % 128 == 0

    def test_output(self, it):
        (found,) = asked(opened(it, price=Price(0, 1e6)), pairs(1))
        assert found.usage.usd == found.usage.tokens_out == 1

    def test_without_a_price_there_is_none(self, it):
        backend = opened(it)
        (found,) = asked(backend, pairs(1))
        assert not backend.priced
        assert found.usage.usd is None
        assert found.usage.tokens_in > 50


class TestRefused:
    def test_too_long_is_a_value_among_answers(self, it):
        rows = pairs(3)
        long = replace(rows[1], prompt=replace(rows[1].prompt, context="word " * 2000))
        it.control(context=1000)
        found = asked(opened(it), [rows[0], long, rows[2]])
        assert [type(each) for each in found] == [Likelihoods, Failed, Likelihoods]
        assert (found[1].reason, found[1].attempts) == ("too_long", 1)
        assert "maximum context length is 1000" in found[1].message

    def test_a_refusal_to_write(self, it):
        it.control(next=["refusal"])
        (found,) = asked(opened(it), writes(1))
        assert isinstance(found, Failed)
        assert found.reason == "refusal"

    def test_the_wrong_key_before_anything_is_asked(self, it):
        it.control(keys=["sk-another"])
        with pytest.raises(BackendError) as caught:
            opened(it)
        assert "key was refused" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert KEY[:10] not in str(caught.value)

    def test_the_wrong_key_later(self, it):
        backend = opened(it)
        it.control(keys=["sk-another"])
        with pytest.raises(BackendError, match="key was refused") as caught:
            asked(backend, pairs(5))
        assert KEY[:10] not in str(caught.value)

    def test_a_model_that_is_not_there(self, it):
        with pytest.raises(BackendError, match=r"missing-model.*--model"):
            asked(opened(it, "missing-model"), pairs(3))

    def test_no_money(self, it):
        it.control(next=[None, "quota"])
        with pytest.raises(BackendError, match=r"quota.*nothing more can be asked"):
            asked(opened(it), pairs(3))
        assert it.seen()["asked"] == 3

    def test_no_server(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
            with pytest.raises(BackendError, match="is a server running there") as caught:
                open_openai("gpt-4o", base_url=url, key=None, limits=LIMITS, price=None)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://127.0.0.1/v1"])
    def test_what_is_no_url(self, url):
        with pytest.raises(BackendError, match="--base-url"):
            open_openai("gpt-4o", base_url=url, key=None, limits=LIMITS, price=None)

    def test_openai_itself_needs_a_key(self):
        with pytest.raises(BackendError, match="OPENAI_API_KEY"):
            open_openai("gpt-4o", base_url=None, key=None, limits=LIMITS, price=None)


RECOVERABLE = [
    *("rate_limit", "rate_limit_bare", "rate_limit_ms", "rate_limit_absurd", "http_500", "http_503", "http_529"),
    *("slow", "disconnect", "disconnect_body", "truncated", "empty", "html_502"),
    *("no_logprobs", "nan", "no_top", "minus_9999", "outside", "fewer", "refusal", "null_content"),
]

FATAL = {
    "rate_limit": "rate_limit",
    "rate_limit_bare": "rate_limit",
    "http_503": "overloaded",
    "http_529": "overloaded",
    "http_500": "server_error",
    "html_502": "server_error",
    "disconnect": "connection",
    "disconnect_body": "connection",
    "slow": "timeout",
    "truncated": "unparsable",
    "empty": "unparsable",
    "no_logprobs": "unparsable",
    "nan": "unparsable",
    "no_top": "unparsable",
    "minus_9999": "unparsable",
    "outside": "unparsable",
    "fewer": "unparsable",
    "null_content": "unparsable",
}


class TestFaults:
    @pytest.mark.parametrize("fault", RECOVERABLE)
    def test_faults_of_some_attempts_change_nothing(self, it, fault):
        clean = values(asked(opened(it), pairs(25)))
        it.control(reset=True, faults={fault: 0.3}, fault_attempts=5, fault_seconds=0.05)
        assert values(asked(opened(it), pairs(25))) == clean
        seen = it.seen()
        assert seen["faults"][fault] > 0
        assert seen["asked_again"] == 0

    @pytest.mark.parametrize("fault", ["rate_limit", "http_500", "disconnect", "truncated", "fewer", "null_content"])
    def test_nor_do_they_for_texts(self, it, fault):
        clean = [each.text for each in asked(opened(it), writes(10))]
        it.control(reset=True, faults={fault: 0.3}, fault_attempts=5)
        assert [each.text for each in asked(opened(it), writes(10))] == clean

    @pytest.mark.parametrize(("fault", "reason"), FATAL.items())
    def test_those_of_all_attempts_are_a_failure_with_their_number(self, it, fault, reason):
        it.control(faults={fault: 1.0}, fault_seconds=1.0)
        limits = replace(LIMITS, attempts=3, timeout=0.15 if fault == "slow" else 10)
        found = asked(opened(it, limits=limits), pairs(2))
        assert [(each.reason, each.attempts) for each in found] == [(reason, 3)] * 2
        assert all("\n" not in each.message and KEY not in each.message for each in found)
        assert it.seen()["asked"] == 6

    def test_one_attempt_is_one(self, it):
        it.control(faults={"http_500": 1.0})
        (found,) = asked(opened(it, limits=replace(LIMITS, attempts=1)), pairs(1))
        assert found.attempts == it.seen()["asked"] == 1

    def test_patience_ends(self, it):
        it.control(faults={"rate_limit": 1.0})
        started = time.monotonic()
        limits = replace(LIMITS, attempts=10_000, patience=0.3)
        (found,) = asked(opened(it, limits=limits), pairs(1))
        assert found.reason == "rate_limit"
        assert found.attempts == it.seen()["asked"]
        assert time.monotonic() - started < 2

    def test_a_failure_stands_where_its_request_did(self, it):
        it.control(next=[None, "http_500", None])
        limits = replace(LIMITS, attempts=1, in_flight=1)
        kinds = [type(each) for each in asked(opened(it, limits=limits), pairs(3))]
        assert kinds == [Likelihoods, Failed, Likelihoods]


class TestRunning:
    def test_no_more_at_once_than_allowed(self, it):
        deadline = time.monotonic() + 5
        while it.seen()["in_flight"]:  # of tests before
            assert time.monotonic() < deadline
            time.sleep(0.05)
        it.control(reset=True, latency=0.02)
        asked(opened(it, limits=replace(LIMITS, in_flight=5)), pairs(40))
        assert it.seen()["max_in_flight"] == 5

    def test_cancelled_it_ends_at_once_and_leaves_nothing(self, it):
        it.control(latency=2)
        backend = opened(it, limits=replace(LIMITS, in_flight=4))

        async def stop() -> float:
            asking = asyncio.create_task(backend.likelihoods(pairs(20)))
            await asyncio.sleep(0.2)
            started = time.monotonic()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await backend.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return time.monotonic() - started

        assert asyncio.run(stop()) < 0.7
        gc.collect()

    def test_cancelled_while_it_waits_to_try_again(self, it, monkeypatch):
        monkeypatch.setattr(labeler.attempts, "BACKOFF", tenacity.wait_fixed(20))
        it.control(faults={"http_500": 1.0})
        backend = opened(it)

        async def stop() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(backend.likelihoods(pairs(5)), 0.3)
            it.control(faults={})
            assert len(values(await backend.likelihoods(pairs(20)))) == 20
            await backend.close()

        started = time.monotonic()
        asyncio.run(stop())
        assert time.monotonic() - started < 3

    def test_it_opens_again_in_another_loop(self, it):
        backend = opened(it)
        assert values(asked(backend, pairs(2))) == values(asked(backend, pairs(2)))
