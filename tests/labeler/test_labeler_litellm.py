"""Models through LiteLLM, against the stand-in provider; in the venv of `make test-clients`."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import test_labeler_anthropic as anthropic
import test_labeler_openai as openai
from labeler_support import comparisons
from packaging.requirements import Requirement
from running import Provider
from test_labeler_anthropic import judged, labelled
from test_labeler_openai import KEY, LIMITS, asked, pairs, values, writes

from data.records import Label
from labeler.backend import BackendError, Failed, Likelihoods
from labeler.ladder import Voting
from labeler.litellm import open_litellm
from labeler.openai import OpenAIBackend
from labeler.options import Limits
from labeler.prices import Price

PROJECT = Path(__file__).parents[2]
NEEDS_IT = pytest.mark.skipif(find_spec("litellm") is None, reason="litellm is not installed here: make test-clients")

stand_in, keyless = openai.stand_in, openai.it


@pytest.fixture
def it(keyless: Provider, monkeypatch: pytest.MonkeyPatch) -> Provider:
    """The keys are where LiteLLM looks for them."""
    for name in ("OPENAI", "ANTHROPIC"):
        monkeypatch.setenv(f"{name}_API_KEY", KEY)
    return keyless


def opened(
    it: Provider, model: str = "openai/gpt-4o", limits: Limits = LIMITS, price: Price | None = None
) -> OpenAIBackend:
    url = it.url if model.startswith("anthropic/") else f"{it.url}/v1"
    return open_litellm(model, base_url=url, secrets=(KEY,), limits=limits, price=price)


def test_versions_that_were_withdrawn_are_not_installed():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    (line,) = project["optional-dependencies"]["litellm"]
    allowed = Requirement(line).specifier
    assert not any(version in allowed for version in ("1.82.7", "1.82.8", "1.107.0", "1.79.9"))
    assert all(version in allowed for version in ("1.80.0", "1.82.6", "1.83.0", "1.107.1"))


@pytest.mark.clients
@NEEDS_IT
class TestImport:
    def test_it_is_imported_where_it_is_named_alone(self):
        code = "import labeler.opening, rlaif, sys; print('litellm' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.clients
@NEEDS_IT
class TestLabels:
    @pytest.mark.parametrize(
        ("needs", "options"), [(None, {}), (None, {"cot": True, "samples": 2}), ("votes", {}), ("stated", {})]
    )
    def test_they_are_those_of_openais_own_protocol(self, it, needs, options):
        own, through = (labelled(each, comparisons(6), needs, 3, **options) for each in (openai.opened(it), opened(it)))
        assert judged(through) == judged(own)
        assert {each.model for each in through if isinstance(each, Label)} == {"litellm:openai/gpt-4o"}
        assert len({each.digest for each in (*own, *through) if isinstance(each, Label)}) == 2

    def test_they_are_those_of_anthropics_own_protocol(self, it):
        own = labelled(anthropic.opened(it), comparisons(6), votes=1)
        through = labelled(opened(it, "anthropic/claude-sonnet"), comparisons(6), votes=1)
        assert judged(through) == judged(own)

    @pytest.mark.parametrize("model", ["anthropic/claude-sonnet-4-5", "anthropic/claude-new-opus", "openai/gpt-5-mini"])
    @pytest.mark.parametrize("cot", [False, True])
    def test_a_model_without_log_probabilities_votes(self, it, model, cot):
        for each in labelled(opened(it, model), comparisons(3), votes=3, cot=cot):
            assert isinstance(each, Label), each
            assert (each.method, [order.votes for order in each.orders]) == ("votes", [3, 3])

    def test_samples_are_single_requests_where_the_provider_has_no_others(self, it):
        (found,) = asked(Voting(opened(it, "anthropic/claude-sonnet"), 4), pairs(1))
        assert (found.votes, it.seen()["asked"]) == (4, 4)
        (found,) = asked(Voting(opened(it), 4), pairs(1))
        assert (found.votes, it.seen()["asked"]) == (4, 5)

    def test_a_model_that_does_not_think_is_given_no_room_for_it(self, it):
        backend = opened(it, "anthropic/claude-3-haiku-20240307")
        body = backend.chat.write(writes(1, max_tokens=16)[0])
        assert not backend.logprobs
        assert max(body.get(name, 0) for name in ("max_tokens", "max_completion_tokens")) == 16

    def test_it_opens_again_in_another_loop(self, it):
        backend = opened(it)
        assert values(asked(backend, pairs(2))) == values(asked(backend, pairs(2)))


@pytest.mark.clients
@NEEDS_IT
class TestCost:
    @pytest.mark.parametrize("model", ["openai/gpt-4o", "anthropic/claude-sonnet-4-5"])
    def test_the_price_is_its_tables(self, it, model):
        row = import_module("litellm").model_cost[model.partition("/")[2]]
        price = opened(it, model).chat.price
        assert price is not None
        names = ("input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost")
        assert [price.input, price.output, price.cached] == pytest.approx([row[name] * 1e6 for name in names])
        assert opened(it, model).price == price

    def test_an_answer_costs_what_it_does_elsewhere(self, it):
        price = opened(it).chat.price
        (through,), (own,) = asked(opened(it), pairs(1)), asked(openai.opened(it, price=price), pairs(1))
        assert own.usage.usd > 0
        assert replace(through.usage, seconds=0) == replace(own.usage, seconds=0)

    def test_a_given_price_goes_before_it(self, it):
        assert opened(it, price=Price(7, 9)).chat.price == Price(7, 9)

    def test_models_that_it_does_not_know_have_none(self, it):
        backend = opened(it, "openai/of-ones-own")
        (found,) = asked(backend, pairs(1))
        assert (backend.price, found.usage.usd) == (None, None)


@pytest.mark.clients
@NEEDS_IT
class TestErrors:
    def one_line(self, ask: Any) -> str:
        with pytest.raises(BackendError) as caught:
            ask()
        text = str(caught.value)
        assert "\n" not in text
        assert KEY[:10] not in text
        return text

    @pytest.mark.parametrize("model", ["openai/gpt-4o", "anthropic/claude-sonnet"])
    def test_a_refused_key(self, it, model):
        it.control(keys=["sk-another"])
        assert "key was refused" in self.one_line(lambda: asked(Voting(opened(it, model), 1), pairs(2)))

    @pytest.mark.parametrize("model", ["openai/gpt-4o", "anthropic/claude-sonnet", "gemini/gemini-2.5-flash"])
    def test_no_key(self, it, monkeypatch, model):
        for name in ("OPENAI", "ANTHROPIC", "GEMINI", "GOOGLE"):
            monkeypatch.delenv(f"{name}_API_KEY", raising=False)
        assert "key" in self.one_line(lambda: asked(Voting(opened(it, model), 1), pairs(2)))

    def test_a_model_that_is_not_there(self, it):
        text = self.one_line(lambda: asked(opened(it, "openai/missing-model"), pairs(2)))
        assert "missing-model" in text
        assert "--model" in text

    @pytest.mark.parametrize("model", ["nobody/model", "model"])
    def test_a_provider_that_it_does_not_know(self, it, model):
        assert self.one_line(lambda: opened(it, model)).startswith(f"litellm:{model}: LiteLLM does not know it")

    @pytest.mark.parametrize("model", ["openai/gpt-4o", "anthropic/claude-sonnet"])
    def test_no_money_stops_the_job(self, it, model):
        it.control(faults={"quota": 1.0})
        backend = Voting(opened(it, model, limits=replace(LIMITS, attempts=2)), 1)
        assert "nothing more can be asked" in self.one_line(lambda: asked(backend, pairs(2)))

    def test_what_a_provider_says_is_told_in_one_line_without_the_key(self, it, monkeypatch):
        litellm = import_module("litellm")

        async def refuse(**_: Any) -> None:
            raise litellm.BadRequestError(f"no\nfor {KEY}\n{'x' * 5000}", "gpt-4o", "openai")

        monkeypatch.setattr(litellm, "acompletion", refuse)
        (found,) = asked(opened(it), pairs(1))
        assert (found.reason, found.attempts) == ("refused", 1)
        assert "\n" not in found.message
        assert KEY not in found.message
        assert len(found.message) < 400

    @pytest.mark.parametrize("model", ["openai/gpt-4o", "anthropic/claude-sonnet"])
    def test_too_long_is_a_value_among_answers(self, it, model):
        rows = pairs(3)
        rows[1] = replace(rows[1], prompt=replace(rows[1].prompt, context="word " * 20_000))
        it.control(context=20_000)
        found = asked(Voting(opened(it, model), 1), rows)
        assert [type(each) for each in found] == [Likelihoods, Failed, Likelihoods]
        assert (found[1].reason, found[1].attempts) == ("too_long", 1)


@pytest.mark.clients
@NEEDS_IT
class TestFaults:
    @pytest.mark.parametrize("fault", openai.RECOVERABLE)
    def test_faults_of_some_attempts_change_nothing(self, it, fault):
        clean = values(asked(opened(it), pairs(12)))
        it.control(reset=True, faults={fault: 0.3}, fault_attempts=5, fault_seconds=0.05)
        assert values(asked(opened(it), pairs(12))) == clean
        assert it.seen()["faults"][fault] > 0
        assert it.seen()["asked_again"] == 0

    @pytest.mark.parametrize("fault", ["rate_limit", "http_529", "disconnect", "truncated", "empty", "html_502"])
    def test_nor_do_they_with_anthropic(self, it, fault):
        clean = [each.text for each in asked(opened(it, "anthropic/claude-sonnet"), writes(12))]
        it.control(reset=True, faults={fault: 0.3}, fault_attempts=5)
        assert [each.text for each in asked(opened(it, "anthropic/claude-sonnet"), writes(12))] == clean
        assert it.seen()["faults"][fault] > 0
        assert it.seen()["asked_again"] == 0

    @pytest.mark.parametrize(
        ("fault", "reason"), [("rate_limit", "rate_limit"), ("http_503", "overloaded"), ("http_500", "server_error")]
    )
    def test_no_tries_are_added_to_ours(self, it, fault, reason):
        it.control(faults={fault: 1.0})
        (found,) = asked(opened(it, limits=replace(LIMITS, attempts=3)), pairs(1))
        assert (found.reason, found.attempts, it.seen()["asked"]) == (reason, 3, 3)

    def test_an_answer_that_does_not_come_is_a_timeout(self, it):
        it.control(faults={"slow": 1.0}, fault_seconds=1.0)
        (found,) = asked(opened(it, limits=replace(LIMITS, attempts=2, timeout=0.15)), pairs(1))
        assert (found.reason, found.attempts) == ("timeout", 2)
