"""Each fault of the stand-in does what its name says, as the SDKs see it."""

from __future__ import annotations

import json
import math
import time

import anthropic
import openai
import pytest
from provider_clients import PAIR, complete, message, posted, with_anthropic, with_openai

ASK = {"model": "gpt-4o", "messages": [{"role": "user", "content": PAIR}], "logprobs": True, "top_logprobs": 20}


def only(it, name, **settings):
    it.control(reset=True, faults={name: 1.0}, **settings)


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "status", "code"),
        [
            ("rate_limit", 429, "rate_limit_exceeded"),
            ("rate_limit_bare", 429, "rate_limit_exceeded"),
            ("rate_limit_ms", 429, "rate_limit_exceeded"),
            ("rate_limit_absurd", 429, "rate_limit_exceeded"),
            ("quota", 429, "insufficient_quota"),
            ("http_500", 500, None),
            ("http_503", 503, None),
            ("http_529", 529, None),
        ],
    )
    def test_openai(self, it, name, status, code):
        only(it, name)
        with pytest.raises(openai.APIStatusError) as caught:
            complete(it)
        assert (caught.value.status_code, caught.value.code) == (status, code)
        assert it.seen()["requests"] == {"POST /v1/chat/completions": {str(status): 1}}
        assert it.seen()["faults"] == {name: 1}

    @pytest.mark.parametrize(
        ("name", "status", "kind"),
        [
            ("rate_limit", 429, "rate_limit_error"),
            ("quota", 402, "billing_error"),
            ("http_500", 500, "api_error"),
            ("http_503", 503, "api_error"),
            ("http_529", 529, "overloaded_error"),
        ],
    )
    def test_anthropic(self, it, name, status, kind):
        only(it, name)
        with pytest.raises(anthropic.APIStatusError) as caught:
            message(it)
        assert (caught.value.status_code, caught.value.type) == (status, kind)

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("rate_limit", {"retry-after": "2"}),
            ("rate_limit_bare", {}),
            ("rate_limit_ms", {"retry-after-ms": "2000"}),
            ("rate_limit_absurd", {"retry-after": "86400"}),
        ],
    )
    def test_when_to_come_back(self, it, name, told):
        only(it, name, retry_after=2)
        headers = posted(it, "/v1/chat/completions", ASK)[1]
        assert {key.lower(): headers[key] for key in headers if key.lower().startswith("retry-after")} == told


class TestWire:
    def test_slow(self, it):
        only(it, "slow", fault_seconds=0.1)
        start = time.monotonic()
        assert complete(it).choices[0].message.content
        assert time.monotonic() - start >= 0.1
        assert it.seen()["answered_total"] == 1

    @pytest.mark.parametrize("name", ["disconnect", "disconnect_body"])
    def test_disconnect(self, it, name):
        only(it, name)
        with pytest.raises(openai.APIConnectionError):
            complete(it)
        with pytest.raises(anthropic.APIConnectionError):
            message(it)
        assert it.seen()["requests"]["POST /v1/messages"] == {"disconnect": 1}
        assert it.seen()["answered_total"] == 0

    def test_an_answer_that_nobody_waits_for_is_none(self, it):
        it.control(latency=0.15)
        with pytest.raises(openai.APITimeoutError):
            complete(it, timeout=0.05)
        time.sleep(0.2)
        seen = it.seen()
        assert seen["requests"] == {"POST /v1/chat/completions": {"disconnect": 1}}
        assert seen["answered_total"] == 0

    def test_truncated_json_has_its_own_length(self, it):
        only(it, "truncated")
        status, headers, body = posted(it, "/v1/chat/completions", ASK)
        assert (status, int(headers["Content-Length"])) == (200, len(body))
        with pytest.raises(ValueError, match="line 1"):
            json.loads(body)

    def test_empty(self, it):
        only(it, "empty")
        status, headers, body = posted(it, "/v1/chat/completions", ASK)
        assert (status, headers["Content-Type"], body) == (200, "application/json", b"")

    def test_a_page_of_html(self, it):
        only(it, "html_502")
        status, headers, body = posted(it, "/v1/chat/completions", ASK)
        assert (status, headers["Content-Type"]) == (502, "text/html")
        assert body.startswith(b"<html>")


class TestContent:
    def choice(self, it, name, **options):
        only(it, name)
        found = complete(it, logprobs=True, top_logprobs=20, max_tokens=1, **options)
        assert it.seen()["answered_total"] == 0
        return found.choices[0]

    def test_no_logprobs(self, it):
        assert self.choice(it, "no_logprobs").logprobs is None

    def test_nan_is_literal(self, it):
        token = self.choice(it, "nan").logprobs.content[0]
        assert math.isnan(token.logprob)
        assert all(math.isnan(each.logprob) for each in token.top_logprobs)
        assert b'"logprob":NaN' in posted(it, "/v1/chat/completions", ASK)[2]

    def test_no_top(self, it):
        assert self.choice(it, "no_top").logprobs.content[0].top_logprobs == []

    def test_minus_9999(self, it):
        likely = self.choice(it, "minus_9999").logprobs.content[0].top_logprobs
        assert likely[0].logprob > -9999
        assert {each.logprob for each in likely[1:]} == {-9999.0}

    def test_outside(self, it):
        choice = self.choice(it, "outside")
        assert choice.message.content == "Both"
        assert not {"1", " 1", "2", " 2"} & {each.token for each in choice.logprobs.content[0].top_logprobs}
        assert message(it).content[0].text == "Both"

    def test_fewer(self, it):
        only(it, "fewer")
        assert len(complete(it, n=5).choices) == 4
        assert complete(it).choices == []

    def test_refusal(self, it):
        choice = self.choice(it, "refusal")
        assert choice.message.refusal
        assert choice.message.content is None
        found = message(it)
        assert (found.stop_reason, found.content) == ("refusal", [])

    def test_null_content(self, it):
        choice = self.choice(it, "null_content")
        assert (choice.message.content, choice.message.refusal) == (None, None)
        assert message(it).content == []

    def test_faults_of_logprobs_need_logprobs(self, it):
        only(it, "nan")
        assert complete(it).choices[0].message.content
        assert it.seen()["faults"] == {}


class TestWhen:
    def test_a_retry_can_succeed(self, it):
        only(it, "http_500", fault_attempts=1)
        with pytest.raises(openai.InternalServerError):
            complete(it)
        assert complete(it).choices
        assert it.seen()["asked_again"] == 0

    def test_the_next_requests_can_be_told(self, it):
        it.control(next=["http_503", None, "empty"])
        path = "/v1/chat/completions"
        assert [posted(it, path, ASK)[0] for _ in range(4)] == [503, 200, 200, 200]
        assert it.seen()["faults"] == {"http_503": 1, "empty": 1}

    def test_other_endpoints_can_have_faults(self, it):
        only(it, "http_503", fault_on=["batch"])
        assert complete(it).choices
        with pytest.raises(openai.InternalServerError):
            with_openai(it, lambda client: client.batches.list())
        with pytest.raises(anthropic.ServiceUnavailableError):
            with_anthropic(it, lambda client: client.messages.batches.list())
