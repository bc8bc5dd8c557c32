import json
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


VOTES = {
    "2": [
        *("2", " 2", "2\n", "2.", " 2).", "**2**", "#2", "(2)", '"2"', "$\\boxed{2}$", "» 2 «"),
        *("Response 2", "Preferred Response=2", "Preferred Summary = 2.", "Answer: **2**", "The answer is 2."),
    ],
    "1": ["1", "Score 1."],
    "10": ["10", "SCORE: 10"],
    None: [
        *("", " ", "one", "Both", "Response A", "1 2", "1 or 2", "1 is better than 2", "Response 2 is better", "2/10"),
        *("2 because", "1.5", "02", "12", "0", "11", "２", "I'd say 2", "not 2", "or\n2"),
    ],
}


@pytest.mark.parametrize(("text", "expected"), [(text, option) for option, texts in VOTES.items() for text in texts])
def test_a_vote_is_an_option_and_nothing_else(text, expected):
    found = answers.choice(text, answers.SCALE)
    assert found == (None if expected is None else answers.SCALE.index(expected))


def test_a_vote_for_what_is_no_option_is_none():
    assert [answers.choice(text, answers.PAIR) for text in ("1", "2", "3", "10")] == [0, 1, None, None]


@given(st.text() | st.from_regex(r"\W*[A-Za-z ]*\W*\d+\W*", fullmatch=True))
def test_any_text_is_an_option_or_none(text):
    found = answers.choice(text, answers.SCALE)
    assert found is None or answers.SCALE[found] in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"1": 70, "2": 30}', (0.7, 0.3)),
        ('{"2": 30, "1": 70, "why": "so"}', (0.7, 0.3)),
        ('\n{"1": 0.2, "2": 0.6}\n', (0.25, 0.75)),
        ('{"1": 100, "2": 100}', (0.5, 0.5)),
        ('{"1": 0, "2": 1e-300}', (0, 1)),
    ],
)
def test_stated_probabilities_are_made_to_add_up(text, expected):
    assert answers.stated(text, answers.PAIR) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    "text",
    [
        *("", "70", "[70, 30]", "null", '"1"', "70 to 30", '{"1": 70, "2": 3', "{}", '{"1": 1}', '{"1": 1, "2": null}'),
        *('{"1": 1, "2": [1]}', '{"1": 1, "2": "high"}', '{"1": 0, "2": 0}', '{"1": 120, "2": -20}'),
        *('{"1": -1, "2": -1}', '{"1": NaN, "2": 1}', '{"1": NaN, "2": -1}', '{"1": Infinity, "2": 1}'),
        *('{"1": 1e400, "2": 1}', '{"1": -Infinity, "2": 1}'),
    ],
)
def test_anything_but_an_object_of_probabilities_states_none(text):
    assert answers.stated(text, answers.PAIR) is None


@pytest.mark.parametrize(
    "text",
    ['{"1": 1e308, "2": 1e308}', f'{{"1": 1{"0" * 400}, "2": 1}}', '{"1": Infinity, "2": -Infinity}', "[" * 2000],
    ids=["sum", "integer", "infinities", "depth"],
)
def test_numbers_beyond_all_bounds_are_no_probabilities_and_no_crash(text):
    assert answers.stated(text, answers.PAIR) in (None, (0.5, 0.5))


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=10))
def test_stated_probabilities_keep_their_proportions(weights):
    assume(sum(weights) > 1e-300)
    options = answers.SCALE[: len(weights)]
    found = answers.stated(json.dumps(dict(zip(options, weights, strict=True))), options)
    assert math.fsum(found) == pytest.approx(1, abs=1e-12)
    assert [each * math.fsum(weights) for each in found] == pytest.approx(weights)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((0, 0), (1 / 2, 1 / 2)),
        ((5, 0), (6 / 7, 1 / 7)),
        ((1, 2), (2 / 5, 3 / 5)),
        ((100, 0), (101 / 102, 1 / 102)),
        ((3, *[0] * 9), (3.2 / 5, *[0.2 / 5] * 9)),
        ((0, 0, 1), (2 / 9, 2 / 9, 5 / 9)),
    ],
)
def test_shares_of_votes_have_two_more_spread_evenly(counts, expected):
    assert answers.smoothed(counts) == pytest.approx(expected, abs=1e-15)


@given(st.lists(st.integers(0, 100), min_size=2, max_size=10))
def test_shares_of_votes_add_up_to_one_and_none_is_sure(counts):
    found = answers.smoothed(counts)
    assert math.fsum(found) == pytest.approx(1, abs=1e-12)
    assert all(0 < each < 1 for each in found)
    assert sorted(found) == [share for _, share in sorted(zip(counts, found, strict=True))]
