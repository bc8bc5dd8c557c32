import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prompts import answers
from prompts.render import EXAMPLE, FOLLOW

LOGS = st.floats(-500, 0)
INF, NAN = math.inf, math.nan
ENDINGS = ["Preferred Summary=", "Preferred Response=", "Best"]


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        ((-0.2, -1.8), 0.8320183851339245),
        ((-1.8, -0.2), 0.1679816148660755),
        ((-3, -3), 0.5),
        ((-1e6, -1e6), 0.5),
        ((math.log(0.3), math.log(0.1)), 0.75),
        ((0, -INF), 1),
        ((-INF, 0), 0),
        ((0, -1e5), 1),
        ((-1e5, 0), 0),
    ],
)
def test_the_first_probability_is_a_softmax_of_two(logs, expected):
    assert answers.first_probability(logs) == pytest.approx(expected, abs=1e-15)


@given(LOGS, LOGS, st.floats(-1000, 1000))
def test_the_first_probability_does_not_change_with_a_common_shift(one, two, shift):
    shifted = answers.first_probability((one + shift, two + shift))
    assert shifted == pytest.approx(answers.first_probability((one, two)), abs=1e-12)


@given(LOGS | st.just(-INF), LOGS | st.just(-INF))
def test_the_probabilities_of_both_labels_add_up_to_one(one, two):
    assume(max(one, two) > -INF)
    total = answers.first_probability((one, two)) + answers.first_probability((two, one))
    assert total == pytest.approx(1, abs=1e-15)


@given(LOGS, LOGS)
def test_the_first_probability_grows_with_the_first(one, two):
    assert (answers.first_probability((one, two)) > 0.5) <= (one > two)
    assert (answers.first_probability((one, two)) == 0.5) >= (one == two)


@pytest.mark.parametrize("logs", [(NAN, 0), (0, NAN), (NAN, NAN), (-INF, -INF), (NAN, -INF)], ids=str)
def test_without_a_usable_probability_there_is_no_answer(logs):
    with pytest.raises(ValueError, match="neither label has a usable probability"):
        answers.first_probability(logs)


@pytest.mark.parametrize("logs", [(), (0,), (0, 0, 0)], ids=str)
def test_a_pair_has_two_labels(logs):
    with pytest.raises(ValueError, match="values to unpack"):
        answers.first_probability(logs)


@pytest.mark.parametrize(
    ("logs", "expected"),
    [((math.log(0.3), math.log(0.1)), 0.4), ((-INF, -INF), 0), ((0, 0), 1), ((0, -800), 1), ((math.log(0.2),), 0.2)],
)
def test_mass_is_the_probability_of_all_labels(logs, expected):
    assert answers.mass(logs) == pytest.approx(expected, abs=1e-15)


@given(st.lists(LOGS, min_size=1, max_size=10), st.floats(-1000, 1000))
def test_a_distribution_adds_up_to_one_and_does_not_change_with_a_shift(logs, shift):
    found = answers.distribution(logs)
    assert math.fsum(found) == pytest.approx(1, abs=1e-12)
    assert found == pytest.approx(answers.distribution([each + shift for each in logs]), abs=1e-12)


@given(LOGS, LOGS)
def test_a_distribution_over_two_is_that_of_a_pair(one, two):
    assert answers.distribution((one, two))[0] == pytest.approx(answers.first_probability((one, two)), abs=1e-12)


def test_an_option_without_probability_gets_none():
    assert answers.distribution((-INF, -2, -INF)) == (0, 1, 0)


@pytest.mark.parametrize("logs", [(-INF,) * 10, (NAN, 0), (0, NAN), (-INF, NAN)], ids=str)
def test_without_a_usable_score_there_is_no_distribution(logs):
    with pytest.raises(ValueError, match="no score has a usable probability"):
        answers.distribution(logs)


def test_the_scale_runs_from_1_to_10():
    assert answers.SCALE == ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10")
    assert answers.PAIR == ("1", "2")


@pytest.mark.parametrize(
    ("probabilities", "score", "reward"),
    [
        ([1, *[0] * 9], 1, -1),
        ([*[0] * 9, 1], 10, 1),
        ([0.1] * 10, 5.5, 0),
        ([0.5, *[0] * 8, 0.5], 5.5, 0),
        ([*[0] * 6, 0.1, 0.5, 0.3, 0.1], 8.4, 0.6444444444444445),
    ],
    ids=["lowest", "highest", "even", "split", "paper"],
)
def test_expected_scores_and_rewards(probabilities, score, reward):
    assert answers.expected_score(probabilities) == pytest.approx(score, abs=1e-12)
    assert answers.reward(answers.expected_score(probabilities)) == pytest.approx(reward, abs=1e-12)


@given(st.lists(LOGS, min_size=10, max_size=10))
def test_scores_and_rewards_stay_on_their_scale(logs):
    score = answers.expected_score(answers.distribution(logs))
    assert 1 <= score <= 10
    assert -1 <= answers.reward(score) <= 1
    assert answers.reward(score) == pytest.approx((score - 5.5) / 4.5, abs=1e-12)


@given(st.integers(0, 9), st.sampled_from([-5.0, -500.0]))
def test_all_probability_on_one_score_is_that_score(index, rest):
    logs = [0.0 if at == index else -INF for at in range(10)]
    assert answers.expected_score(answers.distribution([each + rest for each in logs])) == index + 1


@pytest.mark.parametrize(("p", "expected"), [(0, 0.4), (0.4, 0.4), (0.45, 0.45), (0.6, 0.6), (1, 0.6)])
def test_a_clamped_label_lies_in_40_to_60_percent(p, expected):
    assert answers.clamp(p) == expected


@given(st.floats(0, 1), st.floats(0, 0.5), st.floats(0.5, 1))
def test_clamping_never_changes_the_choice(p, low, high):
    clamped = answers.clamp(p, low, high)
    assert low <= clamped <= high
    assert (clamped > 0.5) <= (p > 0.5)
    assert (clamped < 0.5) <= (p < 0.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" The first is clear.", " The first is clear."),
        (" Clear.\n\nPreferred Summary=2", " Clear."),
        (" Clear. Preferred Summary=1\nMore. Preferred Summary=2", " Clear."),
        (" Clear.\n\nPreferred Summary = 2", " Clear."),
        (" Clear.\n\n**Preferred Summary**: 2", " Clear.\n\n**"),
        (f" Clear.\n\n{EXAMPLE}\n\nText - new", " Clear."),
        (f" Clear.\n\n{FOLLOW}\n\nText - new", " Clear."),
        (" Clear.\n\n»»»» Exam", " Clear."),
        (f" Clear. {EXAMPLE} Preferred Summary=1", " Clear."),
        ("Preferred Summary=1", ""),
        (" trailing \n\n", " trailing"),
        ("", ""),
    ],
    ids=[
        "whole",
        "answer",
        "answers",
        "spaced",
        "bold",
        "example",
        "follow",
        "cut-off-example",
        "example-first",
        "at-once",
        "spaces",
        "empty",
    ],
)
def test_a_rationale_ends_at_an_answer_or_a_next_example(text, expected):
    assert answers.rationale(text, "Preferred Summary=") == expected


PIECES = st.lists(
    st.text(max_size=8) | st.sampled_from([*ENDINGS, "Preferred Summary", EXAMPLE, FOLLOW, "»»", "=", "1"])
)


@given(PIECES.map("".join), st.sampled_from(ENDINGS))
def test_a_rationale_never_holds_a_stop_and_is_where_the_text_begins(text, ending):
    found = answers.rationale(text, ending)
    assert not any(stop in found for stop in answers.stops(ending))
    assert text.startswith(found)
    assert answers.rationale(found, ending) == found


@given(st.text(), st.sampled_from(ENDINGS))
def test_a_rationale_is_not_changed_by_what_follows_a_stop(text, ending):
    assert answers.rationale(f"{text}{ending}2 and so on", ending) == answers.rationale(f"{text}{ending}1", ending)


@pytest.mark.parametrize("ending", ENDINGS)
def test_generation_stops_at_the_ending_and_at_examples(ending):
    assert all(any(stop in text for stop in answers.stops(ending)) for text in (ending, EXAMPLE, FOLLOW))
    assert len(answers.stops(ending)) <= 4  # OpenAI takes no more
