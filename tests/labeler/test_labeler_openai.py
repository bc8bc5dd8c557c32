"""The backend for OpenAI's protocol, against the stand-in provider."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import tenacity
from aiohttp import web
from aiohttp.test_utils import TestServer
from labeler_support import comparisons

import labeler.attempts
from data.records import Failure, Label
from labeler.backend import BackendError, Choose, Failed, Likelihoods, Text, Write
from labeler.http import Client
from labeler.ladder import Stating, Voting, climb
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


def speaking(it: Provider | str, chat: Chat, limits: Limits = LIMITS) -> OpenAIBackend:
    """A backend with its own words for the server there, which is not looked at."""
    url = it if isinstance(it, str) else f"{it.url}/v1"
    client = Client(url, {"authorization": f"Bearer {KEY}"}, limits, secret=KEY)
    return OpenAIBackend(f"openai:{chat.model}", f"openai:{chat.model}", chat, _Http(client), limits)


def continuing(it: Provider, model: str, limits: Limits = LIMITS, price: Price | None = None) -> OpenAIBackend:
    """A server that goes on with an answer that was begun for it."""
    return speaking(it, Chat(model, Server(continues=True), price), limits)


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
    body = backend.chat.choose(request)
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
        assert backend.price is None
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
        it.control(latency=0.02)
        asked(opened(it, limits=replace(LIMITS, in_flight=5)), pairs(40))
        assert it.seen()["max_in_flight"] == 5

    @pytest.mark.parametrize(
        "wrap", [lambda backend: backend, lambda backend: Voting(backend, 3)], ids=["plain", "votes"]
    )
    def test_cancelled_it_ends_at_once_and_leaves_nothing(self, it, wrap):
        it.control(latency=2)
        backend = wrap(opened(it, limits=replace(LIMITS, in_flight=4)))

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


@dataclass(frozen=True)
class Recording(Chat):
    """Remembers the server's answers."""

    answers: list[Any] = field(default_factory=list[Any])

    def written(self, answer: bytes) -> list[Text]:
        self.answers.append(json.loads(answer))
        return super().written(answer)


class TestSamples:
    def test_those_of_one_prompt_are_one_request(self, it):
        found = asked(Voting(opened(it), 5), pairs(4))
        assert [each.votes for each in found] == [5] * 4
        assert it.seen()["asked"] == it.seen()["answered_total"] == 4

    def test_the_prompt_is_paid_for_once_and_each_answer_is(self, it):
        (one,), (five,) = (asked(Voting(opened(it), votes), pairs(1)) for votes in (1, 5))
        assert one.usage.tokens_in == five.usage.tokens_in > 50
        assert (one.usage.tokens_out, five.usage.tokens_out) == (1, 5)

    def test_all_samples_together_cost_what_the_server_says(self, it):
        chat = Recording("gpt-4o", Server(), Price(2, 8))
        reasons = [replace(each, prompt=replace(each.prompt, answer="Rationale:")) for each in writes(2, temperature=1)]
        found = asked(speaking(it, chat), [replace(each, seed=n) for n in range(7) for each in reasons])
        assert len({each.text for each in found}) == 14
        usages = [answer["usage"] for answer in chat.answers]
        spent = [sum(usage[name] for usage in usages) for name in ("prompt_tokens", "completion_tokens")]
        assert [sum(each.usage.tokens_in for each in found), sum(each.usage.tokens_out for each in found)] == spent
        assert sum(each.usage.usd for each in found) == pytest.approx((2 * spent[0] + 8 * spent[1]) / 1e6, rel=1e-12)
        assert len(usages) == 2

    def test_rationales_are_samples_too(self, it):
        async def label(backend: OpenAIBackend) -> list[Label | Failure]:
            try:
                return await Labeler(TASK, climb(backend, "votes", 3), Options(cot=True, samples=2))(comparisons(2))
            finally:
                await backend.close()

        for each in asyncio.run(label(opened(it))):
            assert isinstance(each, Label), each
            assert [order.votes for order in each.orders] == [6, 6]
        assert it.seen()["asked"] == 2 * 2 * (1 + 2)  # a row's orders: one request for rationales, and votes on each

    def test_other_requests_are_not_samples(self, it):
        (write,) = writes(1)
        asked(opened(it), [write, *(replace(write, **{name: 1}) for name in ("max_tokens", "temperature"))])
        assert it.seen()["asked"] == 3

    def test_one_is_no_number_of_samples(self):
        chat = Chat("gpt-4o", Server(), None)
        assert "n" not in chat.write(writes(1)[0])
        assert chat.write(writes(1)[0], 3)["n"] == 3

    def test_a_failure_is_all_of_theirs(self, it):
        it.control(next=["http_500"])
        found = asked(opened(it, limits=replace(LIMITS, attempts=1)), [writes(1, seed=n)[0] for n in range(3)])
        assert [each.reason for each in found] == ["server_error"] * 3

    def test_what_is_missing_is_asked_for_alone(self, it):
        it.control(next=["fewer"])
        (found,) = asked(Voting(opened(it), 5), pairs(1))
        assert found.votes == 5
        assert it.seen()["asked"] == 2

    def test_a_server_that_gives_one_is_asked_for_one(self):
        bodies: list[dict[str, Any]] = []

        async def answer(request: web.Request) -> web.Response:
            bodies.append(await request.json())
            choice = {"message": {"content": f"{bodies[-1]['seed']}"}}
            return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 1}})

        async def run() -> list[Text | Failed]:
            app = web.Application()
            app.router.add_post("/v1/chat/completions", answer)
            async with TestServer(app) as server:
                backend = speaking(str(server.make_url("/v1")), Chat("any", Server(), None))
                first = await backend.texts([each for n in range(4) for each in writes(1, seed=n)])
                more = await backend.texts([each for n in range(4, 7) for each in writes(1, seed=n)])
                await backend.close()
                return first + more

        found = asyncio.run(run())
        assert [each.text for each in found] == [str(n) for n in range(7)]
        assert [body.get("n", 1) for body in bodies] == [4, *[1] * 6]
        assert sum(each.usage.tokens_in for each in found) == 70

    @pytest.mark.parametrize("turns", range(4))
    def test_one_that_is_cancelled_leaves_the_others_theirs(self, it, turns):
        backend = opened(it)

        async def run() -> list[Text | Failed]:
            first, *rest = (asyncio.create_task(backend.texts(writes(1, seed=n))) for n in range(3))
            for _ in range(turns):
                await asyncio.sleep(0)
            first.cancel()
            try:
                async with asyncio.timeout(3):
                    return [*(await rest[0]), *(await rest[1]), *(await backend.texts(writes(1, seed=3)))]
            finally:
                await backend.close()

        assert [type(each) for each in asyncio.run(run())] == [Text] * 3

    def test_more_than_a_server_gives_at_once_are_several_requests(self, it):
        found = asked(Voting(opened(it), 100), pairs(1) * 2)
        assert [each.votes for each in found if isinstance(each, Likelihoods)] == [100, 100], found[0]


class TestReasoning:
    @pytest.mark.parametrize(
        ("model", "reasoning"),
        [("gpt-5-mini", True), ("o4-mini", True), ("gpt-4o", False), ("gpt-5-chat-latest", False), ("gpt-4.1", False)],
    )
    def test_a_model_that_thinks_tells_no_log_probabilities(self, it, model, reasoning):
        assert opened(it, model).logprobs is not reasoning

    @pytest.mark.parametrize("numbers", [(), answers.PAIR])
    def test_it_is_sent_nothing_that_it_refuses(self, numbers):
        chat = Chat("o4-mini", Server(official=True, reasoning=True), None)
        body = chat.write(writes(1, temperature=0.7, top_k=40, stop=("Best",), numbers=numbers)[0], 5)
        expected = {"model", "messages", "n", "max_completion_tokens"} | ({"response_format"} if numbers else set())
        assert body.keys() == expected
        assert body["max_completion_tokens"] > 8000

    @pytest.mark.parametrize("model", ["gpt-5-mini", "o4-mini"])
    @pytest.mark.parametrize("needs", ["votes", "stated"])
    @pytest.mark.parametrize("cot", [False, True])
    def test_it_votes_and_states(self, it, model, needs, cot):
        async def label(backend: OpenAIBackend) -> list[Label | Failure]:
            try:
                return await Labeler(TASK, climb(backend, needs, 3), Options(cot=cot))(comparisons(3))
            finally:
                await backend.close()

        for each in asyncio.run(label(opened(it, model))):
            assert isinstance(each, Label), each
            assert (each.method, each.tokens_out > 200) == (needs, True)
        assert it.seen()["requests"]["POST /v1/chat/completions"].keys() == {"200"}

    @pytest.mark.parametrize(
        ("requests", "message"),
        [
            (pairs(3), r"'logprobs' is not supported with this model.*--needs votes does without"),
            (writes(3), r"'max_tokens' is not supported.*the model does not take what every request"),
        ],
    )
    def test_one_that_was_not_known_to_be_one_stops_the_job_in_one_line(self, it, requests, message):
        with pytest.raises(BackendError, match=message) as caught:
            asked(speaking(it, Chat("gpt-5-mini", Server(), None)), requests)
        assert "\n" not in str(caught.value)
        assert it.seen()["asked"] == 0  # none was a question that it could answer


class TestNumbers:
    @pytest.mark.parametrize("requests", [pairs(6), scores(6)], ids=["pairs", "scores"])
    def test_stated_probabilities_are_what_the_object_says(self, it, requests):
        chat = Recording("gpt-4o", Server(), None)
        found = values(asked(Stating(speaking(it, chat)), requests))
        texts = [answer["choices"][0]["message"]["content"] for answer in chat.answers]
        shares = sorted(answers.stated(text, requests[0].options) for text in texts)
        assert sorted([math.exp(value) for value in each] for each in found) == [pytest.approx(each) for each in shares]
        assert len(set(found)) == 6

    def test_a_server_that_continues_begins_its_own_object(self, it):
        backend = continuing(it, "vllm-llama")
        (request,) = writes(1, numbers=answers.PAIR)
        body = backend.chat.write(request)
        assert "continue_final_message" not in body
        assert request.prompt.answer not in str(body["messages"])
        (found,) = asked(backend, [request])
        assert answers.stated(found.text, answers.PAIR) is not None


def test_half_a_character_fails_its_request_and_no_other(it):
    broken = replace(pairs(1)[0], prompt=replace(pairs(1)[0].prompt, context="\ud83d lone"))
    first, second = asked(opened(it), [broken, *pairs(1)])
    assert isinstance(first, Failed)
    assert first.reason == "bad_text"
    assert isinstance(second, Likelihoods)
