"""Log-probabilities of options from the likeliest tokens."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeler import top
from labeler.completions import Completion, Token

OPTIONS = ("1", "2")


def logs(**shares: float) -> list[tuple[bytes, float]]:
    return [(name.strip("_").encode(), math.log(share)) for name, share in shares.items()]


class TestPlace:
    def test_spellings_of_an_answer_are_added_up(self):
        found = top.place([(b"1", math.log(0.5)), (b" 1", math.log(0.25)), (b"2", math.log(0.2))])
        assert math.exp(found[b"1"]) == pytest.approx(0.75)
        assert set(found) == {b"1", b"2"}

    def test_one_blank_alone_is_taken_away_and_a_blank_itself_stays(self):
        assert set(top.place([(b" ", -1.0), (b"  1", -2.0)])) == {b" ", b" 1"}

    def test_what_is_not_a_number_is_unusable(self):
        with pytest.raises(top.UnusableError, match="is not a log-probability"):
            top.place([(b"1", -0.1), (b"2", math.nan)])

    @pytest.mark.parametrize("mark", [-9999.0, -math.inf, -10000.0])
    def test_impossible_tokens_are_left_out_where_the_rest_is_all(self, mark):
        assert set(top.place([(b"1", -0.001), (b"2", mark)])) == {b"1"}

    @pytest.mark.parametrize("mark", [-9999.0, -math.inf])
    def test_impossible_tokens_where_probability_is_left_over_contradict_it(self, mark):
        with pytest.raises(top.UnusableError, match=r"40% of the probability"):
            top.place([(b"1", math.log(0.6)), (b"2", mark)])

    def test_an_improbable_token_is_not_an_impossible_one(self):
        assert set(top.place([(b"1", math.log(0.6)), (b"2", -50.0)])) == {b"1", b"2"}

    @given(st.lists(st.floats(0.001, 1), min_size=1, max_size=20), st.randoms())
    def test_neither_order_nor_spelling_changes_the_sum(self, weights, random):
        total = math.fsum(weights)
        tokens = [(b" 1" if at % 2 else b"1", math.log(each / total)) for at, each in enumerate(weights)]
        random.shuffle(tokens)
        (value,) = top.place(tokens).values()
        assert value == pytest.approx(0.0, abs=1e-9)


class TestOptions:
    def test_what_is_not_listed_is_no_likelier_than_what_is_left(self):
        assert top.bound(dict(logs(_1=0.9, x=0.09))) == pytest.approx(math.log(0.01))

    def test_nor_than_the_least_of_the_list(self):
        assert top.bound(dict(logs(_1=0.5, x=0.001))) == pytest.approx(math.log(0.001))

    def test_nothing_is_left_for_it_where_the_list_has_all(self):
        assert top.bound({b"1": 0.0}) == -math.inf

    def test_an_empty_list_bounds_nothing(self):
        assert top.bound({}) == 0.0

    @given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=20), st.floats(1, 3))
    def test_the_bound_holds(self, weights, spare):
        total = math.fsum(weights) * spare
        tops = {str(at).encode(): math.log(each / total) for at, each in enumerate(weights)}
        left = 1 - math.fsum(map(math.exp, tops.values()))
        assert top.bound(tops) <= min(tops.values())
        assert math.exp(top.bound(tops)) <= max(left, 0) + 1e-9


class TestText:
    @pytest.mark.parametrize("spelled", ["▁1", "Ġ1", " 1"])
    def test_blanks_of_tokenizers(self, spelled):
        assert Token(token=spelled, logprob=0.0).text == b" 1"

    def test_bytes_go_before_the_spelling(self):
        assert Token.model_validate({"token": "Ġ1", "logprob": 0, "bytes": [49]}).text == b"1"

    @pytest.mark.parametrize("raw", [None, []])
    def test_no_bytes_are_none(self, raw):
        assert Token.model_validate({"token": "Ġ1", "logprob": 0, "bytes": raw}).text == b" 1"

    def test_a_part_of_a_character_needs_no_spelling(self):
        assert Token.model_validate({"token": "\\xe2\\x96", "logprob": 0, "bytes": [226, 150]}).text == b"\xe2\x96"

    @pytest.mark.parametrize(
        ("choice", "what"),
        [
            ({}, "no top"),
            ({"logprobs": None}, "no top"),
            ({"logprobs": {"content": []}}, "no top"),
            ({"logprobs": {"content": [{"token": "1", "logprob": 0}]}}, "no top"),
            ({"message": {"refusal": "No."}}, "refused"),
        ],
    )
    def test_answers_without_log_probabilities_are_unusable(self, choice, what):
        with pytest.raises(top.UnusableError, match=what):
            Completion.model_validate({"choices": [choice]}).tops()

    def test_the_first_place_counts(self):
        places = [
            {"token": "1", "logprob": -0.1, "top_logprobs": [{"token": name, "logprob": -0.1}]} for name in ("1", "2")
        ]
        assert set(Completion.model_validate({"choices": [{"logprobs": {"content": places}}]}).tops()) == {b"1"}


def test_chance_is_nothing_for_what_is_not_listed():
    assert top.chance({b"0": math.log(0.25)}, "0") == pytest.approx(0.25)
    assert top.chance({b"0": 1e-9}, "0") == 1.0
    assert top.chance({b"1": 0.0}, "0") == 0.0


def test_the_logarithm_of_nothing():
    assert top.log(0.0) == -math.inf
    assert top.log(1.0) == 0.0
