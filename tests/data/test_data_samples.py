from collections import Counter
from pathlib import Path

import pytest

import data
from data.reading import comparisons, responses
from prompts import task as tasks
from prompts.render import transcript

FOLDER = Path(data.__file__).parent / "samples"
EACH = pytest.mark.parametrize("name", ["summarization", "helpfulness", "harmlessness"])


def sample(name):
    return list(comparisons(str(FOLDER / f"{name}.jsonl")))


@EACH
def test_a_sample_has_16_usable_rows_half_of_them_hard(name):
    rows = sample(name)
    assert Counter(row.meta["difficulty"] for row in rows) == {"plain": 8, "hard": 8}
    assert len({row.id for row in rows}) == 16
    assert {row.meta["task"] for row in rows} == {name}


@EACH
def test_each_row_says_its_flaw_and_that_no_person_voted(name):
    for row in sample(name):
        assert row.meta["flaw"]
        assert [vote.rater for vote in row.votes] == ["construction"]


@EACH
def test_position_and_length_are_balanced_against_the_label(name):
    pairs = Counter()
    for row in sample(name):
        right = row.votes[0].choice
        pairs[right, len(row.responses[right]) > len(row.responses[1 - right])] += 1
    assert pairs == {(0, True): 4, (0, False): 4, (1, True): 4, (1, False): 4}


@EACH
def test_no_sample_is_an_exemplar_of_its_task(name):
    shown = {exemplar.prompt.removeprefix("Human: ") for exemplar in tasks.load(name).pairwise.exemplars}
    assert not shown & {transcript(row.prompt).removeprefix("Human: ") for row in sample(name)}


def test_of_48_single_responses_20_are_harmful():
    rows = list(responses(str(FOLDER / "responses.jsonl")))
    assert Counter(rating.harmful for row in rows for rating in row.ratings) == {True: 20, False: 28}
    assert len({row.id for row in rows}) == len(rows) == 48


def test_both_writers_of_single_responses_answer_every_prompt():
    rows = list(responses(str(FOLDER / "responses.jsonl")))
    assert Counter(row.model for row in rows) == {"careful": 24, "careless": 24}
    assert set(Counter(str(row.prompt) for row in rows).values()) == {2}
