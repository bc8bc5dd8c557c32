"""A labeler as a plain callable that a trainer asks: numbers in [-1, 1], at a price, within a budget."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from rewarding import process
from running import provider

from data.errors import RlaifError
from labeler.as_reward import rewards
from labeler.opening import Reach
from labeler.prices import Price
from labeler.spending import BudgetError, Meter, Spending

PROMPTS, RESPONSES = ["How do magnets work?"] * 3, ["By spinning electrons.", "Magic.", ""]


def made(
    name: str, cache: Path, closing: ExitStack, *, task: str = "", reach: Reach | None = None, token: str | None = None
):
    """The reward of that name, as a trainer has it made."""
    return rewards(
        name,
        task=task,
        cache=cache,
        reach=reach or Reach(),
        token=token,
        patience=5,
        journal=cache / "answers",
        closing=closing,
    )


def asked(url: str, cache: Path, closing: ExitStack, price: Price | None, budget: float | None):
    spending = Spending(Meter(), budget)
    reach = Reach(f"{url}/v1", {"openai": "sk-test"}, price=price, spending=spending)
    found = made("openai:gpt-4o", cache, closing, task="helpfulness", reach=reach)
    assert found is not None
    return found, spending.meter


def test_a_labeler_rewards_until_its_budget_is_spent(tmp_path):
    with provider() as it, ExitStack() as closing:
        ask, meter = asked(it.url, tmp_path, closing, Price(100.0, 100.0), 0.5)
        first = ask(PROMPTS, RESPONSES)
        assert [each is not None and -1 <= each <= 1 for each in first] == [True] * 3
        assert ask([], []) == []
        once = meter.usage.usd
        assert once is not None
        assert 0 < once < 0.5
        number = 0
        while meter.usage.usd < 0.5:
            number += 1
            ask(PROMPTS, [f"{each} {number}" for each in RESPONSES])
        with pytest.raises(BudgetError, match=r"--budget 0\.5: this run has spent"):
            ask(PROMPTS, ["Another.", "And another.", "One more."])
        assert ask(PROMPTS, RESPONSES) == first, "what is known costs nothing"
        assert 0.5 <= meter.usage.usd <= 0.5 + once


def test_a_budget_without_a_price_is_refused(tmp_path):
    with provider() as it, ExitStack() as closing, pytest.raises(RlaifError, match="no price is known"):
        asked(it.url, tmp_path, closing, None, 0.5)


def test_a_labeler_without_a_question_is_refused(tmp_path):
    with ExitStack() as closing, pytest.raises(RlaifError, match=r"which question is it asked\? Say reward.task"):
        made("fake:noise", tmp_path, closing)


def test_an_answer_is_paid_for_once_also_after_a_new_start(tmp_path):
    with provider() as it:
        spent = []
        for _ in range(2):
            with ExitStack() as closing:
                ask, meter = asked(it.url, tmp_path, closing, Price(100.0, 100.0), None)
                first = ask(PROMPTS, RESPONSES)
                spent.append(meter.usage.usd)
                assert ask(PROMPTS, RESPONSES) == first
                assert meter.usage.usd == spent[-1]
    assert spent[0]
    assert not spent[1]


def test_closing_ends_a_question_that_is_under_way(tmp_path):
    """A run that fails elsewhere, or is stopped, says so and nothing of event loops."""
    with provider(latency=30) as it, ThreadPoolExecutor() as pool:
        with ExitStack() as closing:
            ask, _ = asked(it.url, tmp_path, closing, None, None)
            question = pool.submit(ask, PROMPTS, RESPONSES)
            time.sleep(0.3)
        with pytest.raises(CancelledError):
            question.result(timeout=5)


def served(url: str, token: str | None, cache: Path, closing: ExitStack):
    found = made(url, cache, closing, token=token)
    assert found is not None
    return found


def test_a_server_rewards_who_has_its_token_and_a_wrong_one_ends_the_run_at_once(tmp_path):
    """What will not pass is not waited for: a run with `reward.patience` of hours would stand still for a typo."""
    with (
        process("--task", "helpfulness", "--model", "fake:noise", cache=tmp_path, RLAIF_TOKEN="t0ken-91c") as it,
        ExitStack() as closing,
    ):
        found = served(it.url, "t0ken-91c", tmp_path, closing)(PROMPTS, RESPONSES)
        assert [each is not None and -1 <= each <= 1 for each in found] == [True] * 3
        begun = time.monotonic()
        with pytest.raises(RlaifError, match=r"reward\.of http.*status 401.*a token is needed"):
            served(it.url, "another", tmp_path, closing)(PROMPTS, RESPONSES)
        assert time.monotonic() - begun < 3


def test_a_server_that_is_away_is_a_connection_error_and_no_reward(tmp_path):
    with process("--task", "helpfulness", "--model", "fake:noise", cache=tmp_path) as it:
        url = it.url
    with ExitStack() as closing, pytest.raises(ConnectionError):
        served(url, None, tmp_path, closing)(PROMPTS, RESPONSES)
