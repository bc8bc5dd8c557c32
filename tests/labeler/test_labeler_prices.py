"""What tokens cost."""

from __future__ import annotations

import tomllib

import pytest

from data.errors import RlaifError
from labeler.prices import TABLE, Price, given, listed

ROWS = [
    (provider, model, row)
    for provider, models in tomllib.loads(TABLE.read_text("utf-8")).items()
    for model, row in models.items()
]


class TestListed:
    def test_a_model_of_the_table(self):
        assert listed("openai", "gpt-4o-mini") == Price(0.15, 0.6, 0.075)

    @pytest.mark.parametrize("model", ["gpt-4o-2024-08-06", "gpt-4o-20240806"])
    def test_a_snapshot_costs_what_its_model_does(self, model):
        assert listed("openai", model) == listed("openai", "gpt-4o")

    @pytest.mark.parametrize("model", ["", "gpt-99", "gpt-4o-audio", "gpt-4o-2024", "2024-08-06", "-2024-08-06"])
    def test_unknown_models_have_no_price(self, model):
        assert listed("openai", model) is None

    def test_a_model_is_its_providers(self):
        assert listed("anthropic", "gpt-4o") is None
        assert listed("nobody", "gpt-4o") is None

    @pytest.mark.parametrize(("provider", "model", "row"), ROWS, ids=[f"{p}:{m}" for p, m, _ in ROWS])
    def test_rows_of_the_table(self, provider, model, row):
        price = listed(provider, model)
        assert price is not None
        assert 0 < price.input <= price.output
        assert price.cached is None or 0 < price.cached <= price.input
        assert set(row) <= {"input", "output", "cached", "written", "batch_input", "batch_output"}
        assert row.get("batch_input", 0) <= price.input
        assert row.get("batch_output", 0) <= price.output
        assert row.get("written", price.input) >= price.input


class TestGiven:
    def test_two_or_three_numbers(self):
        assert given("0.15,0.6") == Price(0.15, 0.6)
        assert given("1, 2, .5") == Price(1, 2, 0.5)
        assert given("0,0") == Price(0, 0)

    @pytest.mark.parametrize("text", ["", "1", "a,b", "1,2,3,4", "-1,2", "nan,1", "1,inf", "1,,2", "1;2"])
    def test_anything_else_is_an_error(self, text):
        with pytest.raises(RlaifError, match=r"--price .*expected IN,OUT"):
            given(text)


class TestCost:
    def test_input_and_output(self):
        assert Price(2, 8).usd(1_000_000, 500_000) == 6

    def test_cached_tokens_are_among_the_input(self):
        assert Price(2, 8, 0.5).usd(1_000_000, 0, cached=400_000) == pytest.approx(1.2 + 0.2)

    def test_cached_tokens_cost_the_same_where_no_price_says_else(self):
        assert Price(2, 8).usd(1000, 0, cached=400) == pytest.approx(Price(2, 8).usd(1000, 0))

    def test_a_price_of_nothing_for_cached_tokens_is_one(self):
        assert Price(2, 8, 0.0).usd(1000, 0, cached=1000) == 0

    def test_written_tokens_are_among_the_input_too(self):
        assert Price(2, 8, 0.5, 4).usd(1_000_000, 0, cached=500_000, written=250_000) == pytest.approx(0.5 + 0.25 + 1)


def test_a_batch_costs_what_the_table_says_and_caches_in_proportion():
    assert listed("openai", "gpt-4o", batch=True) == Price(1.25, 5, 0.625)
    assert listed("anthropic", "claude-haiku-4-5", batch=True) == Price(0.5, 2.5, 0.05, 0.625)
    assert listed("openai", "gpt-4", batch=True) == listed("openai", "gpt-4")
