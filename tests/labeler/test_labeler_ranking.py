"""Rankings: all pairs in both orders, one Bradley-Terry line."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labeler_support import Scripted

from data.records import Comparison, Failure, Ranking
from labeler import ranking
from labeler.backend import Choose
from labeler.fake import Rule, always, by, shown
from labeler.options import Options
from labeler.ranking import Ranker, bradley_terry
from prompts.task import load

QUICK = settings(max_examples=30)


def rank(rule: Rule, *responses: str, task: str = "helpfulness", **options: Any) -> Ranking:
    row = Comparison(id="a", prompt="p", responses=responses)
    (found,) = asyncio.run(Ranker(load(task), Scripted(rule=rule), Options(**options))([row]))
    assert isinstance(found, Ranking), found
    return found


def shuffled(count: int) -> list[str]:
    return random.Random(count).sample([str(n) for n in range(count)], count)


@st.composite
def soft_wins(draw: st.DrawFn) -> np.ndarray:
    """Pairwise probabilities of 2 to 6 players, p[j, i] = 1 - p[i, j]."""
    count = draw(st.integers(2, 6))
    p = np.full((count, count), 0.5)
    for i in range(count):
        for j in range(i):
            p[i, j] = draw(st.floats(0, 1))
            p[j, i] = 1 - p[i, j]
    return p


@pytest.mark.parametrize("count", range(2, 10))
def test_a_consistent_labelers_order_is_recovered_in_spite_of_its_position_bias(count: int):
    responses = shuffled(count)
    found = rank(by(float, bias=3), *responses)
    assert [responses[at] for at in found.order] == sorted(responses, reverse=True)
    assert list(found.order) == sorted(found.order, key=lambda at: -found.strengths[at])


def test_a_task_that_asks_for_the_worse_ranks_the_other_way_round():
    assert rank(by(float), "1", "3", "2", task="harmlessness").order == (0, 2, 1)


def test_every_pair_is_asked_in_both_orders():
    backend = Scripted(rule=by(float))
    row = Comparison(id="a", prompt="p", responses=("1", "2", "3", "4"))
    asyncio.run(Ranker(load("helpfulness"), backend, Options())([row]))
    assert len({each.prompt.plain() for each in backend.chosen}) == 4 * 3


def test_the_matrix_holds_the_soft_labels():
    p = np.array(rank(by(float), "1", "3", "2").p)
    assert p + p.T == pytest.approx(np.ones((3, 3)))
    assert p[1, 0] == pytest.approx(1 / (1 + np.exp(-2)))


def test_a_labeler_with_only_position_bias_ranks_nothing():
    found = rank(always(0), "x", "y", "z")
    assert found.strengths == pytest.approx([0, 0, 0])
    assert found.order == (0, 1, 2)


def test_one_failed_pair_fails_the_row_alone():
    def rule(request: Any) -> list[float]:
        broken = "Response 1 - broken" in request.prompt.after and "Response 2 - z" in request.prompt.after
        return [float("nan")] * 2 if broken else [-1.0, -2.0]

    rows = [
        Comparison(id="a", prompt="p", responses=("x", "broken", "z")),
        Comparison(id="b", prompt="p", responses=("x", "y")),
    ]
    first, second = asyncio.run(Ranker(load("helpfulness"), Scripted(rule=rule), Options())(rows))
    assert isinstance(first, Failure)
    assert (first.id, first.stage, first.reason) == ("a", "rank", "nan")
    assert isinstance(second, Ranking)


def test_rows_with_different_numbers_of_responses_do_not_mix():
    rows = [
        Comparison(id="a", prompt="p", responses=("1", "2", "3")),
        Comparison(id="b", prompt="p", responses=("2", "1")),
        Comparison(id="c", prompt="p", responses=("1", "3", "4", "2")),
    ]
    found = asyncio.run(Ranker(load("helpfulness"), Scripted(rule=by(float)), Options())(rows))
    assert [each.order for each in found] == [(2, 1, 0), (0, 1), (2, 1, 3, 0)]


def test_a_ranking_is_another_job_than_labels_of_the_same_file():
    from labeler.preference import Labeler

    parts = load("helpfulness"), Scripted(), Options()
    assert Ranker(*parts).digest != Labeler(*parts).digest


@pytest.mark.parametrize("p", [0.5, 0.7, 0.9, 0.02])
def test_two_players_differ_by_the_logit(p: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranking, "PRIOR", 0.0)
    first, second = bradley_terry(np.array([[0.5, p], [1 - p, 0.5]]))
    assert first - second == pytest.approx(np.log(p / (1 - p)))


def test_true_strengths_are_recovered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranking, "PRIOR", 0.0)
    truth = np.array([1.5, -0.5, 0.0, 2.0, -3.0])
    truth -= truth.mean()
    assert bradley_terry(1 / (1 + np.exp(truth[None, :] - truth[:, None]))) == pytest.approx(truth, abs=1e-6)


@QUICK
@given(soft_wins())
def test_strengths_solve_the_likelihood_equations(p: np.ndarray):
    """At the maximum each player's expected wins equal its wins (prior included)."""
    strengths = bradley_terry(p)
    wins = p + ranking.PRIOR
    np.fill_diagonal(wins, 0)
    expected = (wins + wins.T) / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    assert wins.sum(1) == pytest.approx(expected.sum(1), abs=1e-6)


@QUICK
@given(soft_wins(), st.randoms(use_true_random=False))
def test_strengths_do_not_depend_on_the_order_of_players(p: np.ndarray, dice: random.Random):
    order = dice.sample(range(len(p)), len(p))
    assert bradley_terry(p[np.ix_(order, order)]) == pytest.approx(bradley_terry(p)[order], abs=1e-6)


@QUICK
@given(soft_wins())
def test_strengths_have_mean_0_and_are_finite(p: np.ndarray):
    strengths = bradley_terry(p)
    assert np.isfinite(strengths).all()
    assert strengths.mean() == pytest.approx(0, abs=1e-9)


def test_certain_wins_get_finite_strengths_in_order():
    def rule(request: Choose) -> list[float]:
        first, second = shown(request)
        return [0.0, -800.0] if len(first) > len(second) else [-800.0, 0.0]

    found = rank(rule, "xxx", "x", "xx")
    assert found.order == (0, 2, 1)
    assert max(map(abs, found.strengths)) < 20
