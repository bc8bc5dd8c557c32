"""Prompts that are too long: the context is cut, alike in both orders, and nothing else is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from labeler_support import Scripted, ask, comparison, fails, label, response

from labeler.backend import Choose, Write
from labeler.options import Options
from labeler.score import Scorer
from prompts.task import load

LONG = "".join(f"sentence {n}. " for n in range(400))


def full(row_prompt: str, task: str = "helpfulness") -> int:
    """How long the whole prompt is, in the fake's tokens."""
    backend = Scripted()
    label(backend, comparison(prompt=row_prompt), task)
    return len(backend.chosen[0].prompt.plain())


def test_a_prompt_that_just_fits_is_left_alone():
    backend = Scripted(limit=full(LONG))
    assert label(backend, comparison(prompt=LONG)).truncated is False
    assert backend.chosen[0].prompt.context == LONG


@pytest.mark.parametrize("over", [1, 500, 4000])
def test_the_context_is_cut_alike_in_both_orders_and_no_more_than_needed(over: int):
    limit = full(LONG) - over
    backend = Scripted(limit=limit)
    found = label(backend, comparison(prompt=LONG))
    forward, backward = (each.prompt for each in backend.chosen)
    assert found.truncated is True
    assert forward.context == backward.context == LONG[over:]
    assert max(len(forward.plain()), len(backward.plain())) == limit


@pytest.mark.parametrize(
    ("task", "kept"), [("helpfulness", "end"), ("harmlessness", "end"), ("summarization", "start")]
)
def test_a_task_says_which_side_of_its_context_may_go(task: str, kept: str):
    backend = Scripted(limit=full(LONG, task) - 1000)
    label(backend, comparison(prompt=LONG), task)
    expected = LONG[1000:] if kept == "end" else LONG[:-1000]
    assert backend.chosen[0].prompt.context == expected


def test_candidates_and_ending_stay_whole():
    backend = Scripted(limit=full(LONG) - 2000)
    label(backend, comparison(prompt=LONG))
    prompt = backend.chosen[0].prompt
    assert prompt.after == "\n\nResponse 1 - good\n\nResponse 2 - bad"
    assert prompt.answer == "Preferred Response="


def test_exemplars_stay_whole():
    whole = Scripted()
    label(whole, comparison(prompt=LONG), shots=2)
    cut = Scripted(limit=len(whole.chosen[0].prompt.plain()) - 3000)
    label(cut, comparison(prompt=LONG), shots=2)
    assert cut.chosen[0].prompt.before == whole.chosen[0].prompt.before


@dataclass(frozen=True)
class Narrow(Scripted):
    """Counts the answer's room too, as a real model's context does."""

    def overflow(self, request: Choose | Write) -> int:
        room = request.max_tokens if isinstance(request, Write) else 1
        return max(0, len(request.prompt.plain()) + room - (self.limit or 0))


def test_a_chain_of_thought_leaves_room_for_its_rationale_and_ending():
    limit = full(LONG)
    backend = Narrow(limit=limit, tell=lambda request: "x" * request.max_tokens)
    assert label(backend, comparison(prompt=LONG), cot=True, max_rationale=300).truncated is True
    blank = len("\n\n")  # two tokens of the fake's; of a real model's, the ending takes fewer than its characters
    assert all(len(each.prompt.plain()) <= limit + blank for each in backend.chosen)


def test_candidates_that_are_too_long_alone_fail_their_row_only():
    backend = Scripted(limit=full(""))
    rows = [comparison(prompt=""), comparison("x" * 500, "y", identity="long"), comparison("bad", "good", prompt="")]
    first, failure, last = ask(backend, rows)
    assert (failure.id, failure.reason) == ("long", "too_long")
    assert (first.choice, last.choice) == (0, 1)
    assert len(backend.asked) == 4, "nothing is asked about the row that cannot fit"


def test_an_empty_context_cannot_be_cut():
    assert fails(Scripted(limit=10), comparison(prompt="")).reason == "too_long"


def test_a_score_cuts_its_context_too():
    scorer = Scorer(load("helpfulness"), Scripted(rule=lambda request: [-2.3] * 10, limit=1200), Options())
    row = response().model_copy(update={"prompt": LONG})
    (found,) = asyncio.run(scorer([row]))
    assert found.truncated is True
