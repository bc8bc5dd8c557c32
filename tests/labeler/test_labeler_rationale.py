"""Chain of thought: a rationale for each order, then the choice after it; several of them averaged."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from labeler_support import Scripted, always_says, fails, label

from labeler.backend import Choose, Failed, Write
from labeler.fake import shown
from prompts.task import load

ENDING = "Preferred Response="

RUNNING_ON = {
    "plain": " the first is better",
    "has the answer": " the first is better\n\nPreferred Response=2",
    "answers itself twice": " the first is better Preferred Response=1 Preferred Response=2",
    "has the answer in other words": " the first is better\n\nPreferred Response: 2",
    "runs on to a next example": f" the first is better\n\n»»»» Example »»»»\n\nContext - x\n\n{ENDING}2",
    "repeats the instruction": f" the first is better\n\n»»»» Follow the instructions »»»»\n\n{ENDING}1",
    "has the answer first of all": f"{ENDING}2\n\n the first is better",
    "is nothing": "",
}


def seen_by(request: Write) -> str:
    """A rationale that names the response it saw first."""
    return f" I saw {shown(Choose(request.prompt, ()))[0]} first"


def test_each_order_gets_a_rationale_of_its_own():
    backend = Scripted(tell=seen_by)
    found = label(backend, cot=True)
    assert [order.rationale for order in found.orders] == [" I saw good first", " I saw bad first"]
    forward, backward = (each.prompt.plain() for each in backend.chosen)
    assert ("I saw good first" in forward, "I saw bad first" in forward) == (True, False)
    assert ("I saw good first" in backward, "I saw bad first" in backward) == (False, True)


@pytest.mark.parametrize("rationale", RUNNING_ON.values(), ids=RUNNING_ON)
def test_the_choice_follows_one_rationale_and_one_ending(rationale: str):
    backend = Scripted(tell=lambda request: rationale)
    label(backend, cot=True)
    for prompt in (each.prompt for each in backend.chosen):
        assert prompt.plain().count(ENDING) == 1
        assert prompt.plain().endswith(f"\n\n{ENDING}")
        assert prompt.plain().count("the first is better") == (
            rationale.startswith(" the first is better")  # nothing is kept of what stands after an answer
        )
        assert "»»»»" not in prompt.plain()


@pytest.mark.parametrize("rationale", RUNNING_ON.values(), ids=RUNNING_ON)
def test_after_exemplars_the_answer_still_holds_one_ending(rationale: str):
    backend = Scripted(tell=lambda request: rationale)
    label(backend, cot=True, shots=1)
    for prompt in (each.prompt for each in backend.chosen):
        assert prompt.answer.count(ENDING) == 1
        assert prompt.answer.endswith(ENDING)
        assert prompt.before.count(ENDING) == 1, "the exemplar's"


def test_the_first_step_asks_for_a_rationale_and_shows_no_ending():
    backend = Scripted()
    label(backend, cot=True)
    request = backend.written[0]
    assert request.prompt.answer == "Rationale:"
    assert ENDING not in request.prompt.plain()
    assert any(stop in ENDING for stop in request.stop)
    assert request.max_tokens == 512


def test_samples_are_averaged_as_probabilities():
    sure = {" a": 0.9, " b": 0.5, " c": 0.1, " d": 0.99, " e": 0.01, " f": 0.8}
    told = iter(sure)

    def rule(request: Choose) -> Sequence[float]:
        rationale = request.prompt.answer.removeprefix("Rationale:").split("\n")[0]
        return always_says(sure[rationale], 1 - sure[rationale])(request)

    backend = Scripted(tell=lambda request: next(told), rule=rule)
    found = label(backend, cot=True, samples=3)
    assert [order.p_first for order in found.orders] == pytest.approx([0.5, 0.6])
    assert found.p == pytest.approx(0.5 + (0.5 - 0.6) / 2)
    assert (len(backend.written), len(backend.chosen)) == (6, 6)
    assert found.orders[0].rationale == " a\n\n---\n\n b\n\n---\n\n c"


def test_samples_of_both_orders_are_drawn_from_seeds_of_their_own():
    backend = Scripted()
    label(backend, cot=True, samples=3)
    again = Scripted()
    label(again, cot=True, samples=3)
    other = Scripted()
    label(other, cot=True, samples=3, seed=1)
    seeds = [request.seed for request in backend.written]
    assert len(set(seeds)) == 6
    assert seeds == [request.seed for request in again.written]
    assert not set(seeds) & {request.seed for request in other.written}


@pytest.mark.parametrize(
    ("options", "temperature", "top_k"),
    [
        ({}, 0.0, 0),
        ({"samples": 4}, 0.7, 40),
        ({"temperature": 0.3}, 0.3, 40),
        ({"samples": 2, "temperature": 1.0, "top_k": 5}, 1.0, 5),
    ],
    ids=["one is greedy", "several are drawn", "given", "all given"],
)
def test_rationales_are_drawn_at_the_papers_temperatures(options: dict[str, object], temperature: float, top_k: int):
    backend = Scripted()
    label(backend, cot=True, **options)
    assert {(each.temperature, each.top_k) for each in backend.written} == {(temperature, top_k)}


def test_a_failed_rationale_fails_the_row_and_its_choice_is_not_asked():
    backend = Scripted(tell=lambda request: Failed("timeout", "no answer in 60 s", attempts=3))
    found = fails(backend, cot=True)
    assert (found.reason, found.message, found.attempts) == ("timeout", "no answer in 60 s", 3)
    assert backend.chosen == []


def test_one_failed_sample_of_many_fails_the_row():
    told = iter([" a", " b", Failed("timeout", "late"), " d"])
    assert fails(Scripted(tell=lambda request: next(told)), cot=True, samples=2).reason == "timeout"


def test_a_failed_choice_after_a_good_rationale_fails_the_row():
    found = fails(Scripted(rule=lambda request: [float("nan")] * 2), cot=True)
    assert found.reason == "nan"


def test_a_clamp_bounds_labels_of_a_chain_of_thought_and_keeps_the_choice():
    found = label(Scripted(), cot=True, clamp=(0.4, 0.6))
    assert (found.p, found.choice) == (0.6, 0)
    assert found.orders[0].p_first > 0.8, "what the model said stays visible"


def test_a_rationale_costs_what_it_costs():
    plain, thought = label(Scripted()), label(Scripted(), cot=True)
    assert thought.tokens_out == plain.tokens_out + 2 * 5
    assert thought.tokens_in > plain.tokens_in + 2 * 10


@pytest.mark.parametrize("task", ["helpfulness", "harmlessness", "summarization"])
@pytest.mark.parametrize("shots", [0, 2])
def test_every_task_reads_its_rationale_before_its_ending(task: str, shots: int):
    backend = Scripted(tell=lambda request: " MY REASONS")
    label(backend, task=task, cot=True, shots=shots)
    pairwise = load(task).pairwise
    assert pairwise is not None
    for request in backend.chosen:
        assert request.prompt.answer.endswith(f" MY REASONS\n\n{pairwise.ending}")
        assert request.prompt.plain().count("MY REASONS") == 1
