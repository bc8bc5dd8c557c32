"""The ladder for models that tell no log-probabilities: votes, stated probabilities, and which rung is taken."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from labeler_support import Scripted, comparison, fails, label, response, worth

from data.records import Ranking, Score
from labeler.backend import Backend, BackendError, Choose, Failed, Likelihoods, Usage, Write
from labeler.fake import shown
from labeler.ladder import Stating, Voting, climb
from labeler.options import Options
from labeler.preference import Labeler
from labeler.ranking import Ranker
from labeler.score import Scorer
from prompts import answers
from prompts.render import Prompt
from prompts.task import load

PROMPT = Prompt("system", "", "context", "", "Answer:")


def says(*told: str | Failed) -> Scripted:
    """A model without log-probabilities that says these, one after another."""
    left = iter(told)
    return Scripted(logprobs=False, tell=lambda request: next(left))


def prefers(request: Write) -> str:
    """What is worth more, as a vote or as stated probabilities; a rationale where neither is wanted."""
    if not request.instruction:
        return " because"
    first, second = (worth(text) for text in shown(Choose(request.prompt, ())))
    chosen = "1" if first > second else "2"
    return json.dumps({name: 75 if name == chosen else 25 for name in request.numbers}) if request.numbers else chosen


def preferring(**options: Any) -> Scripted:
    return Scripted(logprobs=False, tell=prefers, **options)


def found(backend: Backend, options: tuple[str, ...] = answers.PAIR) -> Any:
    (answer,) = asyncio.run(backend.likelihoods([Choose(PROMPT, options)]))
    return answer


def voted(*told: str | Failed, options: tuple[str, ...] = answers.PAIR) -> Any:
    return found(Voting(says(*told), len(told)), options)


def shares(answer: Any) -> list[float]:
    assert isinstance(answer, Likelihoods), answer
    return [math.exp(value) for value in answer.values]


class TestVotes:
    @pytest.mark.parametrize(
        ("told", "first"),
        [("1", 2 / 3), ("2", 1 / 3), ("11", 3 / 4), ("12", 1 / 2), ("11111", 6 / 7), ("21222", 2 / 7)],
    )
    def test_two_options_follow_the_rule_of_succession(self, told, first):
        assert shares(voted(*told)) == pytest.approx([first, 1 - first])

    def test_ten_options_share_the_same_two_votes(self):
        expected = [0.2 / 5] * 10
        expected[6], expected[9] = 2.2 / 5, 1.2 / 5
        assert shares(voted("7", "SCORE: 10", "7", options=answers.SCALE)) == pytest.approx(expected)

    @given(st.sampled_from([answers.PAIR, answers.SCALE]), st.data())
    def test_shares_add_up_to_the_mass_and_stand_in_the_order_of_counts(self, options, data):
        told = data.draw(st.lists(st.sampled_from([*options, "neither"]), min_size=1, max_size=20))
        counts = [Counter(told)[option] for option in options]
        assume(sum(counts))
        answer = voted(*told, options=options)
        assert math.fsum(shares(answer)) == pytest.approx(sum(counts) / len(told))
        assert answers.mass(answer.values) == pytest.approx(sum(counts) / len(told))
        assert answer.votes == sum(counts)
        for one, n in zip(answer.values, counts, strict=True):
            for other, m in zip(answer.values, counts, strict=True):
                assert (one > other) == (n > m)

    def test_what_names_no_option_is_no_vote_and_seen_in_the_mass(self):
        answer = voted("1", "maybe", "**2**", "", "Preferred Response=1")
        assert (answer.method, answer.votes) == ("votes", 3)
        assert answers.mass(answer.values) == pytest.approx(3 / 5)
        assert answers.first_probability(answer.values) == pytest.approx(3 / 5)

    def test_without_any_vote_there_is_no_answer(self):
        answer = voted("It depends\non " + "much " * 50, "3")
        assert isinstance(answer, Failed)
        assert (answer.reason, "none of 2 votes" in answer.message) == ("unparsable", True)
        assert "'It depends on much" in answer.message
        assert len(answer.message) < 120

    def test_one_failed_request_is_the_failure(self):
        late = Failed("timeout", "no answer", attempts=8)
        assert voted("1", late, "2", Failed("refused", "later")) == late

    def test_all_of_them_are_paid_for(self):
        assert voted("1", "neither", "2").usage == Usage(30, 15, 0.0)

    def test_they_are_samples_of_one_question(self):
        backend = says(*"12112")
        found(Voting(backend, 5))
        assert len({each.seed for each in backend.written}) == 5
        assert {(each.prompt, each.temperature, each.instruction) for each in backend.written} == {
            (PROMPT, 1.0, "Answer with one of 1, 2 and nothing else.")
        }

    def test_each_question_draws_for_itself_and_always_the_same(self):
        backend = says(*"11111111")
        questions = [Choose(replace(PROMPT, context=text), answers.PAIR) for text in "abab"]
        asyncio.run(Voting(backend, 2).likelihoods(questions))
        seeds = [each.seed for each in backend.written]
        assert len(set(seeds[:4])) == 4
        assert seeds[:4] == seeds[4:]

    def test_each_question_has_its_own(self):
        both = [Choose(PROMPT, answers.PAIR), Choose(PROMPT, ("1", "2", "3"))]
        one, other = asyncio.run(Voting(says(*"1112"), 2).likelihoods(both))
        assert (one.votes, len(one.values), other.votes, len(other.values)) == (2, 2, 2, 3)
        assert shares(one) == pytest.approx([3 / 4, 1 / 4])
        assert shares(other) == pytest.approx([(1 + 2 / 3) / 4, (1 + 2 / 3) / 4, (2 / 3) / 4])

    def test_none_for_none(self):
        assert asyncio.run(Voting(says(), 5).likelihoods([])) == []


class TestStated:
    def stated(self, told: str | Failed) -> Any:
        return found(Stating(says(told)))

    @pytest.mark.parametrize(
        ("told", "first"),
        [
            ('{"1": 70, "2": 30}', 0.7),
            ('{"2": 30, "1": 70}', 0.7),
            ('{"1": 0.2, "2": 0.6}', 0.25),
            ('{"1": 90, "2": 90}', 0.5),
            ('{"1": 100, "2": 0}', 1),
            ('{"1": 0, "2": 5}', 0),
        ],
    )
    def test_numbers_are_made_to_add_up(self, told, first):
        answer = self.stated(told)
        assert shares(answer) == pytest.approx([first, 1 - first])
        assert (answer.method, answer.votes, answer.usage) == ("stated", None, Usage(10, 5, 0.0))

    @pytest.mark.parametrize("told", ['{"1": 0, "2": 0}', '{"1": NaN, "2": 1}', '{"1": 1}', "70 to 30", ""])
    def test_anything_else_is_a_failure(self, told):
        answer = self.stated(told)
        assert isinstance(answer, Failed)
        assert answer.reason == "unparsable"
        assert repr(told) in answer.message

    def test_a_failed_request_is_the_failure(self):
        late = Failed("timeout", "no answer", attempts=8)
        assert self.stated(late) == late

    def test_one_request_names_the_options_as_keys_of_an_object(self):
        backend = says('{"1": 1, "2": 1}')
        found(Stating(backend))
        (request,) = backend.written
        assert (request.prompt, request.temperature, request.numbers) == (PROMPT, 0.0, answers.PAIR)
        assert "answers 1, 2" in request.instruction
        assert "JSON" in request.instruction
        assert request.schema["required"] == ["1", "2"]

    def test_an_option_without_probability_is_a_sure_label(self):
        made = label(climb(Scripted(tell=lambda request: '{"1": 0, "2": 100}'), "stated", 1), one_order=True)
        assert (made.p, made.choice, made.mass) == (pytest.approx(0), 1, 1)


class TestClimb:
    def test_a_model_that_tells_them_is_asked_for_log_probabilities(self):
        backend = Scripted()
        assert climb(backend, None, 5) is climb(backend, "logprobs", 5) is backend

    def test_one_that_does_not_votes(self):
        backend = says()
        assert climb(backend, None, 7) == Voting(backend, 7)

    def test_one_that_does_not_cannot_be_made_to(self):
        with pytest.raises(BackendError, match=r"--needs logprobs: fake:scripted tells none; without --needs it votes"):
            climb(says(), "logprobs", 5)

    @pytest.mark.parametrize("logprobs", [True, False])
    @pytest.mark.parametrize(("needs", "rung"), [("votes", Voting), ("stated", Stating)])
    def test_the_lower_rungs_are_there_for_all(self, needs, rung, logprobs):
        backend = preferring() if not logprobs else Scripted(tell=prefers)
        assert isinstance(climb(backend, needs, 3), rung)
        assert label(climb(backend, needs, 3)).method == needs
        assert backend.chosen == []

    def test_the_identity_is_the_rungs_and_the_number_of_votes(self):
        rungs = [("logprobs", 5), ("votes", 3), ("votes", 5), ("stated", 5)]
        made = [climb(Scripted(), needs, votes) for needs, votes in rungs]
        assert len({each.identity for each in made}) == 4
        for compiled in (Labeler, Scorer, Ranker):
            assert len({compiled(load("helpfulness"), each, Options()).digest for each in made}) == 4
        assert climb(Scripted(), "stated", 3).identity == climb(Scripted(), "stated", 5).identity

    @pytest.mark.parametrize("needs", ["votes", "stated"])
    def test_all_else_is_the_backends(self, needs):
        backend = Scripted(name="fake:x", rows=3, calls=5, price=None, limit=0)
        wrapped = climb(backend, needs, 2)
        assert (wrapped.name, wrapped.rows, wrapped.calls, wrapped.price) == ("fake:x", 3, 5, None)
        assert wrapped.overflow(Choose(PROMPT, answers.PAIR)) == backend.overflow(Choose(PROMPT, answers.PAIR)) > 0


class TestLabels:
    def test_votes_are_told_for_each_order(self):
        backend = preferring()
        made = label(climb(backend, None, 3))
        assert (made.method, made.choice, made.mass, made.same_position) == ("votes", 0, 1, False)
        assert [order.votes for order in made.orders] == [3, 3]
        assert [order.p_first for order in made.orders] == pytest.approx([4 / 5, 1 / 5])
        assert made.p == pytest.approx(4 / 5)
        assert (made.tokens_in, made.tokens_out, len(backend.written)) == (60, 30, 6)

    def test_the_worse_one_is_voted_for_where_the_task_asks_so(self):
        assert label(climb(preferring(), None, 3), task="harmlessness").p == pytest.approx(1 / 5)

    def test_stated_probabilities_are_averaged(self):
        made = label(climb(preferring(), "stated", 3))
        assert (made.p, made.method, made.orders[0].votes) == (pytest.approx(0.75), "stated", None)

    def test_a_row_without_votes_fails_alone(self):
        backend = Scripted(logprobs=False, tell=lambda request: "1" if "good" in request.prompt.after else "both")
        assert fails(climb(backend, None, 2), comparison("fair", "bad")).reason == "unparsable"
        assert label(climb(backend, None, 2)).p == 0.5

    def test_each_rationale_is_voted_on(self):
        backend = preferring()
        made = label(climb(backend, None, 3), cot=True, samples=2)
        assert (made.method, [order.votes for order in made.orders]) == ("votes", [6, 6])
        assert made.p == pytest.approx(4 / 5)
        assert made.orders[0].rationale == " because\n\n---\n\n because"
        reasons = [each for each in backend.written if not each.instruction]
        votes = [each for each in backend.written if each.instruction]
        assert (len(reasons), len(votes)) == (4, 12)
        assert all(each.prompt.answer == "Rationale: because\n\nPreferred Response=" for each in votes)
        assert made.tokens_out == 5 * 16

    def test_a_probability_is_stated_after_a_rationale(self):
        backend = preferring()
        made = label(climb(backend, "stated", 5), cot=True)
        assert (made.p, made.method) == (pytest.approx(0.75), "stated")
        assert [bool(each.numbers) for each in backend.written] == [False, False, True, True]


class TestScoresAndRankings:
    def score(self, backend: Backend) -> Score:
        (made,) = asyncio.run(Scorer(load("helpfulness"), backend, Options())([response()]))
        assert isinstance(made, Score), made
        return made

    def test_a_score_is_voted_for(self):
        made = self.score(climb(says("7", "9", "7", "eight"), None, 4))
        assert (made.method, made.mass) == ("votes", pytest.approx(3 / 4))
        assert made.distribution[6] == pytest.approx(2.2 / 5)
        assert made.score == pytest.approx((7 * 2 + 9 + 2 * 5.5) / 5)

    def test_a_score_is_stated(self):
        told = dict.fromkeys(answers.SCALE, 0) | {"4": 30, "10": 10}
        made = self.score(climb(says(json.dumps(told)), "stated", 5))
        assert (made.method, made.score, made.mass) == ("stated", pytest.approx(5.5), pytest.approx(1))

    def test_a_ranking_is_voted_for(self):
        row = comparison().model_copy(update={"responses": ("bad", "good", "fair")})
        (made,) = asyncio.run(Ranker(load("helpfulness"), climb(preferring(), None, 3), Options())([row]))
        assert isinstance(made, Ranking), made
        assert (made.order, made.method) == ((1, 2, 0), "votes")
        assert made.p[1][0] == pytest.approx(4 / 5)
