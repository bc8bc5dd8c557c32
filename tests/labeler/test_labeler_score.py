"""Direct rewards: the expectation over ten scores; failures never become a number."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labeler_support import Scripted, always_says, response

from data.errors import RlaifError
from data.records import Failure, Score
from labeler.fake import RULES, Rule
from labeler.options import Options
from labeler.score import Scorer
from prompts.task import TaskError, load


def score(rule: Rule, **options: Any) -> Score | Failure:
    (found,) = asyncio.run(Scorer(load("helpfulness"), Scripted(rule=rule), Options(**options))([response()]))
    return found


ON_ONE, ON_TEN = (1.0,) + (0.0,) * 9, (0.0,) * 9 + (1.0,)


@pytest.mark.parametrize(
    ("probabilities", "expected", "reward"),
    [
        ((0.1,) * 10, 5.5, 0.0),
        (ON_ONE, 1.0, -1.0),
        (ON_TEN, 10.0, 1.0),
        ((0.0,) * 6 + (0.1, 0.5, 0.3, 0.1), 8.4, 0.644444),
        ((0.001,) * 10, 5.5, 0.0),
    ],
    ids=["uniform", "all on 1", "all on 10", "papers.md 1.9", "renormalised"],
)
def test_a_score_is_the_mean_of_the_ten_under_their_likelihoods(
    probabilities: tuple[float, ...], expected: float, reward: float
):
    found = score(always_says(*probabilities))
    assert isinstance(found, Score)
    assert (found.score, found.reward) == (pytest.approx(expected), pytest.approx(reward, abs=1e-5))
    assert found.mass == pytest.approx(sum(probabilities))
    assert (len(found.distribution), sum(found.distribution)) == (10, pytest.approx(1))


@settings(max_examples=40)
@given(st.lists(st.floats(-50, 0), min_size=10, max_size=10), st.floats(-20, 0))
def test_a_score_does_not_change_with_a_constant_added_to_all(values: list[float], shift: float):
    one, other = score(lambda request: values), score(lambda request: [value + shift for value in values])
    assert isinstance(one, Score)
    assert isinstance(other, Score)
    assert one.score == pytest.approx(other.score, abs=1e-6)
    assert 1 <= one.score <= 10


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (RULES["nan"], "nan"),
        (lambda request: [-math.inf] * 10, "no_mass"),
        (lambda request: [-math.inf] * 9 + [math.nan], "nan"),
    ],
    ids=["nan", "no mass", "one nan"],
)
def test_an_unusable_answer_is_a_failure(rule: Rule, reason: str):
    found = score(rule)
    assert isinstance(found, Failure)
    assert (found.id, found.stage, found.reason) == ("a", "score", reason)


def test_an_answer_with_too_few_likelihoods_is_a_failure_and_no_wrong_score():
    assert isinstance(score(always_says(0.5, 0.5)), Failure)


def test_rows_keep_their_order_and_fail_alone():
    def rule(request: Any) -> list[float]:
        return [math.nan] * 10 if "broken" in request.prompt.after else [-2.3] * 10

    rows = [response(identity="a"), response("broken", identity="b"), response(identity="c")]
    found = asyncio.run(Scorer(load("helpfulness"), Scripted(rule=rule), Options())(rows))
    assert [(each.id, type(each)) for each in found] == [("a", Score), ("b", Failure), ("c", Score)]


@pytest.mark.parametrize("options", [{"cot": True}, {"shots": 1}, {"one_order": True}], ids=str)
def test_options_of_comparisons_are_refused(options: dict[str, Any]):
    with pytest.raises(RlaifError, match="for comparisons"):
        Scorer(load("helpfulness"), Scripted(), Options(**options))


def test_a_task_without_a_score_table_is_refused(tmp_path):
    path = tmp_path / "pairs_only.toml"
    path.write_text(
        'about = "x"\n[pairwise]\npreamble = "base"\nending = "Better="\n'
        'sample = "{{ prompt }} {{ first }} {{ second }}"\n[pairwise.preambles]\nbase = "Which?"\n'
    )
    with pytest.raises(TaskError, match="score"):
        Scorer(load(str(path)), Scripted(), Options())


def test_the_prompt_ends_without_a_space_and_asks_for_all_ten():
    backend = Scripted(rule=lambda request: [-2.3] * 10)
    asyncio.run(Scorer(load("summarization"), backend, Options())([response()]))
    (request,) = backend.chosen
    assert request.prompt.plain().endswith("SCORE:")
    assert request.options == ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10")
