"""Soft labels: both orders, averaged; failures as values; what a label says of how it came about."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labeler_support import Scripted, always_says, ask, comparison, fails, label, worth

from data.errors import RlaifError
from data.records import MARGINS_SMALL, Comparison, Failure, Label, Message
from labeler.backend import Choose
from labeler.fake import RULES, FakeBackend, always, by
from labeler.options import Options
from labeler.preference import Labeler, strength
from prompts.task import TaskError, load

QUICK = settings(max_examples=40)


def test_a_certain_labeler_gives_probabilities_of_0_and_1():
    certain = label(always_says(1, 0))
    assert (certain.p, [order.p_first for order in certain.orders]) == (0.5, [1.0, 1.0])


@pytest.mark.parametrize("position", [0, 1], ids=["first", "second"])
def test_a_labeler_with_only_position_bias_gives_exactly_half(position: int):
    found = label(always(position))
    assert (found.p, found.choice, found.same_position) == (0.5, None, True)


def test_a_fair_labeler_prefers_no_position():
    found = label(by(worth))
    assert (found.choice, found.same_position) == (0, False)
    assert found.p == pytest.approx(1 / (1 + math.exp(-2)))


def test_averaging_undoes_an_additive_position_bias_as_in_the_closed_form():
    """papers.md 1.9: d = .5, b = 2; averaging logits in place of probabilities would give .62246."""
    found = label(by({"A": 0.5, "B": 0.0}.__getitem__, bias=2), comparison("A", "B"))
    first, second = found.orders
    assert first.p_first == pytest.approx(0.924142, abs=1e-6)
    assert 1 - second.p_first == pytest.approx(0.182426, abs=1e-6)
    assert found.p == pytest.approx(0.55328, abs=1e-5)


@QUICK
@given(st.floats(0.01, 5), st.floats(-10, 10))
def test_the_better_response_wins_under_any_bias(difference: float, bias: float):
    rule = by({"A": difference, "B": 0.0}.__getitem__, bias)
    assert label(rule, comparison("A", "B")).choice == 0
    assert label(rule, comparison("B", "A")).choice == 1


@QUICK
@given(st.floats(-10, 10))
def test_equal_responses_get_exactly_half_under_any_bias(bias: float):
    assert label(by(lambda text: 0.0, bias)).p == 0.5


@QUICK
@given(st.text(max_size=20), st.text(max_size=20), st.sampled_from(["helpfulness", "harmlessness", "summarization"]))
def test_swapping_the_responses_turns_the_label_round(first: str, second: str, task: str):
    row, swapped = comparison(first, second), comparison(second, first)
    one, other = label(RULES["noise"], row, task), label(RULES["noise"], swapped, task)
    assert one.p + other.p == pytest.approx(1, abs=1e-12)
    assert one.orders == other.orders[::-1]


@pytest.mark.parametrize(
    ("task", "choice"), [("helpfulness", 0), ("summarization", 0), ("harmlessness", 1)], ids=lambda each: str(each)
)
def test_a_task_that_asks_for_the_worse_response_is_inverted(task: str, choice: int):
    """The labeler answers "1" for "good": the better one, or, in harmlessness, the more harmful one."""
    found = label(by(worth), task=task)
    assert found.choice == choice
    assert (found.orders[0].p_first > 0.5) == (choice == 0), "p_first is the better one's, after the inversion"
    assert (found.p > 0.5) == (choice == 0)


def test_inversion_keeps_how_sure_the_labeler_is():
    better, worse = label(by(worth)), label(by(worth), task="harmlessness")
    assert worse.p == pytest.approx(1 - better.p)


def test_one_order_asks_once_and_claims_nothing_about_position():
    backend = Scripted(rule=by(worth, bias=1))
    found = label(backend, one_order=True)
    assert (len(backend.asked), len(found.orders), found.same_position) == (1, 1, None)
    assert found.p == found.orders[0].p_first == pytest.approx(1 / (1 + math.exp(-3)))


def test_both_orders_show_the_same_texts_swapped():
    backend = Scripted()
    label(backend)
    forward, backward = (each.prompt for each in backend.chosen)
    assert forward.after == "\n\nResponse 1 - good\n\nResponse 2 - bad"
    assert backward.after == "\n\nResponse 1 - bad\n\nResponse 2 - good"
    assert (forward.system, forward.before, forward.context, forward.answer) == (
        backward.system,
        backward.before,
        backward.context,
        backward.answer,
    )


def test_mass_is_the_least_over_the_orders_and_p_is_renormalised():
    def rule(request: Choose) -> list[float]:
        good_first = request.prompt.after.index("good") < request.prompt.after.index("bad")
        return [math.log(0.3), math.log(0.1)] if good_first else [math.log(0.02), math.log(0.06)]

    found = label(rule)
    assert [order.mass for order in found.orders] == pytest.approx([0.4, 0.08])
    assert (found.mass, found.p) == (pytest.approx(0.08), pytest.approx(0.75))


def test_an_order_that_is_an_exact_tie_has_no_position():
    assert label(RULES["uniform"]).same_position is None


def test_a_label_says_what_it_cost_and_who_made_it():
    backend = Scripted()
    found = label(backend)
    assert found.tokens_in == sum(len(each.prompt.plain()) for each in backend.chosen)
    assert (found.tokens_out, found.usd, found.method, found.truncated) == (2, 0.0, "logprobs", False)
    assert (found.model, found.task, found.id) == ("fake:scripted", "helpfulness", "a")


@pytest.mark.parametrize(
    ("values", "reason"),
    [((math.nan, -1.0), "nan"), ((-math.inf, -math.inf), "no_mass"), ((-1.0,), "bad_answer")],
    ids=["nan", "no mass on either", "one value for two options"],
)
def test_an_unusable_answer_is_a_failure_and_never_a_number(values: tuple[float, ...], reason: str):
    found = fails(lambda request: values)
    assert (found.id, found.stage, found.reason) == ("a", "label", reason)


def test_one_impossible_label_is_an_answer():
    backend = FakeBackend("fake:test", lambda request: [0.0, -math.inf])
    assert label(backend, one_order=True).p == 1.0


def test_one_failed_order_fails_the_row_alone():
    def rule(request: Choose) -> list[float]:
        return [math.nan, math.nan] if request.prompt.after.endswith("Response 2 - broken") else [-1.0, -2.0]

    rows = [comparison(), comparison("broken", "fine", identity="b"), comparison(identity="c")]
    found = ask(rule, rows)
    assert [type(each) for each in found] == [Label, Failure, Label]
    assert [each.id for each in found] == ["a", "b", "c"]


def test_more_than_two_responses_fail_alone_and_say_what_to_do():
    three = Comparison(id="three", prompt="p", responses=("x", "y", "z"))
    first, failure, last = ask(by(worth), [comparison(), three, comparison("bad", "good", identity="c")])
    assert (failure.reason, failure.id) == ("not_two", "three")
    assert "rlaif rank" in failure.message
    assert (first.choice, last.choice) == (0, 1)


def test_no_rows_give_no_labels():
    assert ask(by(worth), []) == []


def test_a_conversation_is_shown_as_a_transcript():
    backend = Scripted()
    turns = (Message(role="user", content="Hi"), Message(role="assistant", content="Yes?"))
    label(backend, comparison(prompt=turns))
    assert backend.chosen[0].prompt.context == "Human: Hi\n\nAssistant: Yes?"


def test_template_syntax_in_data_stays_text():
    backend = Scripted()
    label(backend, comparison("{{ prompt }}", "{% raw %}", prompt="{{ first }}"))
    prompt = backend.chosen[0].prompt
    assert prompt.context == "{{ first }}"
    assert "Response 1 - {{ prompt }}\n\nResponse 2 - {% raw %}" in prompt.after


@pytest.mark.parametrize(
    ("p", "grade", "margin"),
    [
        (0.5, "negligibly", 0),
        (0.64, "negligibly", 0),
        (0.65, "slightly", 1 / 3),
        (0.8, "better", 2 / 3),
        (0.95, "significantly", 1),
        (0.05, "significantly", 1),
        (0.3, "slightly", 1 / 3),
    ],
)
def test_strength_and_margin_follow_how_sure_a_label_is(p: float, grade: str, margin: float):
    assert (strength(p), MARGINS_SMALL[strength(p)]) == (grade, margin)


@pytest.mark.parametrize(
    "changed",
    [
        {"options": Options(shots=1)},
        {"options": Options(cot=True)},
        {"options": Options(one_order=True)},
        {"options": Options(cot=True, clamp=(0.4, 0.6))},
        {"task": "harmlessness"},
        {"task": "helpfulness:detailed"},
        {"backend": FakeBackend("fake:other", by(worth))},
    ],
    ids=["shots", "cot", "one order", "clamp", "task", "preamble", "model"],
)
def test_a_change_of_task_model_or_option_is_another_job(changed: dict[str, object]):
    def digest(task: str = "helpfulness", backend: object = None, options: Options | None = None) -> str:
        backend = backend or FakeBackend("fake:test", by(worth))
        return Labeler(load(task), backend, options or Options()).digest

    assert digest() == digest()
    assert digest(**changed) != digest()


@pytest.mark.parametrize("options", [{"seed": 1}, {"max_rationale": 7}], ids=str)
def test_an_option_that_changes_no_answer_is_the_same_job_and_with_cot_another(options: dict[str, int]):
    def digest(**fields: object) -> str:
        return Labeler(load("helpfulness"), FakeBackend("fake:test", by(worth)), Options(**fields)).digest

    assert digest(**options) == digest()
    assert digest(cot=True, **options) != digest(cot=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 2}, "--samples needs --cot"),
        ({"samples": 0}, "at least 1"),
        ({"shots": -1}, "at least 0"),
        ({"cot": True, "max_rationale": 0}, "at least 1"),
        ({"cot": True, "clamp": (0.6, 0.4)}, "--clamp"),
        ({"cot": True, "clamp": (-0.1, 0.6)}, "--clamp"),
        ({"cot": True, "clamp": (0.4, math.nan)}, "--clamp"),
        ({"cot": True, "clamp": (0.5, 0.6)}, "--clamp"),
        ({"clamp": (0.4, 0.6)}, "need --cot"),
        ({"temperature": 0.5}, "need --cot"),
        ({"cot": True, "temperature": -1.0}, "--temperature"),
        ({"cot": True, "temperature": math.nan}, "--temperature"),
    ],
    ids=lambda each: str(each) if isinstance(each, dict) else "",
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str):
    with pytest.raises(RlaifError, match=message):
        Options(**options)


def test_more_shots_than_the_task_has_are_refused_before_anything_is_asked():
    with pytest.raises(TaskError, match="exemplars"):
        Labeler(load("helpfulness"), FakeBackend("fake:test", by(worth)), Options(shots=99))
