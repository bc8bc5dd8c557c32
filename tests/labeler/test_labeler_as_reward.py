"""A labeler as a plain callable that a trainer asks: numbers in [-1, 1], at a price, within a budget."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from running import provider

from data.errors import RlaifError
from labeler.as_reward import rewards
from labeler.opening import Reach
from labeler.prices import Price
from labeler.spending import BudgetError, Meter, Spending

PROMPTS, RESPONSES = ["How do magnets work?"] * 3, ["By spinning electrons.", "Magic.", ""]


def asked(url: str, cache: Path, closing: ExitStack, price: Price | None, budget: float | None):
    spending = Spending(Meter(), budget)
    reach = Reach(f"{url}/v1", {"openai": "sk-test"}, price=price, spending=spending)
    name = "openai:gpt-4o"
    found = rewards(name, task="helpfulness", cache=cache, reach=reach, token=None, patience=5, closing=closing)
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
        while meter.usage.usd < 0.5:
            ask(PROMPTS, RESPONSES)
        with pytest.raises(BudgetError, match=r"--budget 0\.5: this run has spent"):
            ask(PROMPTS, RESPONSES)
        assert 0.5 <= meter.usage.usd <= 0.5 + once


def test_a_budget_without_a_price_is_refused(tmp_path):
    with provider() as it, ExitStack() as closing, pytest.raises(RlaifError, match="no price is known"):
        asked(it.url, tmp_path, closing, None, 0.5)


def test_a_labeler_without_a_question_is_refused(tmp_path):
    with ExitStack() as closing, pytest.raises(RlaifError, match=r"which question is it asked\? Say reward.task"):
        rewards("fake:noise", task="", cache=tmp_path, reach=Reach(), token=None, patience=1, closing=closing)
