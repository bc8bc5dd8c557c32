"""The backend for Anthropic's messages, against the stand-in provider."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import provider_anthropic
import pytest
import test_labeler_openai as other
from labeler_support import comparison, comparisons
from provider_answers import answers_to
from provider_settings import Settings
from running import Provider
from test_labeler_openai import KEY, LIMITS, TASK, asked, pairs, writes

from data.records import Comparison, Failure, Label
from labeler.anthropic import CACHEABLE, VERSION, AnthropicBackend, Messages, _Warm, open_anthropic
from labeler.backend import Backend, BackendError, Failed, Likelihoods, Text, Write
from labeler.http import Client
from labeler.ladder import Stating, Voting, climb
from labeler.options import Limits, Options, Rung
from labeler.preference import Labeler
from labeler.prices import Price
from prompts import answers
from prompts.render import Prompt, Style, pair_question

it, stand_in = other.it, other.stand_in

PRICE = Price(3, 15, 0.3, 3.75)
LONG = "word " * 1200
NUMBERS = Write(Prompt("system", "before", "context", "after", "SCORE:"), 256, numbers=answers.SCALE)


def opened(
    it: Provider, model: str = "claude-sonnet", key: str = KEY, limits: Limits = LIMITS, price: Price | None = None
) -> AnthropicBackend:
    return open_anthropic(model, base_url=f"{it.url}/v1", key=key, limits=limits, price=price)


@dataclass(frozen=True)
class Recording(Messages):
    """Remembers the usage that the server tells with each answer."""

    usages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def written(self, answer: bytes) -> list[Text]:
        self.usages.append(json.loads(answer)["usage"])
        return super().written(answer)


def recording(it: Provider) -> tuple[AnthropicBackend, list[dict[str, Any]]]:
    dialect = Recording("claude-sonnet", PRICE)
    headers = {"x-api-key": KEY, "anthropic-version": VERSION}
    return AnthropicBackend(dialect, Client(f"{it.url}/v1", headers, LIMITS, secret=KEY), LIMITS), dialect.usages


def labelled(
    backend: Backend, rows: Sequence[Comparison], needs: Rung | None = None, votes: int = 1, **options: Any
) -> list[Label | Failure]:
    async def label() -> list[Label | Failure]:
        try:
            return await asyncio.wait_for(Labeler(TASK, climb(backend, needs, votes), Options(**options))(rows), 30)
        finally:
            await backend.close()

    return asyncio.run(label())


def judged(found: Sequence[Label | Failure]) -> list[Any]:
    """What the labels say, without what they cost."""
    assert all(isinstance(each, Label) for each in found), found
    return [(each.id, each.p, each.orders) for each in found if isinstance(each, Label)]


def said(request: Write, model: str = "claude-sonnet") -> str:
    """What the stand-in answers."""
    body = Messages(model, None).write(request)
    (answer,) = answers_to(provider_anthropic.read(body, Settings(), {"anthropic-version": VERSION}))
    assert answer.text is not None
    return answer.text


async def turns(count: int) -> None:
    """Of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


def long(request: Write) -> Write:
    return replace(request, prompt=replace(request.prompt, context=LONG))


class TestAnswers:
    def test_one_for_each_request_in_order(self, it):
        found = asked(opened(it), writes(40))
        assert [each.text for each in found] == [said(each) for each in writes(40)]
        assert it.seen()["asked"] == it.seen()["answered_distinct"] == 40

    def test_the_same_one_by_one(self, it):
        together = [each.text for each in asked(opened(it), writes(5))]
        assert [asked(opened(it), [each])[0].text for each in writes(5)] == together

    def test_none_for_none(self, it):
        assert asyncio.run(opened(it).texts([])) == []

    def test_log_probabilities_are_not_told(self, it):
        backend = opened(it)
        (found,) = asked(backend, pairs(1))
        assert (found.reason, backend.logprobs) == ("no_logprobs", False)
        assert it.seen()["asked"] == 0

    def test_votes_are_samples(self, it):
        it.control(vary_repeats=True)
        found = labelled(opened(it), comparisons(6), votes=9)
        assert {order.votes for each in found for order in each.orders} == {9}
        assert len({order.p_first for each in found for order in each.orders}) > 4
        assert it.seen()["answered_total"] == 6 * 2 * 9

    @pytest.mark.parametrize("model", ["claude-sonnet", "claude-new-opus"])
    @pytest.mark.parametrize(
        ("needs", "options"),
        [("votes", {}), ("stated", {}), ("votes", {"cot": True, "samples": 2}), ("stated", {"cot": True})],
    )
    def test_a_labeler(self, it, model, needs, options):
        for each in labelled(opened(it, model), comparisons(4), needs, 2, **options):
            assert isinstance(each, Label), each
            assert (each.model, each.method, len(each.orders)) == (f"anthropic:{model}", needs, 2)
            assert (each.tokens_in > 0, bool(each.orders[0].rationale)) == (True, "cot" in options)
        assert it.seen()["requests"]["POST /v1/messages"].keys() == {"200"}

    def test_stated_probabilities_are_what_the_object_says(self, it):
        backend, requests = opened(it), pairs(6)
        found = asked(Stating(backend), requests)
        assert len({answers.first_probability(each.values) for each in found}) == 6

    def test_the_identity_has_the_server(self, it):
        assert opened(it).identity == f"anthropic:claude-sonnet@{it.url}/v1"
        client = Client("https://api.anthropic.com/v1/", {}, LIMITS)
        assert AnthropicBackend(Messages("claude-sonnet", None), client, LIMITS).identity == "anthropic:claude-sonnet"


class TestBodies:
    def bodies(self) -> list[dict[str, Any]]:
        """Of everything that a job can ask: a vote, numbers, a rationale and what comes after it."""
        question = pair_question(TASK, Style(2, cot=True))
        prompt = question.ask("p", "f", "s")
        rationale = Write(prompt, 512, 0.7, 40, 3, answers.stops(question.ending))
        second = Write(prompt.continued(" So.", question.ending), 16, 1.0, instruction="Answer 1 or 2.")
        requests = [*writes(1, temperature=1.0, seed=2), rationale, second, NUMBERS]
        return [Messages("claude-new-opus", None).write(each) for each in requests]

    def test_nothing_about_sampling_is_sent(self):
        taken = {"model", "max_tokens", "system", "messages", "stop_sequences", "output_config"}
        assert set().union(*self.bodies()) == taken

    def test_the_user_has_the_last_word(self):
        roles = [[turn["role"] for turn in body["messages"]] for body in self.bodies()]
        assert roles == [["user"], ["user"], ["user", "assistant", "user"], ["user"]]

    def test_no_block_is_blank(self):
        for prompt in (Prompt("system", "", "context", "\n", "Best="), Prompt("system", " ", "\n\n", "", "Best=")):
            (turn,) = Messages("claude-sonnet", None).write(Write(prompt, 9))["messages"]
            assert all(block["text"].strip() for block in turn["content"])
            assert "".join(block["text"] for block in turn["content"]) == prompt.turns("")[0][1]

    def test_stops_are_sent_as_they_are(self):
        assert self.bodies()[1]["stop_sequences"] == ["Preferred Response", "»»»»"]

    def test_numbers_are_a_schema_and_no_answer_is_begun(self, it):
        body = Messages("claude-sonnet", None).write(NUMBERS)
        assert body["output_config"]["format"]["schema"] == NUMBERS.schema
        assert "SCORE:" not in str(body["messages"])
        (found,) = asked(opened(it), [NUMBERS])
        assert answers.stated(found.text, answers.SCALE) is not None

    def test_the_version_is_told(self, it):
        assert opened(it)._client._headers["anthropic-version"] == "2023-06-01"


class TestCacheMarks:
    def marks(self, request: Write) -> list[str]:
        """The texts up to each mark."""
        body = Messages("claude-sonnet", None).write(request)
        text, found = "", []
        for block in [*body["system"], *body["messages"][0]["content"]]:
            text += block["text"]
            if "cache_control" in block:
                assert block["cache_control"] == {"type": "ephemeral"}
                found.append(text)
        return found

    def test_no_more_than_four(self):
        prompt = Prompt("s" * CACHEABLE, "b" * CACHEABLE, "c" * CACHEABLE, "a" * CACHEABLE, "Because.\n\nBest=")
        assert [len(each) for each in self.marks(Write(prompt, 9))] == [n * CACHEABLE for n in (1, 2, 3, 4)]
        assert len(self.marks(Write(prompt, 9, numbers=("1", "2")))) == 4

    @pytest.mark.parametrize(("length", "count"), [(1, 0), (CACHEABLE - 1, 0), (CACHEABLE, 1), (CACHEABLE + 1, 1)])
    def test_none_where_the_beginning_is_too_short(self, length, count):
        assert len(self.marks(Write(Prompt("s" * 100, "", "c" * (length - 100), "", ""), 9))) == (length > 100) * count

    def test_both_orders_have_the_same_beginning(self):
        question = pair_question(TASK, Style(2))
        forward, backward = (self.marks(Write(question.ask(LONG, *pair), 9)) for pair in (("f", "s"), ("s", "f")))
        assert len(forward) == len(backward) >= 2
        assert forward[:-1] == backward[:-1]
        assert forward[-2].endswith(LONG)
        assert forward[-1] != backward[-1]

    def test_all_votes_are_the_same_body(self):
        dialect = Messages("claude-sonnet", None)
        assert len({json.dumps(dialect.write(each)) for seed in range(5) for each in writes(1, seed=seed)}) == 1

    def test_a_rationale_and_the_votes_after_it_share_the_sample(self):
        question = pair_question(TASK, Style(cot=True))
        prompt = question.ask(LONG, "f", "s")
        first, second = (self.marks(Write(each, 9)) for each in (prompt, prompt.continued("So.", question.ending)))
        assert first[0] == second[0]
        assert first[0].endswith(LONG)


class TestCacheCosts:
    def test_all_but_the_first_of_a_prefix_read_it(self, it):
        it.control(cache_minimum=1024)
        backend, usages = recording(it)
        (found,) = labelled(backend, [comparison(prompt=LONG)], votes=3)
        shared = len(LONG) // 4
        assert isinstance(found, Label)
        assert len(usages) == 6
        assert [each["cache_read_input_tokens"] >= shared for each in usages] == [False, *[True] * 5]
        assert sum(each["cache_creation_input_tokens"] > 0 for each in usages) == 2  # one for each order
        whole = [sum(each[name] for name in each if name.endswith("input_tokens")) for each in usages]
        assert found.tokens_in == sum(whole)

    def test_each_answer_costs_what_its_usage_says(self, it):
        it.control(cache_minimum=1024)
        backend, usages = recording(it)
        found = asked(backend, [replace(long(each), seed=n) for n in range(3) for each in writes(2)])
        prices = {"input_tokens": 3, "cache_read_input_tokens": 0.3, "cache_creation_input_tokens": 3.75}
        prices |= {"output_tokens": 15}
        expected = [sum(each[name] * price / 1e6 for name, price in prices.items()) for each in usages]
        assert sorted(each.usage.usd for each in found) == pytest.approx(sorted(expected), rel=1e-12)
        assert len({round(each, 9) for each in expected}) > 1

    def test_a_cached_prompt_costs_a_tenth(self, it):
        (first,), (again,) = (asked(opened(it, price=PRICE), [long(writes(1)[0])]) for _ in range(2))
        assert first.usage.tokens_in == again.usage.tokens_in
        output = first.usage.tokens_out * 15 / 1e6
        assert again.usage.usd - output == pytest.approx((first.usage.usd - output) * 0.3 / 3.75, rel=0.05)

    def test_without_a_price_there_is_none(self, it):
        backend = opened(it)
        (found,) = asked(backend, writes(1))
        assert (backend.price, found.usage.usd, found.usage.tokens_in > 50) == (None, None, True)


class TestWarm:
    """Who waits for whom: each letter is a prefix, and words that begin with the same letters share them."""

    def log(self, *prefixes: Sequence[str], broken: Sequence[int] = (), cancelled: Sequence[int] = ()) -> list[str]:
        """What happens, in order: "0 in", "0 out", ..."""
        found: list[str] = []

        async def one(warm: _Warm, number: int) -> None:
            async with warm.after(prefixes[number]):
                found.append(f"{number} in")
                await turns(9)
                if number in broken:
                    raise OSError
                found.append(f"{number} out")

        async def run() -> None:
            warm = _Warm()
            tasks = [asyncio.create_task(one(warm, number)) for number in range(len(prefixes))]
            await turns(4)
            for number in cancelled:
                tasks[number].cancel()
            await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
            assert all(event.is_set() for event in warm._begun.values())

        asyncio.run(run())
        return found

    def test_the_first_of_a_prefix_goes_alone(self):
        assert self.log("a", "a", "a") == ["0 in", "0 out", "1 in", "2 in", "1 out", "2 out"]

    def test_others_do_not_wait(self):
        assert self.log("a", "b", "") == ["0 in", "1 in", "2 in", "0 out", "1 out", "2 out"]

    def test_each_length_of_a_prefix_is_waited_for(self):
        found = self.log("a", "ab", "ab", "ac")
        assert found[:2] == ["0 in", "0 out"]
        assert set(found[2:4]) == {"1 in", "3 in"}
        assert found[-2:] == ["2 in", "2 out"]

    def test_a_first_one_that_fails_is_not_waited_for_any_longer(self):
        assert self.log("a", "a", "a", broken=[0]) == ["0 in", "1 in", "2 in", "1 out", "2 out"]

    @pytest.mark.parametrize("cancelled", [[0], [1], [0, 1]])
    def test_nor_is_one_that_is_cancelled(self, cancelled):
        found = self.log("ab", "ab", "ab", "a", cancelled=cancelled)
        assert {each for each in found if each.endswith("out")} == {
            f"{number} out" for number in range(4) if number not in cancelled
        }

    def test_not_all_prefixes_are_remembered(self, monkeypatch):
        monkeypatch.setattr(_Warm, "KEPT", 3)

        async def run() -> int:
            warm = _Warm()
            for number in range(10):
                async with asyncio.timeout(1), warm.after([str(number)]):
                    pass
            return len(warm._begun)

        assert asyncio.run(run()) == 3

    def test_short_prompts_are_asked_at_once(self, it):
        it.control(latency=0.05)
        asked(opened(it), writes(8))
        assert it.seen()["max_in_flight"] == 8

    def test_a_failed_first_request_leaves_the_others_theirs(self, it):
        it.control(next=["http_500"])
        backend = opened(it, limits=replace(LIMITS, attempts=1))
        found = asked(backend, [long(each) for each in writes(6)])
        assert [type(each) for each in found] == [Failed, *[Text] * 5]

    def test_a_cancelled_first_request_leaves_the_others_theirs(self, it):
        it.control(latency=0.1)
        backend = opened(it)
        first, *rest = (long(each) for each in writes(6))

        async def run() -> list[Text | Failed]:
            asking = asyncio.create_task(backend.texts([first]))
            others = asyncio.create_task(backend.texts(rest))
            await asyncio.sleep(0.05)
            asking.cancel()
            try:
                return await asyncio.wait_for(others, 5)
            finally:
                await backend.close()

        assert [type(each) for each in asyncio.run(run())] == [Text] * 5


class TestRefused:
    def one_line(self, ask: Any) -> str:
        with pytest.raises(BackendError) as caught:
            ask()
        text = str(caught.value)
        assert "\n" not in text
        assert KEY[:10] not in text
        return text

    @pytest.mark.parametrize("key", [None, ""])
    def test_a_key_is_needed(self, it, key):
        assert "ANTHROPIC_API_KEY" in self.one_line(lambda: opened(it, key=key))
        assert it.seen()["requests"] == {}

    def test_a_model_that_is_not_there(self, it):
        text = self.one_line(lambda: opened(it, "missing-model"))
        assert "missing-model" in text
        assert "--model" in text
        assert it.seen()["asked"] == 0

    def test_the_wrong_key_before_anything_is_asked(self, it):
        it.control(keys=["sk-another"])
        assert "key was refused" in self.one_line(lambda: opened(it))

    def test_the_wrong_key_later(self, it):
        backend = opened(it)
        it.control(keys=["sk-another"])
        assert "key was refused" in self.one_line(lambda: asked(backend, writes(5)))

    def test_no_money(self, it):
        backend = opened(it)
        it.control(next=[None, "quota"])
        assert "nothing more can be asked" in self.one_line(lambda: asked(backend, writes(3)))
        assert it.seen()["asked"] == 3

    def test_no_server(self):
        text = self.one_line(
            lambda: open_anthropic("claude", base_url="http://127.0.0.1:9/v1", key=KEY, limits=LIMITS, price=None)
        )
        assert text.startswith("anthropic:claude: http://127.0.0.1:9/v1: ")

    def test_a_refusal_is_a_failure_at_once(self, it):
        it.control(next=["refusal"])
        first, second = asked(opened(it), writes(2))
        assert (first.reason, first.attempts, type(second)) == ("refusal", 1, Text)

    def test_a_refused_vote_is_none_and_a_question_of_refusals_fails_its_row(self, it):
        one = replace(LIMITS, in_flight=1)
        it.control(next=[None, "refusal"])
        (found,) = labelled(opened(it, limits=one), comparisons(1), votes=2)
        assert (found.mass, found.orders[0].votes, found.orders[1].votes) == (0.5, 1, 2)
        it.control(next=["refusal", "refusal"])
        (found,) = labelled(opened(it, limits=one), comparisons(1), votes=2)
        assert found.reason == "refusal"

    def test_what_is_no_vote_is_counted_out(self, it):
        it.control(next=[None, "outside"])
        (found,) = asked(Voting(opened(it), 5), pairs(1))
        assert isinstance(found, Likelihoods)
        assert (found.votes, answers.mass(found.values)) == (4, pytest.approx(4 / 5))

    @pytest.mark.parametrize("over", ["prompt", "prompt and answer"])
    def test_too_long_is_a_value_among_answers(self, it, over):
        rows = writes(3)
        rows[1] = replace(rows[1], prompt=replace(rows[1].prompt, context="word " * 2000))
        it.control(context=1000 if over == "prompt" else 2650)
        found = asked(opened(it), rows)
        assert [type(each) for each in found] == [Text, Failed, Text]
        assert (found[1].reason, found[1].attempts) == ("too_long", 1), found[1].message


RECOVERABLE = [
    *("rate_limit", "rate_limit_bare", "rate_limit_ms", "rate_limit_absurd", "http_500", "http_503", "http_529"),
    *("slow", "disconnect", "disconnect_body", "truncated", "empty", "html_502", "null_content"),
]


class TestFaults:
    @pytest.mark.parametrize("fault", [*RECOVERABLE, "all of them"])
    def test_faults_of_some_attempts_change_nothing(self, it, fault):
        clean = judged(labelled(opened(it), comparisons(12)))
        names = RECOVERABLE if fault == "all of them" else [fault]
        it.control(reset=True, faults=dict.fromkeys(names, 0.3 / len(names)), fault_attempts=5, fault_seconds=0.05)
        assert judged(labelled(opened(it), comparisons(12))) == clean
        assert sum(it.seen()["faults"].values()) > 0
        assert it.seen()["asked_again"] == 0

    def test_nor_are_votes_asked_for_again(self, it):
        clean = judged(labelled(opened(it), comparisons(4), votes=3))
        faults = dict.fromkeys(RECOVERABLE, 0.3 / len(RECOVERABLE))
        it.control(reset=True, faults=faults, fault_attempts=5, fault_seconds=0.05)
        assert judged(labelled(opened(it), comparisons(4), votes=3)) == clean
        assert it.seen()["answered_total"] == 4 * 2 * 3

    @pytest.mark.parametrize(
        ("fault", "reason"),
        [
            *[("rate_limit", "rate_limit"), ("http_529", "overloaded"), ("http_500", "server_error")],
            *[("disconnect", "connection"), ("truncated", "unparsable"), ("null_content", "unparsable")],
        ],
    )
    def test_those_of_all_attempts_are_a_failure_with_their_number(self, it, fault, reason):
        it.control(faults={fault: 1.0})
        found = asked(opened(it, limits=replace(LIMITS, attempts=3)), writes(2))
        assert [(each.reason, each.attempts) for each in found] == [(reason, 3)] * 2
        assert all("\n" not in each.message and KEY not in each.message for each in found)


class TestRunning:
    @pytest.mark.parametrize("change", [lambda each: each, long], ids=["short", "long"])
    def test_cancelled_it_ends_at_once_and_leaves_nothing(self, it, change):
        it.control(latency=2)
        backend = opened(it, limits=replace(LIMITS, in_flight=4))

        async def stop() -> float:
            asking = asyncio.create_task(backend.texts([change(each) for each in writes(20)]))
            await asyncio.sleep(0.2)
            started = time.monotonic()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            it.control(latency=0)
            (found,) = await asyncio.wait_for(backend.texts([change(each) for each in writes(1)]), 5)
            assert isinstance(found, Text)
            await backend.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return time.monotonic() - started

        assert asyncio.run(stop()) < 1

    def test_it_opens_again_in_another_loop(self, it):
        backend = opened(it)
        first, again = (asked(backend, [long(each) for each in writes(3)]) for _ in range(2))
        assert [each.text for each in first] == [each.text for each in again]
