"""Log-probabilities of options from the likeliest tokens."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeler import top
from labeler.completions import Used, first_place

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


def answered(*tokens: object, **choice: object) -> bytes:
    """An answer with these likeliest tokens in its first place."""
    place = {"token": "1", "logprob": 0, "top_logprobs": tokens}
    return json.dumps({"choices": [{"message": {}, "logprobs": {"content": [place]}, **choice}]}).encode()


class TestFirstPlace:
    @pytest.mark.parametrize(
        ("token", "text"),
        [
            ({"token": "▁1"}, b"1"),
            ({"token": "Ġ1"}, b"1"),
            ({"token": " 1"}, b"1"),
            ({"token": "Ġ1", "bytes": [50]}, b"2"),
            ({"token": "Ġ1", "bytes": None}, b"1"),
            ({"token": "Ġ1", "bytes": []}, b"1"),
            ({"token": "\\xe2\\x96", "bytes": [226, 150]}, b"\xe2\x96"),
        ],
    )
    def test_tokens_are_their_bytes(self, token, text):
        assert set(first_place(answered({**token, "logprob": -0.1}))[0]) == {text}

    @pytest.mark.parametrize(
        ("choice", "what"),
        [
            ({"logprobs": None}, "no readable"),
            ({"logprobs": {}}, "no readable"),
            ({"logprobs": {"content": []}}, "no readable"),
            ({"logprobs": {"content": [{"token": "1", "logprob": 0}]}}, "no readable"),
            ({"logprobs": {"content": [{"top_logprobs": []}]}}, "no top"),
            ({"message": {"refusal": "No."}}, "refused"),
        ],
    )
    def test_answers_without_log_probabilities_are_unusable(self, choice, what):
        with pytest.raises(top.UnusableError, match=what):
            first_place(answered({"token": "1", "logprob": -1}, **choice))

    @pytest.mark.parametrize("token", [{}, {"token": "1"}, {"token": 1, "logprob": 0}, {"token": "1", "logprob": "x"}])
    @pytest.mark.parametrize("whole", [b"", b"{", b"[]", b"null", b'{"choices": []}', None])
    def test_nor_are_others_than_expected(self, token, whole):
        with pytest.raises(top.UnusableError, match="no readable"):
            first_place(answered(token) if whole is None else whole)

    @pytest.mark.parametrize("raw", [[300], [-1], "1", [None], 3.5])
    def test_bytes_that_are_none(self, raw):
        with pytest.raises(top.UnusableError, match="no readable"):
            first_place(answered({"token": "1", "logprob": -1, "bytes": raw}))

    def test_the_first_place_counts(self):
        places = [{"top_logprobs": [{"token": name, "logprob": -0.1}]} for name in ("1", "2")]
        assert set(first_place(answered(logprobs={"content": places}))[0]) == {b"1"}

    def test_usage_may_be_missing(self):
        assert first_place(answered({"token": "1", "logprob": -1}))[1] == Used()
